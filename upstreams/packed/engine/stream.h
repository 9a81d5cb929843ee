// Hidden states of one utterance while its samples arrive.
//
// Every part of a Sparseformer looks a bounded number of frames ahead. A frame of hidden state l is therefore final, equal to
// the frame of the whole utterance, after `samples_needed(l, frame)` samples. What is kept between calls is bounded too.

#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "model.h"

namespace superbit {

// Rows that arrive at the end and leave at the front.
class Queue {
  public:
    explicit Queue(i64 row_bytes) : row(row_bytes) {}

    i64 count() const { return i64(data.size()) / row; }
    i64 bytes() const { return i64(data.size()); }
    template <class T = char>
    T* at(i64 n) {
        return reinterpret_cast<T*>(data.data() + n * row);
    }
    void add(const void* rows, i64 number) {
        const char* from = static_cast<const char*>(rows);
        data.insert(data.end(), from, from + number * row);
    }
    void add_zeros(i64 number) { data.resize(data.size() + size_t(number * row)); }
    void drop(i64 number) { data.erase(data.begin(), data.begin() + number * row); }
    void clear() { data.clear(); }

  private:
    i64 row;
    std::vector<char> data;
};

class Stream {
  public:
    // Throw NotStreamable if the model needs the whole utterance.
    struct NotStreamable {};
    explicit Stream(Session& session);

    void feed(const f32* samples, i64 count);
    void flush();
    bool is_flushed() const { return is_finished; }  // or a call failed
    i64 states() const { return i64(ready.size()); }
    const float* frames(i64 layer, int64_t* count) const;
    i64 samples_needed(i64 layer, i64 frame) const;
    i64 bytes() const;

  private:
    // A block, with the frames that wait for their right context and the keys and values that later frames need.
    struct BlockState {
        Queue inputs, query, key, value, position_query;
        i64 received = 0, first_key = 0;  // input frames; the frame of the first key kept
    };

    void advance(const f32* samples, i64 count, bool is_last);
    i64 front_end(const f32* samples, i64 count, bool is_last, f32*& out);
    i64 positioned(const f32* x, i64 count, bool is_last, f32*& out);
    i64 block(size_t number, const f32* x, i64 count, bool is_last, f32*& out);
    void emit(i64 layer, const f32* x, i64 count);

    Session& session;
    const std::shared_ptr<const Model> model;
    const LogMelFrontEnd& log_mel;
    Queue samples, features, embedded;
    i64 mel_frames = 0, offset = 0, front_frames = 0, total = 0;
    std::vector<BlockState> blocks;
    std::vector<std::vector<float>> ready;  // the new frames of each hidden state
    bool is_finished = false;
};

}  // namespace superbit
