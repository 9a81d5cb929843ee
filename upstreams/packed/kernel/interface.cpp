#include "interface.h"

#include "operations.h"
#include "parallel.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace superbit;

EXPORT int superbit_interface() { return 3; }

EXPORT int superbit_best_level() {
#if SUPERBIT_X86
    __builtin_cpu_init();
    bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni"))
        return int(Level::avx512);
    if (has_avx2) return int(Level::avx2);
    return __builtin_cpu_supports("popcnt") ? int(Level::scalar) : -1;
#else
    return int(Level::scalar);
#endif
}

EXPORT int superbit_binarize(int level, int threads, const f32* values, i64 rows, i64 columns, const f32* shift,
                             float threshold, int strict, u32* bits) {
    return parallel(level, threads, rows, 16, Binarize{values, columns, shift, threshold, strict != 0, bits});
}

EXPORT int superbit_binary_to_floats(int level, int threads, const u32* bits, i64 rows, i64 words, const u32* weights,
                                     i64 outputs, const i32* offset, const f32* scale, const f32* bias, f32* out) {
    BinaryProduct product{bits, words, weights, outputs, blocks_of(outputs)};
    return parallel(level, threads, rows, 6, BinaryToFloats{product, {offset, scale, bias, -2}, out});
}

EXPORT int superbit_binary_to_bits(int level, int threads, const u32* bits, i64 rows, i64 words, const u32* weights,
                                   i64 outputs, const i32* limit, u32* out) {
    BinaryProduct product{bits, words, weights, outputs, blocks_of(outputs)};
    return parallel(level, threads, rows, 6, BinaryToBits{product, limit, out});
}

EXPORT int superbit_binary_attention(int level, int threads, const u32* query, const u32* key, const u32* value,
                                     i64 batch, i64 queries, i64 keys, i64 heads, i64 dim, const int64_t* lengths,
                                     i64 first, i64 radius, const f32* relative, i64 reach, float score_scale,
                                     float threshold, float value_scale, f32* out) {
    Window window{queries, keys, heads, dim, lengths, first, radius, relative, reach};
    BinaryAttention attention{query, key, value, window, score_scale, threshold, value_scale, out};
    return parallel(level, threads, batch * heads, 1, attention);
}

EXPORT int superbit_float_attention(int level, int threads, const f32* query, const f32* key, const f32* value,
                                    i64 batch, i64 queries, i64 keys, i64 heads, i64 dim, const int64_t* lengths,
                                    i64 first, i64 radius, const f32* relative, i64 reach, float score_scale,
                                    float alpha, float highest, float value_scale, f32* out) {
    Window window{queries, keys, heads, dim, lengths, first, radius, relative, reach};
    FloatAttention attention{query, key, value, window, score_scale, alpha, highest, value_scale, out};
    return parallel(level, threads, batch * heads, 1, attention);
}

EXPORT int superbit_quantize_bytes(int level, int threads, const f32* values, i64 rows, i64 columns, float alpha,
                                   float low, float high, uint8_t* bytes) {
    return parallel(level, threads, rows, 16, QuantizeBytes{values, columns, alpha, low, high, bytes});
}

EXPORT int superbit_byte_product(int level, int threads, const uint8_t* bytes, i64 rows, i64 words, const u32* weights,
                                 i64 outputs, const i32* offset, const f32* scale, const f32* bias, f32* out) {
    ByteProduct product{bytes, words, weights, outputs, blocks_of(outputs), {offset, scale, bias, 1}, out};
    return parallel(level, threads, rows, 8, product);
}

EXPORT int superbit_sign_product(int level, int threads, const f32* x, i64 rows, i64 inputs, const u32* weights,
                                 i64 outputs, const f32* scale, const f32* bias, f32* out) {
    return parallel(level, threads, rows, 4, SignProduct{x, inputs, weights, outputs, blocks_of(outputs), scale, bias, out});
}

EXPORT int superbit_float_product(int level, int threads, const f32* x, i64 rows, i64 stride, i64 inputs,
                                  i64 first, i64 last, const f32* weights, i64 outputs, const f32* bias, f32* out,
                                  i64 out_stride) {
    FloatProduct product{x,    stride, inputs,     weights, inputs, outputs, blocks_of(outputs),
                         bias, out,    out_stride, first,   last};
    return parallel(level, threads, rows, 8, product);
}

EXPORT int superbit_layer_norm(int level, int threads, const f32* x, i64 rows, i64 dim, const f32* weight,
                               const f32* bias, float epsilon, f32* out) {
    return parallel(level, threads, rows, 16, LayerNorm{x, dim, weight, bias, epsilon, out});
}

EXPORT int superbit_depthwise(int level, int threads, const f32* x, i64 frames, i64 channels, i64 taps, i64 stride,
                              const f32* weights, const f32* bias, f32* out) {
    return parallel(level, threads, frames, 16, Depthwise{x, channels, taps, stride, weights, bias, out});
}

EXPORT int superbit_gelu(int level, int threads, f32* x, i64 count) { return parallel(level, threads, count, 1024, Gelu{x}); }

EXPORT int superbit_popcount_peak(int level, int threads, i64 rounds, u32* sink) {
    return parallel(level, threads, rounds, rounds, PopcountPeak{sink});
}
