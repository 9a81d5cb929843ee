#include "levels.h"

#include <cstring>

#if SUPERBIT_ARM && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace superbit {
namespace {

struct Named {
    const char* name;
    Level level;
};

// Best first.
constexpr Named LEVELS[] = {{"avx512", Level::avx512},
                            {"avx2", Level::avx2},
                            {"neon_dot", Level::neon_dot},
                            {"neon", Level::neon},
                            {"scalar", Level::scalar}};

bool is_here(Level level) {
#if SUPERBIT_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == Level::avx512)
        return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni");
    if (level == Level::avx2) return has_avx2;
    return level == Level::scalar && __builtin_cpu_supports("popcnt");
#elif SUPERBIT_ARM
#if defined(__linux__)
    if (level == Level::neon_dot) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
    return level == Level::neon || level == Level::scalar;
#else
    return level == Level::scalar;
#endif
}

}  // namespace

const char* level_name(int number) {
    for (const Named& one : LEVELS)
        if (is_here(one.level) && number-- == 0) return one.name;
    return "";
}

bool find_level(const char* name, Level& level) {
    for (const Named& one : LEVELS) {
        if (!is_here(one.level) || (name != nullptr && std::strcmp(name, one.name) != 0)) continue;
        level = one.level;
        return true;
    }
    return false;
}

}  // namespace superbit
