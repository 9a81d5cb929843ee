// Dispatch of an operation to a level and to threads.
//
// An operation is a struct with its arguments and a body `run<Arch>(begin, end, scratch)` over items that are independent of
// one another. arch/*.cpp compile the body of every operation (operations.h), each for its instruction set.

#pragma once

#include <algorithm>
#include <atomic>
#include <new>

#include "platform.h"
#include "scratch.h"
#include "thread_pool.h"

namespace superbit {

template <class Operation>
SCALAR void run_scalar(const Operation& operation, i64 begin, i64 end, Scratch& scratch);
#if SUPERBIT_X86
template <class Operation>
AVX2 void run_avx2(const Operation& operation, i64 begin, i64 end, Scratch& scratch);
template <class Operation>
AVX512 void run_avx512(const Operation& operation, i64 begin, i64 end, Scratch& scratch);
#endif
#if SUPERBIT_ARM
template <class Operation>
void run_neon(const Operation& operation, i64 begin, i64 end, Scratch& scratch);
template <class Operation>
DOTPROD void run_neon_dot(const Operation& operation, i64 begin, i64 end, Scratch& scratch);
#endif

template <class Operation>
void run_at(Level level, const Operation& operation, i64 begin, i64 end, Scratch& scratch) {
    Scratch::Scope scope(scratch);
#if SUPERBIT_X86
    if (level == Level::avx512) return run_avx512(operation, begin, end, scratch);
    if (level == Level::avx2) return run_avx2(operation, begin, end, scratch);
#endif
#if SUPERBIT_ARM
    if (level == Level::neon_dot) return run_neon_dot(operation, begin, end, scratch);
    if (level == Level::neon) return run_neon(operation, begin, end, scratch);
#endif
    run_scalar(operation, begin, end, scratch);
}

// Where operations run: at a level, on the threads of a pool or on the caller's alone, with the caller's working memory.
struct Context {
    Level level;
    ThreadPool* pool;  // null: the caller's thread alone
    Scratch& scratch;

    // Run the operation over `items`. Each thread's share is a multiple of `grain` items. Throw NotANumber or std::bad_alloc.
    template <class Operation>
    void run(const Operation& operation, i64 items, i64 grain) const {
        const i64 grains = (items + grain - 1) / grain;
        const int parts = pool == nullptr ? 1 : int(std::min<i64>({2 * i64(pool->threads()), grains, ThreadPool::MAX_PARTS}));
        if (parts <= 1) return run_at(level, operation, 0, items, scratch);
        each(parts, [&](int part, Scratch& own) {
            run_at(level, operation, grains * part / parts * grain, std::min(items, grains * (part + 1) / parts * grain), own);
        });
    }

    // Call work(part, scratch) for every part; throw the kind of the last exception after all parts are done.
    template <class Work>
    void each(int parts, const Work& work) const {
        struct Task {
            const Work& work;
            int first = 0;
            std::atomic<int> failure{0};
        } task{work};
        auto run_part = [](void* data, int part, Scratch& own) {
            Task& task = *static_cast<Task*>(data);
            try {
                task.work(task.first + part, own);
            } catch (const NotANumber&) {
                task.failure = 1;
            } catch (...) {
                task.failure = 2;
            }
        };
        if (pool == nullptr)
            for (int part = 0; part < parts; ++part) run_part(&task, part, scratch);
        else
            for (; task.first < parts; task.first += ThreadPool::MAX_PARTS)
                pool->run(std::min(parts - task.first, ThreadPool::MAX_PARTS), run_part, &task, scratch);
        if (task.failure == 1) throw NotANumber();
        if (task.failure == 2) throw std::bad_alloc();
    }
};

}  // namespace superbit
