// A pool of threads that wait for work.

#pragma once

#include <functional>

namespace superbit::thread_pool {

// A ticket (thread_pool.cpp) counts parts in 12 bits and threads in 8.
constexpr int MAX_PARTS = 4095, MAX_THREADS = 255;

// Call work(0) ... work(parts - 1) on up to `threads` threads, the caller's included, and return when all are done.
void run(int threads, int parts, const std::function<void(int)>& work);

}  // namespace superbit::thread_pool
