// Dispatch of an operation to a level and to threads.
//
// An operation is a struct with its arguments and a body `run<Arch>(begin, end)` over items that are independent of one
// another. arch/*.cpp compile the body of every operation (operations.h), each for its instruction set.

#pragma once

#include <algorithm>

#include "platform.h"
#include "thread_pool.h"

namespace superbit {

template <class Operation>
SCALAR void run_scalar(const Operation& operation, i64 begin, i64 end);
#if SUPERBIT_X86
template <class Operation>
AVX2 void run_avx2(const Operation& operation, i64 begin, i64 end);
template <class Operation>
AVX512 void run_avx512(const Operation& operation, i64 begin, i64 end);
#endif

// Run the operation over `items`. Each thread's share is a multiple of `grain` items.
template <class Operation>
void parallel(int level, int threads, i64 items, i64 grain, const Operation& operation) {
    auto run = [&](i64 begin, i64 end) {
#if SUPERBIT_X86
        if (Level(level) == Level::avx512) return run_avx512(operation, begin, end);
        if (Level(level) == Level::avx2) return run_avx2(operation, begin, end);
#endif
        run_scalar(operation, begin, end);
    };
    i64 grains = (items + grain - 1) / grain;
    i64 parts = threads == 1 ? 1 : std::min<i64>({2 * i64(threads), grains, thread_pool::MAX_PARTS});
    if (parts <= 1) return run(0, items);
    thread_pool::run(std::min(threads, thread_pool::MAX_THREADS), int(parts), [&](int part) {
        i64 begin = grains * part / parts * grain, end = std::min(items, grains * (part + 1) / parts * grain);
        run(begin, end);
    });
}

}  // namespace superbit
