// The level without vector intrinsics: the generic twin of every idea. It runs on every processor.

#include "../operations.h"
#include "../parallel.h"

namespace superbit {
namespace {

struct Scalar : generic::Binary, generic::Bytes, generic::Signs, generic::Floats, generic::Attention {};

}  // namespace

template <class Operation>
SCALAR void run_scalar(const Operation& operation, i64 begin, i64 end, Scratch& scratch) {
    operation.template run<Scalar>(begin, end, scratch);
}

#define COMPILE(Operation) template void run_scalar<Operation>(const Operation&, i64, i64, Scratch&);
SUPERBIT_FOR_EVERY_OPERATION(COMPILE)

}  // namespace superbit
