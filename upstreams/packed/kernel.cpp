// Inference on packed bits on the CPU, behind a plain C interface that Python calls through ctypes.
//
// Every function exists at three levels: AVX-512 (with VPOPCNTDQ and VNNI), AVX2 and scalar. All are in this one object;
// the caller names the level, which superbit_best_level() bounds. What a function computes is an operation: a struct with
// its arguments and a body `run<level>(begin, end)` over items that are independent of one another. `parallel` hands
// ranges of items to threads, and `run_avx512`, `run_avx2` and `run_scalar` compile the same body for each instruction
// set. The few inner loops that a compiler does not vectorize well by itself are written with intrinsics.
//
// Bits are 32 to a word, the lowest first; 1 stands for +1, 0 for -1 (or for 0 where the values are {0, alpha}). The
// words of a row are followed by zeros. The weights of a layer are in blocks of 16 outputs: [block][word][output].
// A result never depends on how many rows are computed at once, nor on the number of threads: streaming relies on it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <type_traits>
#include <unistd.h>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define X86 1
#define SCALAR __attribute__((target("popcnt")))
#define AVX2 __attribute__((target("avx2,fma,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512vnni,avx2,fma,popcnt")))
#else
#define X86 0
#define SCALAR
#endif
#define ALWAYS __attribute__((always_inline))
#define INLINE ALWAYS inline
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using i64 = int64_t;
// A caller's pointers may have any alignment.
using f32 = float __attribute__((aligned(1)));
using u32 = uint32_t __attribute__((aligned(1), may_alias));
using i32 = int32_t __attribute__((aligned(1)));

enum Level { scalar = 0, avx2 = 1, avx512 = 2 };

constexpr i64 LANES = 16;  // outputs in a block of weights

// ---------------------------------------------------------------------------------------------- threads

// Threads that wait for work. They are started when they are first wanted, and again in a forked child, which has none.
// Whoever is free takes the next part, the caller too, so that a thread that wakes up late costs nothing.
class Workers {
  public:
    static constexpr int MOST_PARTS = 4095, MOST_THREADS = 255;  // that a ticket can tell

    // Calls work(0) ... work(parts - 1), in up to `threads` threads at a time, and returns when all are done.
    static void run(int threads, int parts, const std::function<void(int)>& work) {
        static std::mutex creating;
        static Workers* workers = nullptr;
        {
            std::lock_guard<std::mutex> lock(creating);
            // Those of the parent are left alone: their threads are not here, and neither is what holds their locks.
            if (workers == nullptr || workers->process != getpid()) workers = new Workers();
        }
        std::unique_lock<std::mutex> alone(workers->busy, std::try_to_lock);
        if (!alone.owns_lock()) {  // another thread of the caller's computes: waiting for it would take longer
            for (int part = 0; part < parts; ++part) work(part);
            return;
        }
        workers->run_alone(threads, parts, work);
    }

  private:
    // What is to be done, in one word, so that whoever takes a part knows that it is one of this task: the number of the
    // task, how many threads may work on it, the parts there are and those that are taken.
    struct Ticket {
        uint64_t task : 32, threads : 8, parts : 12, taken : 12;
    };
    static constexpr int SPINS = 4000;  // some 50 us, about as long as it takes to wake a thread up

    static void pause() {
#if X86
        _mm_pause();
#endif
    }

    void run_alone(int threads, int parts, const std::function<void(int)>& work) {
        while (started < threads - 1) std::thread(&Workers::serve, this, ++started).detach();
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

    void take_parts() {
        for (Ticket now = ticket; now.taken < now.parts; now = ticket) {
            Ticket next = now;
            ++next.taken;
            if (!ticket.compare_exchange_weak(now, next)) continue;
            (*task)(int(now.taken));  // it is the ticket's as long as a part of that is unfinished
            --unfinished;
        }
    }

    void serve(int number) {
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

    const pid_t process = getpid();
    std::mutex busy, guard;
    std::condition_variable begin;
    const std::function<void(int)>* task = nullptr;
    std::atomic<Ticket> ticket{Ticket{0, 0, 0, 0}};
    std::atomic<int> unfinished{0}, asleep{0};
    int started = 0;
};

// ---------------------------------------------------------------------------------------------- levels

template <class Operation>
SCALAR void run_scalar(const Operation& operation, i64 begin, i64 end) {
    operation.template run<scalar>(begin, end);
}

#if X86
template <class Operation>
AVX2 void run_avx2(const Operation& operation, i64 begin, i64 end) {
    operation.template run<avx2>(begin, end);
}

template <class Operation>
AVX512 void run_avx512(const Operation& operation, i64 begin, i64 end) {
    operation.template run<avx512>(begin, end);
}
#endif

// Runs the operation over `items`, a thread's share being a multiple of `grain` of them.
template <class Operation>
void parallel(int level, int threads, i64 items, i64 grain, const Operation& operation) {
    auto range = [&](i64 begin, i64 end) {
#if X86
        if (level == avx512) return run_avx512(operation, begin, end);
        if (level == avx2) return run_avx2(operation, begin, end);
#endif
        run_scalar(operation, begin, end);
    };
    i64 grains = (items + grain - 1) / grain;
    i64 parts = threads == 1 ? 1 : std::min<i64>({2 * i64(threads), grains, Workers::MOST_PARTS});
    if (parts <= 1) return range(0, items);
    Workers::run(std::min(threads, Workers::MOST_THREADS), int(parts), [&](int part) {
        i64 begin = grains * part / parts * grain, end = std::min(items, grains * (part + 1) / parts * grain);
        range(begin, end);
    });
}

// ---------------------------------------------------------------------------------------------- floats to bits

// bit k = values[k] + shift[k] >= threshold, or > where `strict`; shift may be null. Fills (columns + 31) / 32 words.
using Pack = void (*)(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits);

SCALAR void pack_scalar(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
    for (i64 k = 0; k < columns; k += 32) {
        uint32_t word = 0;
        for (i64 j = 0; j < std::min<i64>(32, columns - k); ++j) {
            float value = shift ? values[k + j] + shift[k + j] : values[k + j];
            word |= uint32_t(strict ? value > threshold : value >= threshold) << j;
        }
        bits[k / 32] = word;
    }
}

#if X86
AVX2 void pack_avx2(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
    __m256 bound = _mm256_set1_ps(threshold);
    i64 whole = columns / 32 * 32;
    for (i64 k = 0; k < whole; k += 32) {
        uint32_t word = 0;
        for (int j = 0; j < 32; j += 8) {
            __m256 value = _mm256_loadu_ps((const float*)(values + k + j));
            if (shift) value = _mm256_add_ps(value, _mm256_loadu_ps((const float*)(shift + k + j)));
            __m256 above = strict ? _mm256_cmp_ps(value, bound, _CMP_GT_OQ) : _mm256_cmp_ps(value, bound, _CMP_GE_OQ);
            word |= uint32_t(_mm256_movemask_ps(above)) << j;
        }
        bits[k / 32] = word;
    }
    if (whole < columns)
        pack_scalar(values + whole, columns - whole, shift ? shift + whole : nullptr, threshold, strict, bits + whole / 32);
}

AVX512 void pack_avx512(const f32* values, i64 columns, const f32* shift, float threshold, bool strict, u32* bits) {
    __m512 bound = _mm512_set1_ps(threshold);
    auto half = [&](i64 k) AVX512 -> uint32_t {
        if (k >= columns) return 0;
        __mmask16 there = columns - k >= 16 ? 0xffff : __mmask16((1u << (columns - k)) - 1);
        __m512 value = _mm512_maskz_loadu_ps(there, values + k);
        if (shift) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(there, shift + k));
        return strict ? _mm512_mask_cmp_ps_mask(there, value, bound, _CMP_GT_OQ)
                      : _mm512_mask_cmp_ps_mask(there, value, bound, _CMP_GE_OQ);
    };
    for (i64 k = 0; k < columns; k += 32) bits[k / 32] = half(k) | half(k + 16) << 16;
}
#endif

template <Level level>
INLINE Pack pack() {
#if X86
    if (level == avx512) return pack_avx512;
    if (level == avx2) return pack_avx2;
#endif
    return pack_scalar;
}

struct Binarize {
    const f32* values;
    i64 columns;
    const f32* shift;
    float threshold;
    bool strict;
    u32* bits;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        for (i64 row = begin; row < end; ++row)
            pack<level>()(values + row * columns, columns, shift, threshold, strict, bits + row * ((columns + 31) / 32));
    }
};

