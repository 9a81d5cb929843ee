#include "superbit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "../kernel/levels.h"
#include "model.h"
#include "stream.h"

using namespace superbit;

struct superbit_model {
    std::shared_ptr<const Model> model;
};
struct superbit_session {
    Session session;
};
struct superbit_stream {
    Stream stream;
};

namespace {

constexpr i64 MOST_SAMPLES = i64(1) << 36;  // 50 days: sizes in bytes do not overflow

void tell(const char* text, char* message, size_t size) {
    if (message == nullptr || size == 0) return;
    const size_t count = std::min(std::strlen(text), size - 1);
    std::memcpy(message, text, count);
    message[count] = '\0';
}

// Call work(), and return what it returns, or the status of the exception that it throws.
template <class Work>
int guarded(const Work& work) noexcept {
    try {
        return work();
    } catch (const NotANumber&) {
        return SUPERBIT_NOT_A_NUMBER;
    } catch (const Stream::NotStreamable&) {
        return SUPERBIT_NOT_STREAMABLE;
    } catch (const CannotRead&) {
        return SUPERBIT_CANNOT_READ;
    } catch (const InvalidFile&) {
        return SUPERBIT_INVALID_FILE;
    } catch (...) {  // std::bad_alloc, std::length_error
        return SUPERBIT_NO_MEMORY;
    }
}

template <class Open>
int open_model(const Open& open, superbit_model** model, char* message, size_t size) noexcept {
    tell("", message, size);
    if (model == nullptr) return SUPERBIT_INVALID_ARGUMENT;
    *model = nullptr;
    const int status = guarded([&] {
        try {
            const PackedFile file(open());
            *model = new superbit_model{std::make_shared<const Model>(file)};
#if defined(__GLIBC__)
            malloc_trim(0);  // what only loading needed, 9 MB at 12 x 768, goes back to the system
#endif
            return SUPERBIT_OK;
        } catch (const std::runtime_error& error) {
            tell(error.what(), message, size);
            throw;
        }
    });
    if (status == SUPERBIT_NO_MEMORY) tell("does not fit into the memory", message, size);
    return status;
}

bool is_audio(const float* samples, int64_t count) {
    if (samples == nullptr || count < 1 || count > MOST_SAMPLES) return false;
    const f32* x = samples;
    bool is_finite = true;
    for (int64_t n = 0; n < count; ++n) is_finite &= std::fabs(x[n]) <= 3.402823466e38f;
    return is_finite;
}

bool has_layer(const superbit_stream* stream, int layer) {
    return stream != nullptr && layer >= 0 && layer < stream->stream.states();
}

bool has_layers(const superbit_session* session, int layers) {
    return session != nullptr && layers >= 0 && layers <= session->session.model->layers();
}

const Slot* slot_of(const superbit_model* model, int slot) {
    return slot >= 0 && slot < superbit_slots(model) ? &model->model->head->slots[size_t(slot)] : nullptr;
}

}  // namespace

int superbit_version(void) { return 2; }

const char* superbit_status_text(int status) {
    static const char* const texts[] = {"done",
                                        "memory ran out",
                                        "NaN, which is no level of a quantizer: the samples must lie in [-1, 1]",
                                        "the file cannot be read",
                                        "the file is not a valid packed file",
                                        "an argument is not valid",
                                        "the model needs the whole utterance and cannot be streamed",
                                        "the stream has ended: it was flushed, or an earlier call failed"};
    return status >= 0 && status < int(sizeof texts / sizeof *texts) ? texts[status] : "unknown";
}

const char* superbit_level(int number) { return level_name(number); }

int superbit_open(const char* path, superbit_model** model, char* message, size_t size) {
    if (path == nullptr) return SUPERBIT_INVALID_ARGUMENT;
    return open_model([&] { return Source::file(path); }, model, message, size);
}

int superbit_open_memory(const void* data, size_t bytes, superbit_model** model, char* message, size_t size) {
    if (data == nullptr || bytes > size_t(INT64_MAX)) return SUPERBIT_INVALID_ARGUMENT;
    return open_model([&] { return Source::memory(data, int64_t(bytes)); }, model, message, size);
}

void superbit_close(superbit_model* model) { delete model; }

int superbit_layers(const superbit_model* model) { return model ? int(model->model->layers()) : 0; }
int superbit_dim(const superbit_model* model) { return model ? int(model->model->dim()) : 0; }
int64_t superbit_frames(const superbit_model* model, int64_t samples) {
    if (model == nullptr || samples < 1 || samples > MOST_SAMPLES) return 0;
    return model->model->front_end->frames(samples);
}
const char* superbit_config(const superbit_model* model) { return model ? model->model->config_text.c_str() : ""; }

int superbit_slots(const superbit_model* model) { return model && model->model->head ? int(model->model->head->slots.size()) : 0; }
const char* superbit_slot(const superbit_model* model, int slot) {
    const Slot* found = slot_of(model, slot);
    return found ? found->name.c_str() : nullptr;
}
int superbit_classes(const superbit_model* model, int slot) {
    const Slot* found = slot_of(model, slot);
    return found ? int(found->classes.size()) : 0;
}
const char* superbit_class(const superbit_model* model, int slot, int number) {
    if (number < 0 || number >= superbit_classes(model, slot)) return nullptr;
    return slot_of(model, slot)->classes[size_t(number)].c_str();
}

