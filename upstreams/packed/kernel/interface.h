// The C interface of the kernel, which Python calls through ctypes. It depends on neither Python nor torch.
//
// Every function takes the level (0 scalar, 1 AVX2, 2 AVX-512; at most superbit_best_level()) and the number of threads.
// Pointers may have any alignment. It returns a `Status` (parallel.h): 0, or why its result is not valid.
//
// Bits are 32 to a word, the lowest bit first. A 1 stands for +1; a 0 stands for -1, or for 0 if the values are {0, alpha}.
// Zeros fill the last word of a row. The weights of a layer lie in blocks of 16 outputs: [block][word][output]. Float weights
// lie in [block][input][output]. Arrays for each output (scale, bias, offset, limit) are padded to whole blocks.
//
// A result depends neither on the number of rows computed at once nor on the number of threads: streaming relies on it.

#pragma once

#include "platform.h"

extern "C" {

// ABI version: increment when a signature changes.
int superbit_interface();

// The highest level of this processor; -1 if it has none.
int superbit_best_level();

// values (rows, columns) -> bits: values + shift >= threshold, or > if `strict`. `shift` (columns,) may be null.
int superbit_binarize(int level, int threads, const superbit::f32* values, int64_t rows, int64_t columns,
                      const superbit::f32* shift, float threshold, int strict, superbit::u32* bits);

// out (rows, outputs) = scale * (offset - 2 * number of differing bits) + bias.
int superbit_binary_to_floats(int level, int threads, const superbit::u32* bits, int64_t rows, int64_t words,
                              const superbit::u32* weights, int64_t outputs, const superbit::i32* offset,
                              const superbit::f32* scale, const superbit::f32* bias, superbit::f32* out);

// out (rows, words of the outputs): bit = fewer bits than `limit` differ.
int superbit_binary_to_bits(int level, int threads, const superbit::u32* bits, int64_t rows, int64_t words,
                            const superbit::u32* weights, int64_t outputs, const superbit::i32* limit,
                            superbit::u32* out);

// Arguments from `batch` to `reach`: window.h. The others: binary_attention.h.
int superbit_binary_attention(int level, int threads, const superbit::u32* query, const superbit::u32* key,
                              const superbit::u32* value, int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                              int64_t dim, const int64_t* lengths, int64_t first, int64_t radius,
                              const superbit::f32* relative, int64_t reach, float score_scale, float threshold,
                              float value_scale, superbit::f32* out);

// Arguments from `batch` to `reach`: window.h. The others: float_attention.h.
int superbit_float_attention(int level, int threads, const superbit::f32* query, const superbit::f32* key,
                             const superbit::f32* value, int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                             int64_t dim, const int64_t* lengths, int64_t first, int64_t radius,
                             const superbit::f32* relative, int64_t reach, float score_scale, float alpha, float highest,
                             float value_scale, superbit::f32* out);

// values (rows, columns) -> bytes (rows, columns rounded up to a multiple of 32): bytes.h.
int superbit_quantize_bytes(int level, int threads, const superbit::f32* values, int64_t rows, int64_t columns,
                            float alpha, float low, float high, uint8_t* bytes);

// out (rows, outputs) = scale * (offset + bytes times weights of +1 and -1) + bias.
int superbit_byte_product(int level, int threads, const uint8_t* bytes, int64_t rows, int64_t words,
                          const superbit::u32* weights, int64_t outputs, const superbit::i32* offset,
                          const superbit::f32* scale, const superbit::f32* bias, superbit::f32* out);

// out (rows, outputs) = scale * (x times weights of +1 and -1) + bias.
int superbit_sign_product(int level, int threads, const superbit::f32* x, int64_t rows, int64_t inputs,
                          const superbit::u32* weights, int64_t outputs, const superbit::f32* scale,
                          const superbit::f32* bias, superbit::f32* out);

// out (rows, outputs) = x times weights + bias. Rows of x begin `stride` floats apart and may overlap. x is known to be zero
// outside its floats `first` to `last - 1`.
int superbit_float_product(int level, int threads, const superbit::f32* x, int64_t rows, int64_t stride, int64_t inputs,
                           int64_t first, int64_t last, const superbit::f32* weights, int64_t outputs,
                           const superbit::f32* bias, superbit::f32* out, int64_t out_stride);

int superbit_layer_norm(int level, int threads, const superbit::f32* x, int64_t rows, int64_t dim,
                        const superbit::f32* weight, const superbit::f32* bias, float epsilon, superbit::f32* out);

// x ((frames - 1) * stride + taps, channels), weights (taps, channels) -> out (frames, channels).
int superbit_depthwise(int level, int threads, const superbit::f32* x, int64_t frames, int64_t channels, int64_t taps,
                       int64_t stride, const superbit::f32* weights, const superbit::f32* bias, superbit::f32* out);

// x (count,), in place.
int superbit_gelu(int level, int threads, superbit::f32* x, int64_t count);

// With AVX-512 only: 12 * 16 XORs, popcounts and additions of 32 bits a round.
int superbit_popcount_peak(int level, int threads, int64_t rounds, superbit::u32* sink);
}