// ---------------------------------------------------------------------------------------------- counting differing bits

// counts[row][output] = differing bits of a row's words and an output's, for `rows` rows and `blocks` blocks of outputs.
#if X86
template <int rows, int blocks>
AVX512 void count_avx512(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
    __m512i sum[rows][blocks];
    for (int row = 0; row < rows; ++row)
        for (int block = 0; block < blocks; ++block) sum[row][block] = _mm512_setzero_si512();
    for (i64 k = 0; k < words; ++k) {
        __m512i weight[blocks];
        for (int block = 0; block < blocks; ++block)
            weight[block] = _mm512_loadu_si512(weights + (block * words + k) * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < rows; ++row) {
            __m512i word = _mm512_set1_epi32(int(bits[row * words + k]));
#pragma GCC unroll 4
            for (int block = 0; block < blocks; ++block) {
                __m512i count = _mm512_popcnt_epi32(_mm512_xor_si512(word, weight[block]));
                sum[row][block] = _mm512_add_epi32(sum[row][block], count);
            }
        }
    }
    for (int row = 0; row < rows; ++row)
        for (int block = 0; block < blocks; ++block)
            _mm512_storeu_si512(counts + (row * blocks + block) * LANES, sum[row][block]);
}

// Bytes count up to 8 differing bits a word and are added up into 32 bits before they can overflow.
template <int rows, int blocks>
AVX2 void count_avx2(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2,
                                           3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15), one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
    for (int block = 0; block < blocks; ++block)
        for (int half = 0; half < 2; ++half) {
            const u32* column = weights + block * words * LANES + half * 8;
            __m256i total[rows];
            for (int row = 0; row < rows; ++row) total[row] = _mm256_setzero_si256();
            for (i64 from = 0; from < words; from += 31) {
                __m256i sum[rows];
                for (int row = 0; row < rows; ++row) sum[row] = _mm256_setzero_si256();
                for (i64 k = from; k < std::min(words, from + 31); ++k) {
                    __m256i weight = _mm256_loadu_si256((const __m256i*)(column + k * LANES));
#pragma GCC unroll 4
                    for (int row = 0; row < rows; ++row) {
                        __m256i x = _mm256_xor_si256(_mm256_set1_epi32(int(bits[row * words + k])), weight);
                        __m256i right = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
                        __m256i left = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(x, 4), low));
                        sum[row] = _mm256_add_epi8(sum[row], _mm256_add_epi8(left, right));
                    }
                }
                for (int row = 0; row < rows; ++row)
                    total[row] = _mm256_add_epi32(total[row],
                                                  _mm256_madd_epi16(_mm256_maddubs_epi16(sum[row], one8), one16));
            }
            for (int row = 0; row < rows; ++row)
                _mm256_storeu_si256((__m256i*)(counts + (row * blocks + block) * LANES + half * 8), total[row]);
        }
}
#endif

template <int rows, int blocks>
SCALAR void count_scalar(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
    for (int block = 0; block < blocks; ++block)
        for (int lane = 0; lane < LANES; ++lane) {
            int32_t sum[rows] = {};
            for (i64 k = 0; k < words; ++k) {
                uint32_t weight = weights[(block * words + k) * LANES + lane];
#pragma GCC unroll 4
                for (int row = 0; row < rows; ++row) sum[row] += __builtin_popcount(bits[row * words + k] ^ weight);
            }
            for (int row = 0; row < rows; ++row) counts[(row * blocks + block) * LANES + lane] = sum[row];
        }
}

template <Level level, int rows, int blocks>
INLINE void count(const u32* bits, i64 words, const u32* weights, int32_t* counts) {
#if X86
    if (level == avx512) return count_avx512<rows, blocks>(bits, words, weights, counts);
    if (level == avx2) return count_avx2<rows, blocks>(bits, words, weights, counts);
#endif
    count_scalar<rows, blocks>(bits, words, weights, counts);
}

// What a count becomes: scale[output] * (offset[output] + factor * count) + bias[output], all of them padded to blocks.
struct Affine {
    const i32* offset;
    const f32* scale;
    const f32* bias;
    int32_t factor;

    // Of `outputs` outputs from one on. A whole tile's number is known to the compiler, which unrolls it.
    template <int whole>
    INLINE void finish(const int32_t* counts, i64 output, i64 outputs, f32* to) const {
        if (outputs >= whole)
            each(counts, output, whole, to);
        else
            each(counts, output, outputs, to);
    }

    INLINE void each(const int32_t* __restrict counts, i64 output, i64 outputs, f32* __restrict to) const {
        const i32* __restrict offsets = offset + output;
        const f32 *__restrict scales = scale + output, *__restrict biases = bias + output;
        const int32_t times = factor;
        for (i64 j = 0; j < outputs; ++j) to[j] = scales[j] * float(offsets[j] + times * counts[j]) + biases[j];
    }
};

struct BinaryProduct {
    const u32* bits;
    i64 words;
    const u32* weights;
    i64 outputs, blocks;

    // Weights of a group of blocks stay in the first-level cache while all rows pass by.
    template <Level level, class Finish>
    INLINE void each(i64 begin, i64 end, const Finish& finish) const {
        for (i64 block = 0; block < blocks;) {
            if (blocks - block >= 4) {
                column<level, 4>(block, begin, end, finish);
                block += 4;
            } else {
                column<level, 1>(block, begin, end, finish);
                block += 1;
            }
        }
    }

    template <Level level, int wide, class Finish>
    INLINE void column(i64 block, i64 begin, i64 end, const Finish& finish) const {
        constexpr int tall = level == avx512 ? 6 : 4;
        alignas(64) int32_t counts[tall * wide * LANES];
        const u32* weight = weights + block * words * LANES;
        i64 row = begin;
        for (; row + tall <= end; row += tall) {
            count<level, tall, wide>(bits + row * words, words, weight, counts);
            for (int r = 0; r < tall; ++r) finish(row + r, block, wide, counts + r * wide * LANES);
        }
        for (; row < end; ++row) {
            count<level, 1, wide>(bits + row * words, words, weight, counts);
            finish(row, block, wide, counts);
        }
    }
};

struct BinaryToFloats {
    BinaryProduct product;
    Affine affine;
    f32* out;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        product.each<level>(begin, end, [&](i64 row, i64 block, int wide, const int32_t* counts) ALWAYS {
            i64 output = block * LANES, there = std::min<i64>(wide * LANES, product.outputs - output);
            f32* to = out + row * product.outputs + output;
            affine.finish<4 * LANES>(counts, output, there, to);
        });
    }
};

