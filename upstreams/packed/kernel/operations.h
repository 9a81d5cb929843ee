// Every operation that the architectures compile.

#pragma once

#include "binary.h"
#include "binary_attention.h"
#include "bytes.h"
#include "convolution.h"
#include "float_attention.h"
#include "floats.h"
#include "rows.h"
#include "signs.h"
#include "spectral.h"
#include "spectrum.h"

#define SUPERBIT_FOR_EVERY_OPERATION(DO)                                                                        \
    DO(BinaryToFloats)                                                                                          \
    DO(BinaryToBits)                                                                                            \
    DO(BinaryAttention)                                                                                         \
    DO(FloatAttention)                                                                                          \
    DO(ByteProduct)                                                                                             \
    DO(Int8Product)                                                                                             \
    DO(SignProduct)                                                                                             \
    DO(FloatProduct)                                                                                            \
    DO(Rows)                                                                                                    \
    DO(Levels)                                                                                                  \
    DO(Gate)                                                                                                    \
    DO(RelativeQuery)                                                                                           \
    DO(Rotate)                                                                                                  \
    DO(Depthwise)                                                                                               \
    DO(StemFirst)                                                                                               \
    DO(StemDepthwise)                                                                                           \
    DO(SpectralConvolution)                                                                                     \
    DO(LogMel)                                                                                                  \
    DO(PopcountPeak)
