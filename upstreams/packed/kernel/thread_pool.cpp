#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <unistd.h>

#include "platform.h"

#if SUPERBIT_X86
#include <immintrin.h>
#endif

namespace superbit::thread_pool {
namespace {

// Threads start when they are first needed. Every idle thread takes the next part, and so does the caller: a thread that
// wakes up late delays nothing.
class Pool {
  public:
    const pid_t process = getpid();
    std::mutex in_use;

    // Run one task. The caller holds `in_use`.
    void run(int threads, int parts, const std::function<void(int)>& work) {
        start(threads - 1);
        task = &work;
        unfinished = parts;
        Ticket next{ticket.load().task + 1, uint64_t(threads), uint64_t(parts), 0};
        ticket = next;
        if (asleep > 0) {
            { std::lock_guard<std::mutex> lock(guard); }
            begin.notify_all();
        }
        take_parts();
        for (int spins = 0; unfinished > 0; ++spins) {
            pause();
            if (spins > SPINS) std::this_thread::yield();
        }
    }

  private:
    // The state of the task in one atomic word, so that a thread that takes a part knows which task the part belongs to:
    // the task's number, how many threads may work on it, its parts, and how many parts are taken.
    struct Ticket {
        uint64_t task : 32, threads : 8, parts : 12, taken : 12;
    };
    static constexpr int SPINS = 4000;  // about 50 us, as long as waking a thread takes

    static void pause() {
#if SUPERBIT_X86
        _mm_pause();
#endif
    }

    // Have `count` threads wait for tasks, or as many as the system allows.
    void start(int count) {
        try {
            for (; started < count; ++started) std::thread(&Pool::wait_for_tasks, this, started + 1).detach();
        } catch (...) {
        }
    }

    void take_parts() {
        for (Ticket now = ticket; now.taken < now.parts; now = ticket) {
            Ticket next = now;
            ++next.taken;
            if (!ticket.compare_exchange_weak(now, next)) continue;
            (*task)(int(now.taken));  // `task` is this ticket's task for as long as one of its parts is unfinished
            --unfinished;
        }
    }

    void wait_for_tasks(int number) noexcept {
        for (uint32_t seen = 0;;) {
            for (int spins = 0; spins < SPINS && ticket.load().task == seen; ++spins) pause();
            if (ticket.load().task == seen) {
                std::unique_lock<std::mutex> lock(guard);
                ++asleep;
                begin.wait(lock, [&] { return ticket.load().task != seen; });
                --asleep;
            }
            Ticket now = ticket;
            seen = now.task;
            if (number < int(now.threads)) take_parts();
        }
    }

    std::mutex guard;
    std::condition_variable begin;
    const std::function<void(int)>* task = nullptr;
    std::atomic<Ticket> ticket{Ticket{0, 0, 0, 0}};
    std::atomic<int> unfinished{0}, asleep{0};
    int started = 0;
};

}  // namespace

void run(int threads, int parts, const std::function<void(int)>& work) {
    static std::mutex creating;
    static Pool* pool = nullptr;
    {
        std::lock_guard<std::mutex> lock(creating);
        // After fork, abandon the parent's pool: its threads do not exist here, and its locks may stay held.
        if (pool == nullptr || pool->process != getpid()) pool = new Pool();
    }
    std::unique_lock<std::mutex> lock(pool->in_use, std::try_to_lock);
    if (!lock.owns_lock()) {  // another thread of the caller computes: waiting for it would take longer
        for (int part = 0; part < parts; ++part) work(part);
        return;
    }
    pool->run(threads, parts, work);
}

}  // namespace superbit::thread_pool