// bit = count < limit[output]: a linear layer, ReLU (or none) and the next layer's binarization in one comparison.
struct BinaryToBits {
    BinaryProduct product;
    const i32* limit;
    u32* out;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        i64 out_words = (product.blocks + 1) / 2;
        if (product.blocks % 2)
            for (i64 row = begin; row < end; ++row) out[row * out_words + out_words - 1] = 0;
        product.each<level>(begin, end, [&](i64 row, i64 block, int wide, const int32_t* counts) ALWAYS {
            char* to = (char*)(out + row * out_words) + block * 2;
            for (int b = 0; b < wide; ++b) {
                uint16_t half = below<level>(counts + b * LANES, limit + (block + b) * LANES);
                std::memcpy(to + b * 2, &half, 2);
            }
        });
    }

#if X86
    AVX512 static uint16_t below_avx512(const int32_t* counts, const i32* limits) {
        return _mm512_cmplt_epi32_mask(_mm512_loadu_si512(counts), _mm512_loadu_si512(limits));
    }
#endif

    template <Level level>
    INLINE static uint16_t below(const int32_t* counts, const i32* limits) {
#if X86
        if (level == avx512) return below_avx512(counts, limits);
#endif
        uint16_t half = 0;
        for (int lane = 0; lane < LANES; ++lane) half |= uint16_t(counts[lane] < limits[lane]) << lane;
        return half;
    }
};

// ---------------------------------------------------------------------------------------------- 1-bit attention

// As many floats as a register holds.
template <Level>
struct Register {
    using type = float __attribute__((vector_size(16), aligned(1), may_alias));
};
template <>
struct Register<avx2> {
    using type = float __attribute__((vector_size(32), aligned(1), may_alias));
};
template <>
struct Register<avx512> {
    using type = float __attribute__((vector_size(64), aligned(1), may_alias));
};

