// A pool of threads that wait for work.

#pragma once

#include <functional>

namespace superbit::thread_pool {

// A ticket (thread_pool.cpp) counts parts in 12 bits and threads in 8.
constexpr int MAX_PARTS = 4095, MAX_THREADS = 255;

// Call work(0) ... work(parts - 1), which must not throw, on up to `threads` threads, the caller's included, and return when
// all are done. Throw std::bad_alloc before the first call if memory runs out; threads that do not start are done without.
void run(int threads, int parts, const std::function<void(int)>& work);

}  // namespace superbit::thread_pool
