// Open every file of a list through the C interface, and run those that are valid. The list: the size of a file in eight bytes,
// the file, and so on. Each error must have a code and a sentence.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "engine/superbit.h"

int main(int count, char** names) {
    FILE* list = count > 1 ? std::fopen(names[1], "rb") : nullptr;
    if (!list) return 2;
    int files = 0, valid = 0;
    for (uint64_t size; std::fread(&size, 8, 1, list) == 1; ++files) {
        std::vector<char> data(size);
        if (std::fread(data.data(), 1, size, list) != size) return 2;
        char message[300];
        superbit_model* model = nullptr;
        const int status = superbit_open_memory(data.data(), data.size(), &model, message, sizeof message);
        if (status != SUPERBIT_OK) {
            if (status != SUPERBIT_INVALID_FILE || model != nullptr || std::strlen(message) < 10) {
                std::printf("file %d: status %d, %s\n", files, status, message);
                return 1;
            }
            continue;
        }
        ++valid;
        std::vector<float> samples(1600, 0.1f);
        std::vector<float> states(size_t(superbit_layers(model) + 1) * size_t(superbit_frames(model, 1600)) * size_t(superbit_dim(model)));
        superbit_session* session = nullptr;
        if (superbit_session_open(model, 1, nullptr, &session) != SUPERBIT_OK) return 1;
        const int done = superbit_forward(session, samples.data(), 1600, superbit_layers(model), states.data());
        if (done != SUPERBIT_OK && done != SUPERBIT_NOT_A_NUMBER) return 1;
        std::vector<int> choices(size_t(superbit_slots(model)) + 1);
        const int decided = superbit_decide(session, samples.data(), 1600, nullptr, choices.data());
        if (decided != (superbit_slots(model) ? done : SUPERBIT_INVALID_ARGUMENT)) return 1;
        for (int slot = 0; slot < superbit_slots(model); ++slot)
            if (!superbit_class(model, slot, choices[size_t(slot)])) return 1;
        superbit_session_close(session);
        superbit_close(model);
    }
    std::fclose(list);
    std::printf("%d files, %d valid\n", files, valid);
    return valid > 0 ? 0 : 1;
}