// Vectorized where there is an instruction for it; by adding neighbours where there is none.
template <Level level>
INLINE uint32_t ones(uint32_t x) {
    if (level != avx2) return uint32_t(__builtin_popcount(x));
    x -= (x >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    return (((x + (x >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24;
}

// exp(x) for x <= 0, within 2 units in the last place, as straight arithmetic that loops over it can be vectorized.
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = (int32_t(whole) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

// erf(x) within 2e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26), as straight arithmetic too.
INLINE float error_function(float x) {
    float size = std::fabs(x), t = 1.0f / (1.0f + 0.3275911f * size);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return std::copysign(1.0f - p * t * exponential(-size * size), x);
}

// Which keys a query sees, and what is added to its scores.
struct Window {
    i64 queries, keys, heads, dim;
    const int64_t* lengths;  // keys of each utterance that are not padding
    i64 first;               // the key that stands where the first query stands
    i64 radius;              // frames seen to either side; negative: all
    const f32* relative;     // (batch, heads, queries, 2 reach + 1) added to the scores by offset, or null
    i64 reach;

    // Keys from low up to high; none where a padded frame sees nothing.
    INLINE void range(i64 batch, i64 frame, i64& low, i64& high) const {
        low = 0;
        high = std::min<i64>(lengths[batch], keys);
        if (radius < 0) return;
        low = std::max<i64>(low, first + frame - radius);
        high = std::min(high, first + frame + radius + 1);
    }

    // score -> exp(score - highest) of the keys from low up to high, where score[0] is that of key `from`, and 0 up to
    // `until`; returns their sum.
    template <Level level>
    INLINE float exponentiate(i64 item, i64 frame, i64 low, i64 high, i64 from, i64 until, float* score) const {
        if (relative) {
            const f32* bias = relative + (item * queries + frame) * (2 * reach + 1);
            for (i64 j = low; j < high; ++j) score[j - from] += bias[j - first - frame + reach];
        }
        const float nothing = -std::numeric_limits<float>::infinity();
        std::fill(score, score + (low - from), nothing);
        std::fill(score + (high - from), score + (until - from), nothing);
        using Vector = typename Register<level>::type;
        constexpr int length = sizeof(Vector) / sizeof(float);
        Vector highest_lanes = *(const Vector*)score;
        for (i64 j = length; j < until - from; j += length) {
            Vector next = *(const Vector*)(score + j);
            highest_lanes = next > highest_lanes ? next : highest_lanes;
        }
        float highest = highest_lanes[0], lane_sum[LANES] = {}, sum = 0.0f;
        for (int lane = 1; lane < length; ++lane) highest = std::max(highest, highest_lanes[lane]);
        for (i64 j = 0; j < until - from; j += LANES)
            for (int lane = 0; lane < LANES; ++lane) {
                score[j + lane] = exponential(score[j + lane] - highest);
                lane_sum[lane] += score[j + lane];
            }
        for (int lane = 0; lane < LANES; ++lane) sum += lane_sum[lane];
        return sum;
    }
};

// Self-attention with both products on bits. An item is one head of one utterance.
struct BinaryAttention {
    const u32 *query, *key, *value;  // (batch, queries or keys, heads, words of a head)
    Window window;
    float score_scale;  // of a score's whole number: alpha of query and key over sqrt(dim)
    float threshold;    // of a probability to count as 1: half its alpha
    float value_scale;  // alpha of probability and value
    f32* out;           // (batch, queries, heads, dim)

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        const i64 queries = window.queries, keys = window.keys, heads = window.heads, dim = window.dim;
        const i64 words = (dim + 31) / 32, wide = words * 32, key_words = (keys + 31) / 32, padded = key_words * 32;
        std::vector<uint32_t> k(words * padded), v(key_words * wide), chosen(key_words);
        std::vector<float> score(padded);
        std::vector<uint32_t> sum(wide), count(padded);
        std::vector<float> weights(std::max<i64>(64, dim + 1));  // exp(score - highest) by how many bits more differ
        for (i64 n = 0; n <= dim; ++n) weights[n] = exponential(-2.0f * score_scale * float(n));
        for (i64 item = begin; item < end; ++item) {
            i64 batch = item / heads, head = item % heads;
            auto row = [&](const u32* x, i64 frames, i64 frame) ALWAYS -> const u32* {
                return x + ((batch * frames + frame) * heads + head) * words;
            };
            for (i64 frame = 0; frame < keys; ++frame)  // by word, so that a vector's lanes are keys
                for (i64 w = 0; w < words; ++w) k[w * padded + frame] = row(key, keys, frame)[w];
            transpose(row(value, keys, 0), heads * words, words, v.data());
            for (i64 frame = 0; frame < queries; ++frame) {
                i64 low, high;
                window.range(batch, frame, low, high);
                f32* to = out + ((batch * queries + frame) * heads + head) * dim;
                if (low >= high) {  // a padded frame that sees nothing
                    for (i64 c = 0; c < dim; ++c) to[c] = 0.0f;
                    continue;
                }
                i64 from = low / 32 * 32, until = std::min(padded, (high + 31) / 32 * 32);
                const u32* q = row(query, queries, frame);
#if X86
                if (level == avx512 && !window.relative) {
                    choose_avx512(q, k.data(), padded, words, low, high, count.data(), weights.data(), chosen.data());
                    add_values_avx512(chosen.data(), v.data(), wide, from / 32, until / 32, to);
                    continue;
                }
#endif
                scores<level>(q, k.data(), padded, words, from, until, count.data(), score.data());
                float total = window.exponentiate<level>(item, frame, low, high, from, until, score.data() + from);
                pack<level>()(score.data() + from, until - from, nullptr, threshold * total, true, &chosen[from / 32]);
                add_values<level>(chosen.data(), v.data(), wide, from / 32, until / 32, sum.data(), to);
            }
        }
    }

    // Bit `frame` of v[frame / 32][channel] = bit `channel` of the value at that frame.
    INLINE void transpose(const u32* values, i64 stride, i64 words, uint32_t* v) const {
        std::fill(v, v + (window.keys + 31) / 32 * words * 32, 0u);
        for (i64 frame = 0; frame < window.keys; ++frame)
            for (i64 w = 0; w < words; ++w) {
                uint32_t word = values[frame * stride + w];
                uint32_t* to = v + (frame / 32 * words + w) * 32;
                for (int c = 0; c < 32; ++c) to[c] |= (word >> c & 1u) << (frame % 32);
            }
    }

#if X86
    // What `scores`, `exponentiate` and `pack` do one after the other, in registers: bit j of `chosen` is set where key j
    // has a probability above the threshold. Without relative scores the highest score is the one of fewest differences,
    // and a key's weight exp(score - highest) one of few: of weights[n] with n more differences.
    AVX512 void choose_avx512(const u32* q, const uint32_t* k, i64 padded, i64 words, i64 low, i64 high, uint32_t* count,
                              const float* weights, uint32_t* chosen) const {
        const i64 from = low / 32 * 32, until = (high + 31) / 32 * 32;
        auto seen = [&](i64 j) AVX512 -> __mmask16 {  // of 16 keys from j on
            uint32_t mask = 0xffff;
            if (j < low) mask &= low - j < 16 ? 0xffffu << (low - j) : 0;
            if (j + 16 > high) mask &= j < high ? (1u << (high - j)) - 1 : 0;
            return __mmask16(mask);
        };
        __m512i fewest = _mm512_set1_epi32(int32_t(window.dim));
        for (i64 j = from; j < until; j += 16) {
            __m512i sum = _mm512_setzero_si512();
            for (i64 w = 0; w < words; ++w) {
                __m512i differing = _mm512_xor_si512(_mm512_set1_epi32(int(q[w])), _mm512_loadu_si512(k + w * padded + j));
                sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(differing));
            }
            fewest = _mm512_mask_min_epi32(fewest, seen(j), fewest, sum);
            _mm512_storeu_si512(count + j, sum);
        }
        const int32_t least = _mm512_reduce_min_epi32(fewest);
        const __m512 table[4] = {_mm512_loadu_ps(weights), _mm512_loadu_ps(weights + 16), _mm512_loadu_ps(weights + 32),
                                 _mm512_loadu_ps(weights + 48)};
        __m512 sum = _mm512_setzero_ps();
        for (i64 j = from; j < until; j += 16) {
            __m512i more = _mm512_sub_epi32(_mm512_loadu_si512(count + j), _mm512_set1_epi32(least));
            __m512 e = _mm512_mask_blend_ps(_mm512_test_epi32_mask(more, _mm512_set1_epi32(32)),
                                            _mm512_permutex2var_ps(table[0], more, table[1]),
                                            _mm512_permutex2var_ps(table[2], more, table[3]));
            const __mmask16 beyond = _mm512_mask_cmpgt_epi32_mask(seen(j), more, _mm512_set1_epi32(63));
            if (beyond) e = _mm512_mask_i32gather_ps(e, beyond, more, weights, 4);
            sum = _mm512_mask_add_ps(sum, seen(j), sum, e);
        }
        const float bound = threshold * _mm512_reduce_add_ps(sum);
        int32_t limit = 0;  // fewer more differences than this: a weight above the bound
        for (int part = 0; part < 4; ++part)
            limit += __builtin_popcount(_mm512_cmp_ps_mask(table[part], _mm512_set1_ps(bound), _CMP_GT_OQ));
        while (limit >= 64 && limit <= window.dim && weights[limit] > bound) ++limit;
        for (i64 j = from; j < until; j += 32) {
            const __m512i most = _mm512_set1_epi32(least + limit);
            uint32_t right = _mm512_mask_cmplt_epi32_mask(seen(j), _mm512_loadu_si512(count + j), most);
            uint32_t left = _mm512_mask_cmplt_epi32_mask(seen(j + 16), _mm512_loadu_si512(count + j + 16), most);
            chosen[j / 32] = right | left << 16;
        }
    }

    AVX512 void add_values_avx512(const uint32_t* chosen, const uint32_t* v, i64 wide, i64 from, i64 until, f32* to) const {
        int32_t count = 0;
        for (i64 w = from; w < until; ++w) count += __builtin_popcount(chosen[w]);
        for (i64 c = 0; c < window.dim; c += 16) {
            __m512i sum = _mm512_setzero_si512();
            for (i64 w = from; w < until; ++w) {
                __m512i both = _mm512_and_si512(_mm512_set1_epi32(int(chosen[w])), _mm512_loadu_si512(v + w * wide + c));
                sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(both));
            }
            sum = _mm512_sub_epi32(_mm512_slli_epi32(sum, 1), _mm512_set1_epi32(count));
            i64 there = window.dim - c;
            _mm512_mask_storeu_ps(to + c, there >= 16 ? 0xffff : __mmask16((1u << there) - 1),
                                  _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(value_scale)));
        }
    }
#endif

    template <Level level>
    INLINE void scores(const u32* q, const uint32_t* k, i64 padded, i64 words, i64 from, i64 until,
                       uint32_t* __restrict count, float* __restrict score) const {
        std::fill(count + from, count + until, 0u);
        for (i64 w = 0; w < words; ++w) {
            const uint32_t word = q[w];
            const uint32_t* __restrict keys = k + w * padded;
            for (i64 j = from; j < until; ++j) count[j] += ones<level>(word ^ keys[j]);
        }
        const float scale = score_scale;
        const int32_t most = int32_t(window.dim);
        for (i64 j = from; j < until; ++j) score[j] = scale * float(most - 2 * int32_t(count[j]));
    }

    template <Level level>
    INLINE void add_values(const uint32_t* chosen, const uint32_t* v, i64 wide, i64 from, i64 until,
                           uint32_t* __restrict sum, f32* to) const {
        std::fill(sum, sum + wide, 0u);
        uint32_t count = 0;
        for (i64 w = from; w < until; ++w) {
            if (chosen[w] == 0) continue;
            count += uint32_t(__builtin_popcount(chosen[w]));
            const uint32_t word = chosen[w];
            const uint32_t* __restrict values = v + w * wide;
            for (i64 c = 0; c < wide; ++c) sum[c] += ones<level>(word & values[c]);
        }
        for (i64 c = 0; c < window.dim; ++c) to[c] = value_scale * float(2 * int32_t(sum[c]) - int32_t(count));
    }
};

// ---------------------------------------------------------------------------------------------- 8-bit activations

// bytes = clip(round(values / alpha), low, high) - low, halves to even; a row is followed by zeros up to words * 32.
struct QuantizeBytes {
    const f32* values;
    i64 columns;
    float alpha, low, high;
    uint8_t* bytes;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        const i64 count = columns, wide = (columns + 31) / 32 * 32;
        const float step = alpha, lowest = low, highest = high;  // bytes may alias what is not local
        for (i64 row = begin; row < end; ++row) {
            const f32* from = values + row * count;
            uint8_t* to = bytes + row * wide;
            for (i64 k = 0; k < count; ++k) {
                float x = from[k] / step;
                x = x > lowest ? x : lowest;
                x = x < highest ? x : highest;
                x = (x + 12582912.0f) - 12582912.0f;  // rounds halves to even
                to[k] = uint8_t(int32_t(x - lowest));
            }
            for (i64 k = count; k < wide; ++k) to[k] = 0;
        }
    }
};

// counts[row][output] = sum of bytes * weights for `rows` rows and two blocks; panel: [4 inputs][block][output][input].
#if X86
// The weights are +1 and -1, so a pair's sum stays within 16 bits.
template <int rows>
AVX2 void multiply_avx2(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* counts) {
    const __m256i one = _mm256_set1_epi16(1);
    for (int part = 0; part < 4; ++part) {
        __m256i sum[rows];
        for (int row = 0; row < rows; ++row) sum[row] = _mm256_setzero_si256();
        for (i64 k = 0; k < inputs; k += 4) {
            __m256i weight = _mm256_loadu_si256((const __m256i*)(panel + k * 32 + part * 32));
#pragma GCC unroll 12
            for (int row = 0; row < rows; ++row) {
                int32_t four;
                std::memcpy(&four, bytes + row * inputs + k, 4);
                __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(four), weight);
                sum[row] = _mm256_add_epi32(sum[row], _mm256_madd_epi16(pairs, one));
            }
        }
        for (int row = 0; row < rows; ++row) _mm256_storeu_si256((__m256i*)(counts + row * 32 + part * 8), sum[row]);
    }
}
#endif

