/* The runtime of packed models: 16 kHz samples in, hidden states out. Plain C; it needs neither Python nor torch.

   A model is immutable: any number of sessions in any number of threads may use it, also after superbit_close. A session is
   used by one thread at a time. There is no global state. No function aborts or throws: each one that can fail returns a
   superbit_status, and what it was to write is then undefined. After an error a session can be used again. */

#ifndef SUPERBIT_H
#define SUPERBIT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define SUPERBIT_EXPORT __attribute__((visibility("default")))
#else
#define SUPERBIT_EXPORT
#endif

typedef struct superbit_model superbit_model;
typedef struct superbit_session superbit_session;
typedef struct superbit_stream superbit_stream;

typedef enum {
    SUPERBIT_OK = 0,
    SUPERBIT_NO_MEMORY = 1,
    SUPERBIT_NOT_A_NUMBER = 2, /* audio or scales overflowed on the way through the model */
    SUPERBIT_CANNOT_READ = 3,  /* the file does not exist or cannot be read to its end */
    SUPERBIT_INVALID_FILE = 4,
    SUPERBIT_INVALID_ARGUMENT = 5, /* such as no samples, too many layers, NaN among the samples, or a model without a head */
    SUPERBIT_NOT_STREAMABLE = 6,   /* attention or normalisation needs the whole utterance */
    SUPERBIT_FLUSHED = 7           /* the stream has ended */
} superbit_status;

/* Increases when a function changes. */
SUPERBIT_EXPORT int superbit_version(void);

/* A short English text. */
SUPERBIT_EXPORT const char *superbit_status_text(int status);

/* The levels of the kernel that this processor has, best first; "" after the last one. */
SUPERBIT_EXPORT const char *superbit_level(int number);

/* Read and validate a packed file. message: null, or where a sentence about an error is written, of at most `size` bytes. */
SUPERBIT_EXPORT int superbit_open(const char *path, superbit_model **model, char *message, size_t size);
/* The same for a file in memory, which is needed only during the call. */
SUPERBIT_EXPORT int superbit_open_memory(const void *data, size_t bytes, superbit_model **model, char *message, size_t size);
SUPERBIT_EXPORT void superbit_close(superbit_model *model);

SUPERBIT_EXPORT int superbit_layers(const superbit_model *model); /* blocks: there is one hidden state more */
SUPERBIT_EXPORT int superbit_dim(const superbit_model *model);
/* Frames of an utterance of `samples` samples. */
SUPERBIT_EXPORT int64_t superbit_frames(const superbit_model *model, int64_t samples);
/* The model's configuration, JSON. */
SUPERBIT_EXPORT const char *superbit_config(const superbit_model *model);

/* The trained head of a file that was packed with one. It chooses one class for each slot: intent classification has three
   slots, other tasks one. Without a head there are no slots. A number out of range has 0 classes, and the name is null. */
SUPERBIT_EXPORT int superbit_slots(const superbit_model *model);
SUPERBIT_EXPORT const char *superbit_slot(const superbit_model *model, int slot);
SUPERBIT_EXPORT int superbit_classes(const superbit_model *model, int slot);
SUPERBIT_EXPORT const char *superbit_class(const superbit_model *model, int slot, int number);

/* threads: 1 to 255, the caller's included; fewer are used if the system does not start as many. level: one of
   superbit_level, or null for the best one. */
SUPERBIT_EXPORT int superbit_session_open(const superbit_model *model, int threads, const char *level,
                                          superbit_session **session);
SUPERBIT_EXPORT void superbit_session_close(superbit_session *session);

/* Compute the hidden states 0 to `layers` of `samples` samples in [-1, 1]. states: (layers + 1, frames, dim). */
SUPERBIT_EXPORT int superbit_forward(superbit_session *session, const float *samples, int64_t count, int layers, float *states);
/* The same for several utterances, which the threads share. */
SUPERBIT_EXPORT int superbit_forward_batch(superbit_session *session, int64_t utterances, const float *const *samples,
                                           const int64_t *counts, int layers, float *const *states);
/* The sum of all hidden states times `weights` (layers + 1), (frames, dim). */
SUPERBIT_EXPORT int superbit_weighted_sum(superbit_session *session, const float *samples, int64_t count, const float *weights,
                                          float *sum);
/* The decision of the model's head. scores: one for each class of all slots in turn, before a softmax. choices: for each slot
   the number of the class with the highest score. One of both may be null. */
SUPERBIT_EXPORT int superbit_decide(superbit_session *session, const float *samples, int64_t count, float *scores, int *choices);
/* The two parts of superbit_forward: samples to (frames, dim), and from there to the hidden states. */
SUPERBIT_EXPORT int superbit_front_end(superbit_session *session, const float *samples, int64_t count, float *frames);
SUPERBIT_EXPORT int superbit_encode(superbit_session *session, const float *frames, int64_t count, int layers, float *states);

/* Hidden states of one utterance while its samples arrive. The session must outlive the stream, and must not be used by
   another thread during a call. */
SUPERBIT_EXPORT int superbit_stream_open(superbit_session *session, superbit_stream **stream);
SUPERBIT_EXPORT void superbit_stream_close(superbit_stream *stream);
/* Add samples; the frames that have become final wait in superbit_stream_frames until the next call.
   A call that fails after its arguments were checked ends the stream. */
SUPERBIT_EXPORT int superbit_stream_feed(superbit_stream *stream, const float *samples, int64_t count);
/* End the utterance: the remaining frames become final. */
SUPERBIT_EXPORT int superbit_stream_flush(superbit_stream *stream);
/* The new frames of hidden state `layer`, (*count, dim); null if the model has no such layer. */
SUPERBIT_EXPORT const float *superbit_stream_frames(const superbit_stream *stream, int layer, int64_t *count);
/* Samples after which a frame of a hidden state is final without a flush. */
SUPERBIT_EXPORT int64_t superbit_stream_samples_needed(const superbit_stream *stream, int layer, int64_t frame);
/* Bytes that the stream keeps between calls. */
SUPERBIT_EXPORT int64_t superbit_stream_bytes(const superbit_stream *stream);

/* For benchmarks: run `rounds` times the 1-bit product of 1000 rows, 768 -> 3072, with floats (what = 0) or bits (1) as
   outputs; or `rounds` rounds of XOR, popcount and addition on registers alone, 12 x 16 words a round (2, AVX-512). */
SUPERBIT_EXPORT int superbit_measure(const char *level, int what, int64_t rounds);

#ifdef __cplusplus
}
#endif

#endif
