// Every operation that the architectures compile.

#pragma once

#include "binary.h"
#include "binary_attention.h"
#include "bytes.h"
#include "elementwise.h"
#include "float_attention.h"
#include "floats.h"
#include "signs.h"

#define SUPERBIT_FOR_EVERY_OPERATION(DO)                                                                        \
    DO(Binarize)                                                                                                \
    DO(BinaryToFloats)                                                                                          \
    DO(BinaryToBits)                                                                                            \
    DO(BinaryAttention)                                                                                         \
    DO(FloatAttention)                                                                                          \
    DO(QuantizeBytes)                                                                                           \
    DO(ByteProduct)                                                                                             \
    DO(SignProduct)                                                                                             \
    DO(FloatProduct)                                                                                            \
    DO(LayerNorm)                                                                                               \
    DO(Depthwise)                                                                                               \
    DO(Gelu)                                                                                                    \
    DO(PopcountPeak)