template <int rows>
SCALAR void multiply_scalar(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* counts) {
    std::fill(counts, counts + rows * 32, 0);
    for (i64 k = 0; k < inputs; k += 4)
        for (int row = 0; row < rows; ++row)
            for (int output = 0; output < 32; ++output)
                for (int b = 0; b < 4; ++b)
                    counts[row * 32 + output] += bytes[row * inputs + k + b] * panel[k * 32 + output * 4 + b];
}

// With AVX-512 a table of the 16 signed sums of four inputs, in 16 bits, is looked up by four bits of 32 outputs at once;
// at the other levels the weights are expanded to bytes, which are multiplied.
struct ByteProduct {
    const uint8_t* bytes;
    i64 words;
    const u32* weights;
    i64 outputs, blocks;
    Affine affine;
    f32* out;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
#if X86
        if (level == avx512) return look_up(begin, end);
#endif
        expand_and_multiply<level>(begin, end);
    }

#if X86
    static constexpr int TALL = 4, WIDE = 4;  // rows, and pairs of blocks, at a time
    static constexpr i64 BEFORE_OVERFLOW = 4;  // words: 32 sums of four bytes, at most 32 * 1020, fit into 16 bits

    AVX512 void look_up(i64 begin, i64 end) const {
        const i64 table = words * 8 * 16;  // of a row
        std::vector<int16_t> tables(TALL * table);
        alignas(64) int32_t sums[TALL * WIDE * 32];
        for (i64 row = begin; row < end; row += TALL) {
            int tall = int(std::min<i64>(TALL, end - row));
            for (int r = 0; r < tall; ++r) fill_table(bytes + (row + r) * words * 32, tables.data() + r * table);
            for (i64 block = 0; block < blocks;) {
                const int wide = tall == TALL && blocks - block >= 2 * WIDE ? WIDE : 1;
                if (wide == WIDE)
                    sum_tables<TALL, WIDE>(tables.data(), block, sums);
                else
                    for (int r = 0; r < tall; ++r) sum_tables<1, 1>(tables.data() + r * table, block, sums + r * 32);
                i64 output = block * LANES, there = std::min<i64>(wide * 32, outputs - output);
                for (int r = 0; r < tall; ++r)
                    affine.finish<WIDE * 32>(sums + r * wide * 32, output, there, out + (row + r) * outputs + output);
                block += 2 * wide;
            }
        }
    }

    // table[four inputs][n] = sum of +byte where bit b of n is set, else -byte, over the four inputs b.
    AVX512 void fill_table(const uint8_t* from, int16_t* table) const {
        alignas(64) int8_t signs[16][4];
        for (int n = 0; n < 16; ++n)
            for (int b = 0; b < 4; ++b) signs[n][b] = (n >> b & 1) ? 1 : -1;
        const __m512i sign = _mm512_load_si512(signs);
        for (i64 k = 0; k < words * 32; k += 4) {
            int32_t four;
            std::memcpy(&four, from + k, 4);
            __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(four), sign);
            _mm256_storeu_si256((__m256i*)(table + k * 4), _mm512_cvtepi32_epi16(sum));
        }
    }

    template <int rows, int wide>
    AVX512 void sum_tables(const int16_t* tables, i64 block, int32_t* sums) const {
        alignas(64) int16_t even[32], odd[32];  // the lower and the upper halves of the words of two blocks
        for (int lane = 0; lane < 32; ++lane) even[lane] = int16_t(2 * lane), odd[lane] = int16_t(2 * lane + 1);
        const __m512i lower = _mm512_load_si512(even), upper = _mm512_load_si512(odd);
        for (i64 from = 0; from < words || from == 0; from += BEFORE_OVERFLOW) {
            __m512i sum[rows][wide];
            for (int r = 0; r < rows; ++r)
                for (int w = 0; w < wide; ++w) sum[r][w] = _mm512_setzero_si512();
            for (i64 k = from; k < std::min(words, from + BEFORE_OVERFLOW); ++k)
                for (int half = 0; half < 2; ++half) {
                    __m512i index[wide];
#pragma GCC unroll 4
                    for (int w = 0; w < wide; ++w) {
                        const i64 left = block + 2 * w, right = std::min(left + 1, blocks - 1);  // an odd last one: twice
                        index[w] = _mm512_permutex2var_epi16(_mm512_loadu_si512(weights + (left * words + k) * LANES),
                                                             half ? upper : lower,
                                                             _mm512_loadu_si512(weights + (right * words + k) * LANES));
                    }
#pragma GCC unroll 4
                    for (int four = 0; four < 4; ++four) {
#pragma GCC unroll 4
                        for (int r = 0; r < rows; ++r) {
                            const int16_t* entry = tables + ((r * words + k) * 8 + half * 4 + four) * 16;
                            // Twice the same 16 entries, so that the fifth bit of an index does not matter.
                            __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)entry));
#pragma GCC unroll 4
                            for (int w = 0; w < wide; ++w)
                                sum[r][w] = _mm512_add_epi16(sum[r][w], _mm512_permutexvar_epi16(index[w], table));
                        }
#pragma GCC unroll 4
                        for (int w = 0; w < wide; ++w) index[w] = _mm512_srli_epi16(index[w], 4);
                    }
                }
            for (int r = 0; r < rows; ++r)
                for (int w = 0; w < wide; ++w) {
                    int32_t* to = sums + (r * wide + w) * 32;
                    __m512i left = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sum[r][w]));
                    __m512i right = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sum[r][w], 1));
                    if (from > 0) {
                        left = _mm512_add_epi32(left, _mm512_loadu_si512(to));
                        right = _mm512_add_epi32(right, _mm512_loadu_si512(to + 16));
                    }
                    _mm512_storeu_si512(to, left);
                    _mm512_storeu_si512(to + 16, right);
                }
        }
    }
