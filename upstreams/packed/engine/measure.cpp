// The 1-bit product and the processor's limit, for benchmarks.

#include <vector>

#include "../kernel/levels.h"
#include "../kernel/operations.h"
#include "../kernel/parallel.h"
#include "superbit.h"

using namespace superbit;

int superbit_measure(const char* name, int what, int64_t rounds) {
    constexpr i64 rows = 1000, inputs = 768, outputs = 3072, words = inputs / 32;
    Level level;
    if (!find_level(name, level) || rounds < 0 || what < 0 || what > 2) return SUPERBIT_INVALID_ARGUMENT;
    try {
        Scratch scratch;
        const Context context{level, nullptr, scratch};
        std::vector<uint32_t> bits(rows * words, 0x12345678u), weights(outputs * words, 0x9e3779b9u), out_bits(rows * outputs / 32);
        std::vector<int32_t> offset(outputs, int32_t(inputs)), limit(outputs, int32_t(inputs / 2));
        std::vector<float> scale(outputs, 1.0f), out(what == 0 ? rows * outputs : 1);
        const BinaryProduct product{bits.data(), words, weights.data(), outputs, blocks_of(outputs)};
        if (what == 2) {
            uint32_t sink;
            context.run(PopcountPeak{&sink}, rounds, rounds);
        }
        for (int64_t n = 0; what < 2 && n < rounds; ++n) {
            if (what == 0)
                context.run(BinaryToFloats{product, {offset.data(), scale.data(), scale.data(), -2}, out.data()}, rows, 6);
            else
                context.run(BinaryToBits{product, limit.data(), out_bits.data()}, rows, 6);
        }
    } catch (...) {
        return SUPERBIT_NO_MEMORY;
    }
    return SUPERBIT_OK;
}
