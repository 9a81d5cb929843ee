// The AVX-512 level, with VPOPCNTDQ and VNNI.

#include "../operations.h"
#include "../parallel.h"

#if SUPERBIT_X86

#include "avx512_attention.h"
#include "avx512_binary.h"
#include "avx512_bytes.h"
#include "avx512_signs.h"

namespace superbit {
namespace avx512 {
namespace {

struct Floats {
    static constexpr int FLOAT_ROWS = 8, FLOAT_BLOCKS = 3;
    using Vector = float __attribute__((vector_size(64), aligned(1), may_alias));
};

struct Avx512 : Binary, Bytes, Signs, Floats, Attention {};

}  // namespace
}  // namespace avx512

template <class Operation>
AVX512 void run_avx512(const Operation& operation, i64 begin, i64 end, Scratch& scratch) {
    operation.template run<avx512::Avx512>(begin, end, scratch);
}

#define COMPILE(Operation) template void run_avx512<Operation>(const Operation&, i64, i64, Scratch&);
SUPERBIT_FOR_EVERY_OPERATION(COMPILE)

}  // namespace superbit

#endif