#endif

    // Two blocks' weights are expanded to bytes once for all rows.
    template <Level level>
    INLINE void expand_and_multiply(i64 begin, i64 end) const {
        constexpr int tall = 8;
        alignas(64) int32_t counts[tall * 32];
        const i64 inputs = words * 32;
        std::vector<int8_t> panel(inputs * 32);
        for (i64 pair = 0; pair < (blocks + 1) / 2; ++pair) {
            for (int block = 0; block < 2; ++block) expand(pair * 2 + block, panel.data() + block * 64);
            i64 output = pair * 32, there = std::min<i64>(32, outputs - output);
            i64 row = begin;
            for (; row + tall <= end; row += tall) {
                multiply<level, tall>(bytes + row * inputs, inputs, panel.data(), counts);
                for (int r = 0; r < tall; ++r) affine.finish<32>(counts + r * 32, output, there, out + (row + r) * outputs + output);
            }
            for (; row < end; ++row) {
                multiply<level, 1>(bytes + row * inputs, inputs, panel.data(), counts);
                affine.finish<32>(counts, output, there, out + row * outputs + output);
            }
        }
    }

    INLINE void expand(i64 block, int8_t* panel) const {
        for (i64 k = 0; k < words; ++k)
            for (int shift = 0; shift < 32; shift += 4) {
                uint32_t four[LANES];
                for (int lane = 0; lane < LANES; ++lane) {
                    uint32_t bits = block < blocks ? weights[(block * words + k) * LANES + lane] >> shift : 0u;
                    // A set bit becomes the byte 1, another the byte 255, which is -1.
                    uint32_t clear = ~((bits & 1u) | (bits & 2u) << 7 | (bits & 4u) << 14 | (bits & 8u) << 21);
                    four[lane] = (clear & 0x01010101u) * 254u + 0x01010101u;
                }
                std::memcpy(panel + (k * 8 + shift / 4) * 128, four, sizeof four);
            }
    }

    template <Level level, int rows>
    INLINE static void multiply(const uint8_t* bytes, i64 inputs, const int8_t* panel, int32_t* counts) {
#if X86
        if (level == avx2) return multiply_avx2<rows>(bytes, inputs, panel, counts);
#endif
        multiply_scalar<rows>(bytes, inputs, panel, counts);
    }
};

// ---------------------------------------------------------------------------------------------- float products

// out = x w + bias in floating point. w: [block][input][output], `panel` inputs to a block of which the first `inputs`
// are used; bias padded to blocks. Rows of x may overlap, as the windows of a convolution do: `stride` floats lie between
// their beginnings.
struct FloatProduct {
    const f32* x;
    i64 stride, inputs;
    const f32* weights;
    i64 panel, outputs, blocks;
    const f32* bias;
    f32* out;
    i64 out_stride;
    i64 first = 0, last = std::numeric_limits<i64>::max();  // x is zero but from the one float up to the other

    static constexpr i64 CHUNK = 384;  // inputs whose weights for three blocks stay in the cache
    static constexpr i64 ROWS = 512;   // rows whose sums do

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        for (i64 row = begin; row < end; row += ROWS) some<level>(row, std::min(end, row + ROWS));
    }

    template <Level level>
    INLINE void some(i64 begin, i64 end) const {
        std::vector<float> sums((end - begin) * 3 * LANES);
        for (i64 block = 0; block < blocks;) {
            i64 wide = level == avx512 && blocks - block >= 3 ? 3 : 1;
            for (i64 k = 0; k < inputs || k == 0; k += CHUNK) {
                i64 count = std::min(CHUNK, inputs - k);
                if (wide == 3)
                    chunk<level, 3>(block, k, count, begin, end, sums.data());
                else
                    chunk<level, 1>(block, k, count, begin, end, sums.data());
            }
            i64 there = std::min(wide * LANES, outputs - block * LANES);
            for (i64 row = begin; row < end; ++row) {
                const float* sum = sums.data() + (row - begin) * wide * LANES;
                for (i64 j = 0; j < there; ++j) out[row * out_stride + block * LANES + j] = sum[j];
            }
            block += wide;
        }
    }

    template <Level level, int wide>
    INLINE void chunk(i64 block, i64 k, i64 count, i64 begin, i64 end, float* sums) const {
        constexpr int tall = level == avx512 ? 8 : level == avx2 ? 6 : 3;
        i64 row = begin;
        for (; row + tall <= end; row += tall)
            tile<level, tall, wide>(block, k, count, row, sums + (row - begin) * wide * LANES);
        for (; row < end; ++row) tile<level, 1, wide>(block, k, count, row, sums + (row - begin) * wide * LANES);
    }

    template <Level level, int rows, int wide>
    INLINE void tile(i64 block, i64 k, i64 count, i64 row, float* sums) const {
        using Vector = typename Register<level>::type;
        constexpr int length = sizeof(Vector) / sizeof(float), parts = LANES / length;
        Vector sum[rows][wide * parts];
        const f32* start = bias + block * LANES;
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < wide * parts; ++b)
                sum[r][b] = *(const Vector*)(k == 0 ? start + b * length : sums + r * wide * LANES + b * length);
        const f32* w = weights + (block * panel + k) * LANES;
        const f32* from = x + row * stride + k;
        // Inputs that are zero in all of the rows are passed over, which leaves the sums as they are.
        const i64 begin = std::max<i64>(0, first - (row + rows - 1) * stride - k), end = std::min(count, last - row * stride - k);
        for (i64 i = begin; i < end; ++i) {
            Vector weight[wide * parts];
#pragma GCC unroll 4
            for (int b = 0; b < wide * parts; ++b)
                weight[b] = *(const Vector*)(w + (b / parts * panel + i) * LANES + b % parts * length);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
                for (int b = 0; b < wide * parts; ++b) sum[r][b] += from[r * stride + i] * weight[b];
        }
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < wide * parts; ++b) *(Vector*)(sums + r * wide * LANES + b * length) = sum[r][b];
    }
};

// Self-attention in floating point. An item is one head of one utterance. Where `highest` is not 0 the probabilities
// become whole numbers, clip(round(p / alpha), 0, highest), for queries, keys and values that are such numbers too.
struct FloatAttention {
    const f32 *query, *key, *value;  // (batch, queries or keys, heads, dim)
    Window window;
    float score_scale, alpha, highest, value_scale;
    f32* out;  // (batch, queries, heads, dim)

    static constexpr i64 TALL = 24;  // queries at a time

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        const i64 queries = window.queries, keys = window.keys, heads = window.heads, dim = window.dim;
        const i64 padded = (keys + LANES - 1) / LANES * LANES, wide = (dim + LANES - 1) / LANES * LANES;
        std::vector<float> k(padded * dim), v(wide * padded), score(TALL * padded), zeros(std::max(padded, wide));
        for (i64 item = begin; item < end; ++item) {
            i64 batch = item / heads, head = item % heads;
            const i64 stride = heads * dim;
            const f32* q = query + batch * queries * stride + head * dim;
            f32* to = out + batch * queries * stride + head * dim;
            for (i64 frame = 0; frame < keys; ++frame)
                for (i64 c = 0; c < dim; ++c) {
                    i64 from = ((batch * keys + frame) * heads + head) * dim + c;
                    k[(frame / LANES * dim + c) * LANES + frame % LANES] = key[from];
                    v[(c / LANES * padded + frame) * LANES + c % LANES] = value[from];
                }
            for (i64 frame = 0; frame < queries; frame += TALL) {
                i64 rows = std::min(TALL, queries - frame), from = padded, until = 0;
                for (i64 r = 0; r < rows; ++r) {
                    i64 low, high;
                    window.range(batch, frame + r, low, high);
                    if (low >= high) continue;
                    from = std::min(from, low / LANES * LANES);
                    until = std::max(until, (high + LANES - 1) / LANES * LANES);
                }
                i64 width = std::max<i64>(0, until - from);
                FloatProduct scores{q + frame * stride, stride, dim, k.data() + from * dim, dim, width, width / LANES,
                                    zeros.data(), score.data(), width};
                scores.run<level>(0, rows);
                for (i64 r = 0; r < rows; ++r) probabilities<level>(item, frame + r, from, until, score.data() + r * width);
                FloatProduct context{score.data(), width, width, v.data() + from * LANES, padded, dim, wide / LANES,
                                     zeros.data(), to + frame * stride, stride};
                context.run<level>(0, rows);
            }
            for (i64 frame = 0; frame < queries; ++frame)
                for (i64 c = 0; c < dim; ++c) to[frame * stride + c] *= value_scale;
        }
    }

    template <Level level>
    INLINE void probabilities(i64 item, i64 frame, i64 from, i64 until, float* score) const {
        const i64 width = until - from;
        const float scale = score_scale, step = alpha, most = highest;
        i64 low, high;
        window.range(item / window.heads, frame, low, high);
        if (low >= high) return std::fill(score, score + std::max<i64>(0, width), 0.0f);
        for (i64 j = 0; j < width; ++j) score[j] *= scale;
        float total = window.exponentiate<level>(item, frame, low, high, from, until, score);
        for (i64 j = 0; j < width; ++j) score[j] /= total;
        if (most == 0.0f) return;
        for (i64 j = 0; j < width; ++j) {
            float x = score[j] / step;
            x = x < most ? x : most;
            score[j] = (x + 12582912.0f) - 12582912.0f;
        }
    }
};

