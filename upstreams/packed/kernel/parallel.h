// Dispatch of an operation to a level and to threads.
//
// An operation is a struct with its arguments and a body `run<Arch>(begin, end)` over items that are independent of one
// another. arch/*.cpp compile the body of every operation (operations.h), each for its instruction set.

#pragma once

#include <algorithm>
#include <atomic>

#include "platform.h"
#include "thread_pool.h"

namespace superbit {

// What every function of the interface returns. No exception leaves it: the caller may be written in C.
enum class Status : int { done = 0, no_memory = 1, not_a_number = 2 };

template <class Operation>
SCALAR void run_scalar(const Operation& operation, i64 begin, i64 end);
#if SUPERBIT_X86
template <class Operation>
AVX2 void run_avx2(const Operation& operation, i64 begin, i64 end);
template <class Operation>
AVX512 void run_avx512(const Operation& operation, i64 begin, i64 end);
#endif

template <class Operation>
void run_at(Level level, const Operation& operation, i64 begin, i64 end) {
#if SUPERBIT_X86
    if (level == Level::avx512) return run_avx512(operation, begin, end);
    if (level == Level::avx2) return run_avx2(operation, begin, end);
#endif
    run_scalar(operation, begin, end);
}

// Run the operation over `items` and return a `Status`. Each thread's share is a multiple of `grain` items.
template <class Operation>
int parallel(int level, int threads, i64 items, i64 grain, const Operation& operation) noexcept {
    std::atomic<Status> status{Status::done};
    auto run = [&](i64 begin, i64 end) noexcept {
        try {
            run_at(Level(level), operation, begin, end);
        } catch (const NotANumber&) {
            status = Status::not_a_number;
        } catch (...) {
            status = Status::no_memory;
        }
    };
    i64 grains = (items + grain - 1) / grain;
    i64 parts = threads == 1 ? 1 : std::min<i64>({2 * i64(threads), grains, thread_pool::MAX_PARTS});
    auto run_part = [&](int part) {
        i64 begin = grains * part / parts * grain, end = std::min(items, grains * (part + 1) / parts * grain);
        run(begin, end);
    };
    try {
        if (parts <= 1)
            run(0, items);
        else
            thread_pool::run(std::min(threads, thread_pool::MAX_THREADS), int(parts), run_part);
    } catch (...) {  // before any part has begun
        status = Status::no_memory;
    }
    return int(status.load());
}

}  // namespace superbit
