// The levels of this processor, by name.

#pragma once

#include "platform.h"

namespace superbit {

// The names of the levels that this processor has, best first; "" after the last one.
const char* level_name(int number);

// Find a level of this processor; a null name means the best one. Return false if the processor does not have it.
bool find_level(const char* name, Level& level);

}  // namespace superbit