// ---------------------------------------------------------------------------------------------- 1-bit weights, floats

// out = scale * (x times weights of +1 and -1) + bias. With AVX-512 a table of the 16 signed sums of four inputs is
// looked up by four bits of 16 outputs at once; at the other levels the weights are expanded and multiplied.
struct SignProduct {
    const f32* x;
    i64 rows, inputs;
    const u32* weights;
    i64 outputs, blocks;
    const f32 *scale, *bias;
    f32* out;

    static constexpr int TALL = 4, WIDE = 4;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
#if X86
        if (level == avx512) return look_up(begin, end);
#endif
        expand_and_multiply<level>(begin, end);
    }

    template <Level level>
    INLINE void expand_and_multiply(i64 begin, i64 end) const {
        const i64 words = (inputs + 31) / 32;
        std::vector<float> panel(inputs * LANES), result((end - begin) * LANES);
        const float zeros[LANES] = {};
        FloatProduct product{x + begin * inputs, inputs, inputs, panel.data(), inputs, LANES, 1, zeros, result.data(), LANES};
        for (i64 block = 0; block < blocks; ++block) {
            for (i64 k = 0; k < inputs; ++k)
                for (int lane = 0; lane < LANES; ++lane)
                    panel[k * LANES + lane] = (weights[(block * words + k / 32) * LANES + lane] >> (k % 32) & 1u) ? 1.0f : -1.0f;
            product.run<level>(0, end - begin);
            for (i64 row = begin; row < end; ++row) finish(row, block, 1, result.data() + (row - begin) * LANES);
        }
    }

    INLINE void finish(i64 row, i64 block, i64 wide, const float* sums) const {
        i64 output = block * LANES, there = std::min(wide * LANES, outputs - output);
        for (i64 j = 0; j < there; ++j) out[row * outputs + output + j] = scale[output + j] * sums[j] + bias[output + j];
    }

#if X86
    INLINE void look_up(i64 begin, i64 end) const {
        const i64 words = (inputs + 31) / 32;
        std::vector<float> tables(TALL * words * 8 * LANES);
        alignas(64) float sums[TALL * WIDE * LANES];
        for (i64 row = begin; row < end; row += TALL) {
            int tall = int(std::min<i64>(TALL, end - row));
            for (int r = 0; r < tall; ++r) fill_table(x + (row + r) * inputs, tables.data() + r * words * 8 * LANES);
            for (i64 block = 0; block < blocks;) {
                int wide = tall == TALL && blocks - block >= WIDE ? WIDE : 1;
                const u32* weight = weights + block * words * LANES;
                if (wide == WIDE)
                    sum_tables<TALL, WIDE>(tables.data(), words, weight, sums);
                else
                    for (int r = 0; r < tall; ++r)
                        sum_tables<1, 1>(tables.data() + r * words * 8 * LANES, words, weight, sums + r * LANES);
                for (int r = 0; r < tall; ++r) finish(row + r, block, wide, sums + r * wide * LANES);
                block += wide;
            }
        }
    }

    // table[four inputs][n] = sum of +x where bit b of n is set, else -x, over the four inputs b.
    INLINE void fill_table(const f32* from, float* table) const {
        const i64 words = (inputs + 31) / 32;
        for (i64 k = 0; k < words * 32; k += 4) {
            float four[4];
            for (int b = 0; b < 4; ++b) four[b] = k + b < inputs ? from[k + b] : 0.0f;
            for (int n = 0; n < 16; ++n) {
                float sum = 0.0f;
                for (int b = 0; b < 4; ++b) sum += (n >> b & 1) ? four[b] : -four[b];
                table[k * 4 + n] = sum;
            }
        }
    }

    template <int rows, int wide>
    AVX512 static void sum_tables(const float* tables, i64 words, const u32* weights, float* sums) {
        __m512 sum[rows][wide];
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < wide; ++b) sum[r][b] = _mm512_setzero_ps();
        for (i64 k = 0; k < words; ++k) {
            __m512i weight[wide];
            for (int b = 0; b < wide; ++b) weight[b] = _mm512_loadu_si512(weights + (b * words + k) * LANES);
            for (int four = 0; four < 8; ++four) {
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r) {
                    __m512 table = _mm512_loadu_ps(tables + ((r * words + k) * 8 + four) * LANES);
#pragma GCC unroll 4
                    for (int b = 0; b < wide; ++b)  // the lowest four bits of a lane choose
                        sum[r][b] = _mm512_add_ps(sum[r][b], _mm512_permutexvar_ps(weight[b], table));
                }
#pragma GCC unroll 4
                for (int b = 0; b < wide; ++b) weight[b] = _mm512_srli_epi32(weight[b], 4);
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int b = 0; b < wide; ++b) _mm512_storeu_ps(sums + (r * wide + b) * LANES, sum[r][b]);
    }
#endif
};

// ---------------------------------------------------------------------------------------------- what is between

struct LayerNorm {
    const f32* x;
    i64 dim;
    const f32 *weight, *bias;
    float epsilon;
    f32* out;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        for (i64 row = begin; row < end; ++row) {
            const f32* from = x + row * dim;
            f32* to = out + row * dim;
            float mean = sum<level, false>(from, 0.0f) / float(dim);
            float factor = 1.0f / std::sqrt(sum<level, true>(from, mean) / float(dim) + epsilon);
            for (i64 c = 0; c < dim; ++c) to[c] = (from[c] - mean) * factor * weight[c] + bias[c];
        }
    }

    // The sum of x - mean, or of its square, in two vectors of partial sums.
    template <Level level, bool square>
    INLINE float sum(const f32* from, float mean) const {
        using Vector = typename Register<level>::type;
        constexpr int length = sizeof(Vector) / sizeof(float);
        Vector left = {}, right = {};
        i64 c = 0;
        for (; c + 2 * length <= dim; c += 2 * length) {
            Vector x = *(const Vector*)(from + c) - mean, y = *(const Vector*)(from + c + length) - mean;
            left += square ? x * x : x;
            right += square ? y * y : y;
        }
        left += right;
        float total = 0.0f;
        for (; c < dim; ++c) total += square ? (from[c] - mean) * (from[c] - mean) : from[c] - mean;
        for (int lane = 0; lane < length; ++lane) total += left[lane];
        return total;
    }
};

