// Types, constants and compiler attributes that every file of the kernel uses.

#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define SUPERBIT_X86 1
#define SUPERBIT_ARM 0
#define SCALAR __attribute__((target("popcnt")))
#define AVX2 __attribute__((target("avx2,fma,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512vnni,avx2,fma,popcnt")))
#elif defined(__aarch64__)
#define SUPERBIT_X86 0
#define SUPERBIT_ARM 1
#define SCALAR
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#else
#define SUPERBIT_X86 0
#define SUPERBIT_ARM 0
#define SCALAR
#endif
#define ALWAYS __attribute__((always_inline))
#define INLINE ALWAYS inline

namespace superbit {

using i64 = int64_t;
// Pointers from the caller may have any alignment. Templates (std::fill) forget it: set such memory with std::memset.
using f32 = float __attribute__((aligned(1)));
using u32 = uint32_t __attribute__((aligned(1), may_alias));
using i32 = int32_t __attribute__((aligned(1)));

// Instruction sets, by the numbers that the interface uses.
enum class Level { scalar = 0, avx2 = 1, avx512 = 2, neon = 3, neon_dot = 4 };

constexpr i64 LANES = 16;  // outputs in a block of weights

// Thrown where floats become whole numbers, none of which stands for NaN.
struct NotANumber {};

INLINE constexpr i64 blocks_of(i64 outputs) { return (outputs + LANES - 1) / LANES; }
INLINE constexpr i64 words_of(i64 bits) { return (bits + 31) / 32; }

}  // namespace superbit