int superbit_session_open(const superbit_model* model, int threads, const char* level, superbit_session** session) {
    if (session == nullptr) return SUPERBIT_INVALID_ARGUMENT;
    *session = nullptr;
    Level found;
    if (model == nullptr || threads < 1 || threads > ThreadPool::MAX_THREADS || !find_level(level, found))
        return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        *session = new superbit_session{{model->model, threads, found}};
        return SUPERBIT_OK;
    });
}

void superbit_session_close(superbit_session* session) { delete session; }

int superbit_forward(superbit_session* session, const float* samples, int64_t count, int layers, float* states) {
    if (!has_layers(session, layers) || states == nullptr || !is_audio(samples, count)) return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        session->session.forward(samples, count, layers, states);
        return SUPERBIT_OK;
    });
}

int superbit_forward_batch(superbit_session* session, int64_t utterances, const float* const* samples, const int64_t* counts,
                           int layers, float* const* states) {
    if (!has_layers(session, layers) || utterances < 1 || utterances > INT32_MAX || !samples || !counts || !states)
        return SUPERBIT_INVALID_ARGUMENT;
    for (int64_t n = 0; n < utterances; ++n)
        if (states[n] == nullptr || !is_audio(samples[n], counts[n])) return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        session->session.forward(utterances, samples, counts, layers, states);
        return SUPERBIT_OK;
    });
}

int superbit_weighted_sum(superbit_session* session, const float* samples, int64_t count, const float* weights, float* sum) {
    if (session == nullptr || weights == nullptr || sum == nullptr || !is_audio(samples, count)) return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        session->session.weighted_sum(samples, count, weights, sum);
        return SUPERBIT_OK;
    });
}

int superbit_decide(superbit_session* session, const float* samples, int64_t count, float* scores, int* choices) {
    if (session == nullptr || !session->session.model->head || (scores == nullptr && choices == nullptr) ||
        !is_audio(samples, count))
        return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        const std::vector<Slot>& slots = session->session.model->head->slots;
        size_t classes = 0;
        for (const Slot& slot : slots) classes += slot.classes.size();
        std::vector<float> own(scores ? 0 : classes);
        float* from = scores ? scores : own.data();
        session->session.decide(samples, count, from);
        for (size_t n = 0; choices && n < slots.size(); from += slots[n++].classes.size())
            choices[n] = int(std::max_element(from, from + slots[n].classes.size()) - from);
        return SUPERBIT_OK;
    });
}

int superbit_front_end(superbit_session* session, const float* samples, int64_t count, float* frames) {
    if (session == nullptr || frames == nullptr || !is_audio(samples, count)) return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        session->session.front_end(samples, count, frames);
        return SUPERBIT_OK;
    });
}

int superbit_encode(superbit_session* session, const float* frames, int64_t count, int layers, float* states) {
    if (!has_layers(session, layers) || frames == nullptr || states == nullptr || count < 1 || count > MOST_SAMPLES)
        return SUPERBIT_INVALID_ARGUMENT;
    return guarded([&] {
        session->session.encode(frames, count, layers, states);
        return SUPERBIT_OK;
    });
}

int superbit_stream_open(superbit_session* session, superbit_stream** stream) {
    if (session == nullptr || stream == nullptr) return SUPERBIT_INVALID_ARGUMENT;
    *stream = nullptr;
    return guarded([&] {
        *stream = new superbit_stream{Stream(session->session)};
        return SUPERBIT_OK;
    });
}

void superbit_stream_close(superbit_stream* stream) { delete stream; }

int superbit_stream_feed(superbit_stream* stream, const float* samples, int64_t count) {
    if (stream == nullptr || count < 0 || (count > 0 && !is_audio(samples, count))) return SUPERBIT_INVALID_ARGUMENT;
    if (stream->stream.is_flushed()) return SUPERBIT_FLUSHED;
    return guarded([&] {
        stream->stream.feed(samples, count);
        return SUPERBIT_OK;
    });
}

int superbit_stream_flush(superbit_stream* stream) {
    if (stream == nullptr) return SUPERBIT_INVALID_ARGUMENT;
    if (stream->stream.is_flushed()) return SUPERBIT_FLUSHED;
    return guarded([&] {
        stream->stream.flush();
        return SUPERBIT_OK;
    });
}

const float* superbit_stream_frames(const superbit_stream* stream, int layer, int64_t* count) {
    int64_t none;
    if (!has_layer(stream, layer)) {
        if (count) *count = 0;
        return nullptr;
    }
    return stream->stream.frames(layer, count ? count : &none);
}

int64_t superbit_stream_samples_needed(const superbit_stream* stream, int layer, int64_t frame) {
    return has_layer(stream, layer) ? stream->stream.samples_needed(layer, frame) : 0;
}

int64_t superbit_stream_bytes(const superbit_stream* stream) { return stream ? stream->stream.bytes() : 0; }