// out[frame][channel] = bias + sum over taps of x[frame * stride + tap][channel] w[tap][channel].
struct Depthwise {
    const f32* x;
    i64 channels, taps, stride;
    const f32 *weights, *bias;
    f32* out;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        for (i64 frame = begin; frame < end; ++frame) {
            f32* to = out + frame * channels;
            for (i64 c = 0; c < channels; c += LANES) {
                float sum[LANES];
                i64 there = std::min(LANES, channels - c);
                for (i64 lane = 0; lane < there; ++lane) sum[lane] = bias[c + lane];
                for (i64 tap = 0; tap < taps; ++tap) {
                    const f32* from = x + (frame * stride + tap) * channels + c;
                    const f32* weight = weights + tap * channels + c;
                    if (there == LANES)
                        for (int lane = 0; lane < LANES; ++lane) sum[lane] += from[lane] * weight[lane];
                    else
                        for (i64 lane = 0; lane < there; ++lane) sum[lane] += from[lane] * weight[lane];
                }
                for (i64 lane = 0; lane < there; ++lane) to[c + lane] = sum[lane];
            }
        }
    }
};

struct Gelu {
    f32* x;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
        f32* values = x;
        for (i64 i = begin; i < end; ++i) values[i] = 0.5f * values[i] * (1.0f + error_function(values[i] * 0.70710678f));
    }
};

// xor, popcount and add on registers alone: what the instructions allow, to measure the product against.
struct Peak {
    u32* sink;

    template <Level level>
    INLINE void run(i64 begin, i64 end) const {
#if X86
        if (level == avx512) return *sink = spin(end - begin), void();
#endif
        *sink = uint32_t(end - begin);
    }

#if X86
    AVX512 static uint32_t spin(i64 times) {
        __m512i sum[12], word = _mm512_set1_epi32(0x5a5a5a5a);
        for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_epi32(i);
        for (i64 t = 0; t < times; ++t)
#pragma GCC unroll 12
            for (int i = 0; i < 12; ++i)
                sum[i] = _mm512_add_epi32(sum[i], _mm512_popcnt_epi32(_mm512_xor_si512(sum[i], word)));
        for (int i = 1; i < 12; ++i) sum[0] = _mm512_add_epi32(sum[0], sum[i]);
        return uint32_t(_mm512_reduce_add_epi32(sum[0]));
    }
#endif
};

}  // namespace

// ---------------------------------------------------------------------------------------------- the interface

// Raised when a function's arguments change, so that a library of another version is not called.
EXPORT int superbit_interface() { return 2; }

// The highest level this processor has: 2 AVX-512, 1 AVX2, 0 scalar, -1 none.
EXPORT int superbit_best_level() {
#if X86
    __builtin_cpu_init();
    bool fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fast && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni"))
        return avx512;
    if (fast) return avx2;
    return __builtin_cpu_supports("popcnt") ? scalar : -1;
#else
    return scalar;
#endif
}

EXPORT void superbit_binarize(int level, int threads, const f32* values, i64 rows, i64 columns, const f32* shift,
                              float threshold, int strict, u32* bits) {
    parallel(level, threads, rows, 16, Binarize{values, columns, shift, threshold, strict != 0, bits});
}

EXPORT void superbit_binary_to_floats(int level, int threads, const u32* bits, i64 rows, i64 words, const u32* weights,
                                      i64 outputs, const i32* offset, const f32* scale, const f32* bias, f32* out) {
    BinaryProduct product{bits, words, weights, outputs, (outputs + LANES - 1) / LANES};
    parallel(level, threads, rows, 6, BinaryToFloats{product, {offset, scale, bias, -2}, out});
}

EXPORT void superbit_binary_to_bits(int level, int threads, const u32* bits, i64 rows, i64 words, const u32* weights,
                                    i64 outputs, const i32* limit, u32* out) {
    BinaryProduct product{bits, words, weights, outputs, (outputs + LANES - 1) / LANES};
    parallel(level, threads, rows, 6, BinaryToBits{product, limit, out});
}

EXPORT void superbit_binary_attention(int level, int threads, const u32* query, const u32* key, const u32* value,
                                      i64 batch, i64 queries, i64 keys, i64 heads, i64 dim, const int64_t* lengths,
                                      i64 first, i64 radius, const f32* relative, i64 reach, float score_scale,
                                      float threshold, float value_scale, f32* out) {
    Window window{queries, keys, heads, dim, lengths, first, radius, relative, reach};
    BinaryAttention attention{query, key, value, window, score_scale, threshold, value_scale, out};
    parallel(level, threads, batch * heads, 1, attention);
}

EXPORT void superbit_float_attention(int level, int threads, const f32* query, const f32* key, const f32* value,
                                     i64 batch, i64 queries, i64 keys, i64 heads, i64 dim, const int64_t* lengths,
                                     i64 first, i64 radius, const f32* relative, i64 reach, float score_scale,
                                     float alpha, float highest, float value_scale, f32* out) {
    Window window{queries, keys, heads, dim, lengths, first, radius, relative, reach};
    FloatAttention attention{query, key, value, window, score_scale, alpha, highest, value_scale, out};
    parallel(level, threads, batch * heads, 1, attention);
}

EXPORT void superbit_quantize_bytes(int level, int threads, const f32* values, i64 rows, i64 columns, float alpha,
                                    float low, float high, uint8_t* bytes) {
    parallel(level, threads, rows, 16, QuantizeBytes{values, columns, alpha, low, high, bytes});
}

EXPORT void superbit_byte_product(int level, int threads, const uint8_t* bytes, i64 rows, i64 words, const u32* weights,
                                  i64 outputs, const i32* offset, const f32* scale, const f32* bias, f32* out) {
    i64 blocks = (outputs + LANES - 1) / LANES;
    ByteProduct product{bytes, words, weights, outputs, blocks, {offset, scale, bias, 1}, out};
    parallel(level, threads, rows, 8, product);
}

EXPORT void superbit_sign_product(int level, int threads, const f32* x, i64 rows, i64 inputs, const u32* weights,
                                  i64 outputs, const f32* scale, const f32* bias, f32* out) {
    i64 blocks = (outputs + LANES - 1) / LANES;
    parallel(level, threads, rows, 4, SignProduct{x, rows, inputs, weights, outputs, blocks, scale, bias, out});
}

EXPORT void superbit_float_product(int level, int threads, const f32* x, i64 rows, i64 stride, i64 inputs,
                                   i64 first, i64 last, const f32* weights, i64 outputs, const f32* bias, f32* out,
                                   i64 out_stride) {
    i64 blocks = (outputs + LANES - 1) / LANES;
    FloatProduct product{x, stride, inputs, weights, inputs, outputs, blocks, bias, out, out_stride, first, last};
    parallel(level, threads, rows, 8, product);
}

EXPORT void superbit_layer_norm(int level, int threads, const f32* x, i64 rows, i64 dim, const f32* weight,
                                const f32* bias, float epsilon, f32* out) {
    parallel(level, threads, rows, 16, LayerNorm{x, dim, weight, bias, epsilon, out});
}

EXPORT void superbit_depthwise(int level, int threads, const f32* x, i64 frames, i64 channels, i64 taps, i64 stride,
                               const f32* weights, const f32* bias, f32* out) {
    parallel(level, threads, frames, 16, Depthwise{x, channels, taps, stride, weights, bias, out});
}

EXPORT void superbit_gelu(int level, int threads, f32* x, i64 count) { parallel(level, threads, count, 1024, Gelu{x}); }

// Only with AVX-512: 12 * 16 xors, popcounts and adds of 32 bits for each of `times`.
EXPORT void superbit_popcount_peak(int level, int threads, i64 times, u32* sink) {
    parallel(level, threads, times, times, Peak{sink});
}
