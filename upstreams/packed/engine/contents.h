// What the packed file of a configuration holds: its tensors and quantized layers (upstreams/packed/contents.py).

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "config.h"

namespace superbit {

enum class Values { finite, not_negative, positive, codes };

// A tensor: float32, or uint8 if it holds codes. The last byte of a row of codes has `spare` bits, which are 0.
struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    Values values = Values::finite;
    int spare = 0;
};

// How to read a quantized layer: its bit widths, and whether its input has negative levels.
struct Layer {
    Bits bits;
    bool is_signed = true;
    int64_t columns = 0;  // weights of an output

    bool operator==(const Layer& other) const { return bits == other.bits && is_signed == other.is_signed; }
};

struct Contents {
    std::function<void(const Entry&)> entry;
    std::function<void(const std::string&, const Layer&)> layer;
};

// A decision of a head: one of the classes.
struct Slot {
    std::string name;
    std::vector<std::string> classes;
};

// The slots of the head that a file's metadata describe. Throw InvalidFile if the description is not valid.
std::vector<Slot> read_slots(const Json& head);

// Call the function for each tensor of a head.
void list_head(const ModelConfig& config, const std::vector<Slot>& slots, const std::function<void(const Entry&)>& entry);

// Call the functions for everything in the file, one after the other, so that a check ends at the first difference. Throw
// InvalidFile on invalid bits, on an override that matches no module, and if nothing is quantized.
void list_contents(const ModelConfig& config, const Contents& found);

constexpr int TAPS[7] = {10, 3, 3, 3, 3, 2, 2}, STRIDES[7] = {5, 2, 2, 2, 2, 2, 2};  // of HuBERT's convolutions

}  // namespace superbit
