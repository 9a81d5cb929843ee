// A pool of threads that wait for work.

#pragma once

#include <cstdint>
#include <memory>

#include "scratch.h"

namespace superbit {

class ThreadPool {
  public:
    static constexpr int MAX_PARTS = 4095, MAX_THREADS = 255;  // a ticket counts parts in 12 bits and threads in 8

    // `threads` include the caller's. Threads that the system does not start are done without.
    explicit ThreadPool(int threads);
    ~ThreadPool();

    int threads() const;

    // Call work(data, part, scratch) for the parts 0 to parts - 1, on all threads, and return when all are done. `work` must
    // not throw. The caller's thread uses `own`, each other thread a scratch of its own.
    void run(int parts, void (*work)(void*, int, Scratch&), void* data, Scratch& own);

  private:
    struct State;
    State* state;
};

}  // namespace superbit
