// Working memory that is taken in a stack's order and kept for the next call.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

#include "platform.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace superbit {

// One thread uses a Scratch. After the largest call it is one block of memory, and no call allocates any more.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { clear(); }

    // `count` elements without values, at a multiple of 64 bytes. Throw std::bad_alloc if memory runs out.
    template <class T>
    T* take(i64 count) {
        if (count < 0 || count > (i64(1) << 44)) throw std::bad_alloc();
        return static_cast<T*>(take_bytes(size_t(count) * sizeof(T)));
    }

    // What is taken while a Scope lives is free again after it.
    class Scope {
      public:
        explicit Scope(Scratch& scratch) : scratch(scratch), chunk(scratch.chunk), used(scratch.used) {}
        Scope(const Scope&) = delete;
        ~Scope() { scratch.release(chunk, used); }

      private:
        Scratch& scratch;
        size_t chunk, used;
    };

    size_t bytes() const {
        size_t total = 0;
        for (const Chunk& one : chunks) total += one.size;
        return total;
    }

  private:
    struct Chunk {
        char* data;
        size_t size;
    };
    static constexpr size_t GAP = 64;  // between two pieces, so that a sanitizer sees an access past an end

    void* take_bytes(size_t size) {
        const size_t needed = (size + 63) / 64 * 64 + GAP;
        if (chunk == 0 && used == 0 && chunks.size() > 1) {  // everything is free: one chunk instead of several
            const size_t total = bytes();
            clear();
            add(total);
        }
        while (chunk < chunks.size() && chunks[chunk].size - used < needed) ++chunk, used = 0;
        if (chunk == chunks.size()) add(needed);
        char* data = chunks[chunk].data + used;
        used += needed;
        ASAN_UNPOISON_MEMORY_REGION(data, size);
        return data;
    }

    void add(size_t size) {
        const size_t least = chunks.empty() ? size_t(1) << 16 : chunks.back().size;
        size = ((size > least ? size : least) + 63) / 64 * 64;
        chunks.reserve(chunks.size() + 1);
        char* data = static_cast<char*>(std::aligned_alloc(64, size));
        if (data == nullptr) throw std::bad_alloc();
        ASAN_POISON_MEMORY_REGION(data, size);
        chunks.push_back({data, size});
    }

    void release(size_t to_chunk, size_t to_used) {
        chunk = to_chunk, used = to_used;
        for (size_t n = chunk; n < chunks.size(); ++n) {
            const size_t kept = n == chunk ? used : 0;
            ASAN_POISON_MEMORY_REGION(chunks[n].data + kept, chunks[n].size - kept);
        }
    }

    void clear() {
        for (const Chunk& one : chunks) {
            ASAN_UNPOISON_MEMORY_REGION(one.data, one.size);
            std::free(one.data);
        }
        chunks.clear();
        chunk = used = 0;
    }

    std::vector<Chunk> chunks;
    size_t chunk = 0, used = 0;
};

}  // namespace superbit
