/* The decision of a packed model's head on a WAV file (16 kHz, mono, 16 bits), or the features of a model without a head:

       cc keyword.c -I../upstreams/packed/engine -L. -lsuperbit -o keyword
       ./keyword MODEL.safetensors SPEECH.wav

   `superbit pack --with-head` writes a model with a head. Each of its slots is one line: the chosen class. The features are
   the mean over all frames of the mean over all hidden states, one number a line. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "superbit.h"

static int fail(const char *what, const char *why) { return fprintf(stderr, "%s %s\n", what, why), 1; }

/* Read the samples of a WAV file; NULL if it is none that this program reads. */
static float *read_wav(const char *path, int64_t *count) {
    unsigned char head[12], part[8], format[16] = {0};
    int16_t *pcm = NULL;
    float *samples = NULL;
    FILE *file = fopen(path, "rb");
    if (file && fread(head, 1, 12, file) == 12 && !memcmp(head, "RIFF", 4) && !memcmp(head + 8, "WAVE", 4))
        while (fread(part, 1, 8, file) == 8) {
            uint32_t size = part[4] | part[5] << 8 | part[6] << 16 | (uint32_t)part[7] << 24;
            if (!memcmp(part, "data", 4)) {
                int is_known = format[0] == 1 && format[2] == 1 && (format[4] | format[5] << 8) == 16000 && format[14] == 16;
                if (is_known && (pcm = malloc(size)) != NULL) *count = (int64_t)fread(pcm, 2, size / 2, file);
                break;
            }
            if (!memcmp(part, "fmt ", 4) && size >= 16 && fread(format, 1, 16, file) == 16) size -= 16;
            if (fseek(file, (long)(size + (size & 1)), SEEK_CUR)) break;
        }
    if (pcm && *count > 0 && (samples = malloc(sizeof(float) * (size_t)*count)) != NULL)
        for (int64_t n = 0; n < *count; ++n) samples[n] = (float)pcm[n] / 32768.0f;
    if (file) fclose(file);
    free(pcm);
    return samples;
}

int main(int arguments, char **argument) {
    superbit_model *model;
    superbit_session *session;
    char message[500];
    int64_t count = 0;
    if (arguments != 3) return fail("usage:", "keyword MODEL.safetensors SPEECH.wav");
    if (superbit_open(argument[1], &model, message, sizeof message)) return fail(argument[1], message);
    float *samples = read_wav(argument[2], &count);
    if (samples == NULL) return fail(argument[2], "is not a WAV file of 16 kHz, mono, 16 bits");
    int layers = superbit_layers(model) + 1, dim = superbit_dim(model), slots = superbit_slots(model);
    int64_t frames = superbit_frames(model, count);
    int *choices = malloc(sizeof(int) * (size_t)(slots + 1));
    float *weights = malloc(sizeof(float) * (size_t)layers), *sum = malloc(sizeof(float) * (size_t)(frames * dim));
    if (!choices || !weights || !sum) return fail("memory", "ran out");
    for (int n = 0; n < layers; ++n) weights[n] = 1.0f / (float)layers;
    int status = superbit_session_open(model, 1, NULL, &session);
    if (!status && slots) status = superbit_decide(session, samples, count, NULL, choices);
    if (!status && !slots) status = superbit_weighted_sum(session, samples, count, weights, sum);
    if (status) return fail(argument[2], superbit_status_text(status));
    for (int n = 0; n < slots; ++n) printf("%s: %s\n", superbit_slot(model, n), superbit_class(model, n, choices[n]));
    for (int n = 0; slots == 0 && n < dim; ++n) {
        double feature = 0.0;
        for (int64_t frame = 0; frame < frames; ++frame) feature += sum[frame * dim + n] / (double)frames;
        printf("%.6g\n", feature);
    }
    superbit_session_close(session), superbit_close(model);
    return free(samples), free(choices), free(weights), free(sum), 0;
}
