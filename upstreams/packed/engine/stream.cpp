#include "stream.h"

#include <algorithm>

namespace superbit {
namespace {

constexpr i64 MAX_CHUNK = 16'000;  // samples: longer chunks are split, so that they take no more memory
// Keys are dropped by whole words of bits: the kernel then adds the same lanes as for a whole utterance.
constexpr i64 ALIGNMENT = 32;
constexpr i64 WINDOW = SpectrumTables::WINDOW, HOP = SpectrumTables::HOP;

const LogMelFrontEnd& streamable(const Model& model) {
    const LogMelFrontEnd* front_end = dynamic_cast<const LogMelFrontEnd*>(model.front_end.get());
    if (front_end == nullptr || model.config.encoder.kind != "sparseformer" || model.config.front_end.normalisation == "utterance")
        throw Stream::NotStreamable();
    return *front_end;
}

}  // namespace

Stream::Stream(Session& of)
    : session(of), model(of.model), log_mel(streamable(*model)), samples(sizeof(float)), features(log_mel.mels * 4),
      embedded(model->dim() * 4), ready(size_t(model->layers() + 1)) {
    if (model->positions) embedded.add_zeros(model->positions->before);
    for (const Block& block : model->blocks) {
        const i64 dim = model->dim() * 4, row = block.attention.row_bytes();
        blocks.push_back({Queue(dim), Queue(row), Queue(row), Queue(row), Queue(dim)});
    }
}

const float* Stream::frames(i64 layer, int64_t* count) const {
    const std::vector<float>& rows = ready[size_t(layer)];
    *count = i64(rows.size()) / model->dim();
    return rows.data();
}

i64 Stream::samples_needed(i64 layer, i64 frame) const {
    const i64 after = model->positions ? model->positions->after : 0;
    const i64 last = frame + after + layer * model->config.encoder.radius;
    return (last * log_mel.subsampling + std::max(log_mel.after, log_mel.subsampling - 1)) * HOP + WINDOW;
}

i64 Stream::bytes() const {
    i64 sum = samples.bytes() + features.bytes() + embedded.bytes();
    for (const BlockState& one : blocks)
        sum += one.inputs.bytes() + one.query.bytes() + one.key.bytes() + one.value.bytes() + one.position_query.bytes();
    return sum;
}

void Stream::feed(const f32* given, i64 count) {
    for (auto& rows : ready) rows.clear();
    is_finished = true;  // if an exception leaves this: some parts of the model have then taken the samples, others not
    for (i64 at = 0; at < count; at += MAX_CHUNK) advance(given + at, std::min(MAX_CHUNK, count - at), false);
    is_finished = false;
}

void Stream::flush() {
    for (auto& rows : ready) rows.clear();
    is_finished = true;
    advance(nullptr, 0, true);
}

void Stream::advance(const f32* given, i64 count, bool is_last) {
    const Context context = session.context();
    Scratch::Scope scope(context.scratch);
    f32 *x = nullptr, *y = nullptr;
    i64 frames = front_end(given, count, is_last, x);
    total += frames;
    model->prepare(context, std::max<i64>(1, total), session.tables);
    frames = positioned(x, frames, is_last, y);
    emit(0, y, frames);
    for (size_t n = 0; n < blocks.size(); ++n) {
        x = y;
        frames = block(n, x, frames, is_last, y);
        emit(i64(n) + 1, y, frames);
    }
}

void Stream::emit(i64 layer, const f32* x, i64 count) {
    if (count == 0) return;
    std::vector<float>& rows = ready[size_t(layer)];
    const size_t before = rows.size();
    rows.resize(before + size_t(count * model->dim()));
    model->write(session.context(), layer, x, count, rows.data() + before);
}

// Add samples; return how many frames of the front-end have become final, and the frames.
i64 Stream::front_end(const f32* given, i64 count, bool is_last, f32*& out) {
    const Context context = session.context();
    if (count) samples.add(given, count);
    const i64 available = samples.count(), sub = log_mel.subsampling;
    const i64 mels = is_last ? (available + HOP - 1) / HOP : std::max<i64>(0, (available - WINDOW + HOP) / HOP);
    if (mels > 0) {
        f32* rows = context.scratch.take<float>(mels * log_mel.mels);
        log_mel.log_mel(context, samples.at<f32>(0), available, mels, rows);
        features.add(rows, mels);
        samples.drop(std::min(available, mels * HOP));
        mel_frames += mels;
    }
    const i64 ahead = std::max(log_mel.after, sub - 1);
    const i64 end = is_last ? (mel_frames + sub - 1) / sub : mel_frames > ahead ? (mel_frames - ahead - 1) / sub + 1 : 0;
    if (end <= front_frames) return 0;
    out = context.scratch.take<float>((end - front_frames) * model->dim());
    log_mel.part(context, features.at<f32>(0), offset, features.count(), front_frames, end, out);
    const i64 frames = end - front_frames, kept = std::max<i64>(0, end - log_mel.before) * sub;
    front_frames = end;
    if (kept > offset) {
        features.drop(std::min(features.count(), kept - offset));
        offset = kept;
    }
    return frames;
}

// Add frames; return those whose right context is complete, with positions and the encoder's first norm.
i64 Stream::positioned(const f32* x, i64 count, bool is_last, f32*& out) {
    const Context context = session.context();
    const i64 before = model->positions ? model->positions->before : 0, after = model->positions ? model->positions->after : 0;
    if (count) embedded.add(x, count);
    if (is_last) embedded.add_zeros(after);
    const i64 frames = std::max<i64>(0, embedded.count() - before - after);
    if (frames == 0) return 0;
    out = context.scratch.take<float>(frames * model->dim());
    model->enter(context, embedded.at<f32>(0), frames, out);
    embedded.drop(frames);
    return frames;
}

// Add frames of the block's input; return how many frames of its output have become final, and the frames.
i64 Stream::block(size_t number, const f32* x, i64 count, bool is_last, f32*& out) {
    const Context context = session.context();
    const Block& block = model->blocks[number];
    BlockState& state = blocks[number];
    const i64 radius = block.attention.radius, row = block.attention.row_bytes(), dim = model->dim();
    if (count) {
        Scratch::Scope scope(context.scratch);
        Operands operands;
        for (char** one : {&operands.query, &operands.key, &operands.value}) *one = context.scratch.take<char>(count * row);
        if (block.attention.is_relative()) operands.position_query = context.scratch.take<float>(count * dim);
        block.operands(context, x, count, state.received, session.tables, operands);
        state.received += count;
        state.inputs.add(x, count);
        state.query.add(operands.query, count), state.key.add(operands.key, count), state.value.add(operands.value, count);
        if (block.attention.is_relative()) state.position_query.add(operands.position_query, count);
    }
    const i64 waiting = state.inputs.count(), frames = is_last ? waiting : std::max<i64>(0, waiting - radius);
    if (frames == 0) return 0;
    const i64 done = state.received - waiting;
    out = context.scratch.take<float>(frames * dim);
    {
        Scratch::Scope scope(context.scratch);
        f32* mixed = context.scratch.take<float>(frames * dim);
        const Operands operands{state.query.at(0), state.key.at(0), state.value.at(0),
                                block.attention.is_relative() ? state.position_query.at<f32>(0) : nullptr};
        block.attention.run(context, operands, frames, state.key.count(), done - state.first_key, session.tables, number, mixed);
        block.finish(context, state.inputs.at<f32>(0), mixed, frames, out);
    }
    const i64 first_key = std::max<i64>(0, done + frames - radius) / ALIGNMENT * ALIGNMENT;
    state.inputs.drop(frames), state.query.drop(frames);
    if (block.attention.is_relative()) state.position_query.drop(frames);
    const i64 dropped = std::min(first_key - state.first_key, state.key.count());
    state.key.drop(dropped), state.value.drop(dropped);
    state.first_key += dropped;
    return frames;
}

}  // namespace superbit
