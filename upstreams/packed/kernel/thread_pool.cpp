#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <vector>

#if SUPERBIT_X86
#include <immintrin.h>
#endif

namespace superbit {

// Every idle thread takes the next part, and so does the caller: a thread that wakes up late delays nothing.
struct ThreadPool::State {
    // The state of the task in one atomic word, so that a thread that takes a part knows which task the part belongs to:
    // the task's number, how many parts it has, and how many are taken.
    struct Ticket {
        uint64_t task : 40, parts : 12, taken : 12;
    };
    static constexpr int SPINS = 4000;  // about 50 us, as long as waking a thread takes

    pid_t process = 0;
    std::mutex guard;
    std::condition_variable begin;
    void (*work)(void*, int, Scratch&) = nullptr;
    void* data = nullptr;
    std::atomic<Ticket> ticket{Ticket{0, 0, 0}};
    std::atomic<int> unfinished{0}, asleep{0};
    std::atomic<bool> is_closed{false};
    std::vector<std::thread> threads;
    int wanted = 0;

    static void pause() {
#if SUPERBIT_X86
        _mm_pause();
#endif
    }

    void start() {
        process = getpid();
        try {
            threads.reserve(size_t(wanted));
            while (int(threads.size()) < wanted) threads.emplace_back(&State::wait_for_tasks, this);
        } catch (...) {
        }
    }

    void take_parts(Scratch& scratch) {
        for (Ticket now = ticket; now.taken < now.parts; now = ticket) {
            Ticket next = now;
            ++next.taken;
            if (!ticket.compare_exchange_weak(now, next)) continue;
            work(data, int(now.taken), scratch);  // of this ticket's task for as long as one of its parts is unfinished
            --unfinished;
        }
    }

    void wait_for_tasks() noexcept {
        Scratch scratch;
        for (uint64_t seen = 0;;) {
            auto is_waiting = [&] { return ticket.load().task == seen && !is_closed; };
            for (int spins = 0; spins < SPINS && is_waiting(); ++spins) pause();
            if (is_waiting()) {
                std::unique_lock<std::mutex> lock(guard);
                ++asleep;
                begin.wait(lock, [&] { return !is_waiting(); });
                --asleep;
            }
            if (is_closed) return;
            seen = ticket.load().task;
            take_parts(scratch);
        }
    }

    void wake() {
        if (asleep == 0) return;
        { std::lock_guard<std::mutex> lock(guard); }
        begin.notify_all();
    }
};

ThreadPool::ThreadPool(int threads) : state(new State) {
    state->wanted = (threads < MAX_THREADS ? threads : MAX_THREADS) - 1;
    state->start();
}

ThreadPool::~ThreadPool() {
    if (state->process != getpid()) return;  // after fork: the threads do not exist here, and the locks may stay held
    state->is_closed = true;
    {
        std::lock_guard<std::mutex> lock(state->guard);
    }
    state->begin.notify_all();
    for (std::thread& thread : state->threads) thread.join();
    delete state;
}

int ThreadPool::threads() const { return state->wanted + 1; }

void ThreadPool::run(int parts, void (*work)(void*, int, Scratch&), void* data, Scratch& own) {
    if (state->process != getpid()) {  // after fork, abandon the parent's threads and start new ones
        State* fresh = new State;
        fresh->wanted = state->wanted;
        fresh->start();
        state = fresh;
    }
    State& now = *state;
    now.work = work, now.data = data;
    now.unfinished = parts;
    now.ticket = State::Ticket{now.ticket.load().task + 1, uint64_t(parts), 0};
    now.wake();
    now.take_parts(own);
    for (int spins = 0; now.unfinished > 0; ++spins) {
        State::pause();
        if (spins > State::SPINS) std::this_thread::yield();
    }
}

}  // namespace superbit
