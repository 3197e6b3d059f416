// Many lanes' low-rank paths on one product's rows, straight from their float32 factors.
//
// A lane's path is two thin products, too small each for a library call to pay: their operands are read where they lie
// (rows of the pack in the model's dtype, factors in float32) and multiplied in float32 registers. Dropout is computed on
// the way. A task is one lane's stretch of rows, or of columns where rows are summed up; no two tasks write one number.

#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16x32 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

struct Lane {
    const float *A, *B;     // (r, in), (out, r)
    float *dA, *dB;         // their gradients, written; null in a forward
    float *h, *dh, *bt;     // (rows, r) products, scaled; their gradients; (r, out) transpose of B
    uint16_t* kept;         // (rows, ceil(in / 16)) bits of what dropout kept, written in a forward; null: no dropout
    int64_t start, rows, r; // of the pack's rows, and the rank
    int64_t column, out;    // where the module's outputs stand, and how many
    uint32_t seed, limit;   // of dropout: an element is kept where its noise is below the limit
    float keep, scaling;    // keep: what kept elements are multiplied with; 0: no dropout
};

// Keep a compiler from reading a value again from memory for each product it is in: loads are what these loops wait for.
#if defined(__AVX512F__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v)
#endif

namespace {

constexpr int64_t CHUNK = 64, COLUMNS = 256;

inline v16 load16(const float* p) {
    v16 v;
    std::memcpy(&v, p, 64);
    return v;
}
inline v16 load16(const bf16* p) {
    u16x16 narrow;
    std::memcpy(&narrow, p, 32);
    u16x32 wide = __builtin_convertvector(narrow, u16x32) << 16;
    v16 v;
    std::memcpy(&v, &wide, 64);
    return v;
}

inline void store16(float* p, v16 v) { std::memcpy(p, &v, 64); }
inline void store16(bf16* p, v16 v) {  // as store()
#if defined(__AVX512BF16__)
    __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);  // one instruction; numbers below 2^-126 become zero
#else
    u16x32 bits;
    std::memcpy(&bits, &v, 64);
    u16x32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (bits & 0x7fffffffu) > 0x7f800000u ? (u16x32{} + 0x7fc0u) : rounded;
    u16x16 narrow = __builtin_convertvector(rounded, u16x16);
#endif
    std::memcpy(p, &narrow, 32);
}

// Room for numbers, begun anew at each call; aligned, so that no vector lies across two lines of the cache.
class Scratch {
    std::vector<v16> held;

   public:
    float* room(int64_t n) {
        if (static_cast<int64_t>(held.size()) < n / 16 + 1) held.resize(n / 16 + 1);
        return reinterpret_cast<float*>(held.data());
    }
};

template <class P>
inline void widen(const P* from, float* to, int64_t n) {
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) store16(to + j, load16(from + j));
    for (; j < n; j++) to[j] = load(from + j);
}

// Of each stretch of 2 D lanes: the first halves of a and b, and the last halves.
template <int D, size_t... I>
inline v16 firsts(v16 a, v16 b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I & D ? static_cast<int>(16 + I - D) : static_cast<int>(I))...);
}
template <int D, size_t... I>
inline v16 lasts(v16 a, v16 b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I & D ? static_cast<int>(16 + I) : static_cast<int>(I + D))...);
}
constexpr auto LANES = std::make_index_sequence<16>{};

// v[0 ... D) to the sums of pairs of lanes of v[0 ... 2 D): lane i of v[0] becomes the sum of the former v[i].
template <int D>
inline void fold(v16* v) {
#pragma GCC unroll 8
    for (int i = 0; i < D; i++) v[i] = firsts<D>(v[i], v[i + D], LANES) + lasts<D>(v[i], v[i + D], LANES);
    if constexpr (D > 1) fold<D / 2>(v);
}

// v (16, 16) to its transpose.
template <int D>
inline void turn(v16* v) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        if ((i & D) == 0) {
            v16 a = v[i], b = v[i + D];
            v[i] = firsts<D>(a, b, LANES);
            v[i + D] = lasts<D>(a, b, LANES);
        }
    if constexpr (D > 1) turn<D / 2>(v);
}

// c (m, n) = p (m, k) q (n, k)^T * scale: sums along rows of both.
template <int MI, int NI, class P>
inline void dot_tile(const P* p, int64_t ldp, const float* q, int64_t ldq, float* c, int64_t ldc, int64_t k, float scale) {
    v16 sums[16] = {};
    int64_t l = 0;
    for (; l + 16 <= k; l += 16) {
        v16 a[MI];
#pragma GCC unroll 4
        for (int i = 0; i < MI; i++) a[i] = load16(p + i * ldp + l);
#pragma GCC unroll 4
        for (int j = 0; j < NI; j++) {
            v16 b = load16(q + j * ldq + l);
            IN_REGISTER(b);
#pragma GCC unroll 4
            for (int i = 0; i < MI; i++) sums[4 * i + j] += a[i] * b;
        }
    }
    fold<8>(sums);
    float found[16];
    store16(found, sums[0]);
    for (int i = 0; i < MI; i++)
        for (int j = 0; j < NI; j++) {
            float sum = found[4 * i + j];
            for (int64_t e = l; e < k; e++) sum += load(p + i * ldp + e) * q[j * ldq + e];
            c[i * ldc + j] = sum * scale;
        }
}

template <int MI, class P>
inline void dot_rows(const P* p, int64_t ldp, const float* q, int64_t ldq, float* c, int64_t ldc, int64_t n, int64_t k,
                     float scale) {
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) dot_tile<MI, 4>(p, ldp, q + j * ldq, ldq, c + j, ldc, k, scale);
    for (; j < n; j++) dot_tile<MI, 1>(p, ldp, q + j * ldq, ldq, c + j, ldc, k, scale);
}

// Four rows at a time are widened once for all n; `wide` is room for them.
template <class P>
void dots(const P* p, int64_t ldp, const float* q, int64_t ldq, float* c, int64_t ldc, int64_t m, int64_t n, int64_t k,
          float scale, Scratch& scratch) {
    int64_t i = 0;
    float* wide = scratch.room(4 * k);
    for (; i + 4 <= m; i += 4) {
        if constexpr (std::is_same_v<P, float>) {
            dot_rows<4>(p + i * ldp, ldp, q, ldq, c + i * ldc, ldc, n, k, scale);
        } else {
            for (int64_t e = 0; e < 4; e++) widen(p + (i + e) * ldp, wide + e * k, k);
            dot_rows<4>(wide, k, q, ldq, c + i * ldc, ldc, n, k, scale);
        }
    }
    for (; i < m; i++) dot_rows<1>(p + i * ldp, ldp, q, ldq, c + i * ldc, ldc, n, k, scale);
}

// c (m, n) += p q, or = p q; p (m, k) in steps of ldp down and step along, q (k, n): sums of scaled rows of q.
template <int MI, class Q, class C, bool ADD>
inline void rows_tile(const float* p, int64_t ldp, int64_t step, const Q* q, int64_t ldq, C* c, int64_t ldc, int64_t n,
                      int64_t k) {
    int64_t j = 0;
    for (; j + 32 <= n; j += 32) {
        v16 sums[MI][2] = {};
        for (int64_t l = 0; l < k; l++) {
            v16 b0 = load16(q + l * ldq + j), b1 = load16(q + l * ldq + j + 16);
            for (int i = 0; i < MI; i++) {
                float a = p[i * ldp + l * step];
                sums[i][0] += a * b0;
                sums[i][1] += a * b1;
            }
        }
        for (int i = 0; i < MI; i++) {
            C* out = c + i * ldc + j;
            for (int h = 0; h < 2; h++) store16(out + 16 * h, ADD ? load16(out + 16 * h) + sums[i][h] : sums[i][h]);
        }
    }
    for (; j < n; j++)
        for (int i = 0; i < MI; i++) {
            float sum = 0.0f;
            for (int64_t l = 0; l < k; l++) sum += p[i * ldp + l * step] * load(q + l * ldq + j);
            C* out = c + i * ldc + j;
            store(out, ADD ? load(out) + sum : sum);
        }
}

template <bool ADD, class Q, class C>
void combine(const float* p, int64_t ldp, int64_t step, const Q* q, int64_t ldq, C* c, int64_t ldc, int64_t m, int64_t n,
             int64_t k) {
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) rows_tile<8, Q, C, ADD>(p + i * ldp, ldp, step, q, ldq, c + i * ldc, ldc, n, k);
    for (; i + 4 <= m; i += 4) rows_tile<4, Q, C, ADD>(p + i * ldp, ldp, step, q, ldq, c + i * ldc, ldc, n, k);
    for (; i < m; i++) rows_tile<1, Q, C, ADD>(p + i * ldp, ldp, step, q, ldq, c + i * ldc, ldc, n, k);
}

inline int64_t words(int64_t width) { return (width + 15) / 16; }

// Draw what the lane's dropout keeps of m rows from its row `first` on: element e where hash(e, seed) < limit.
inline void draw(const Lane& lane, int64_t first, int64_t m, int64_t width) {
    const uint32_t seed = lane.seed, limit = lane.limit;
    const u16x32 steps = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t i = first; i < first + m; i++)
        for (int64_t w = 0; w < words(width); w++) {
            u16x32 noise = mixed(mixed(steps + static_cast<uint32_t>(i * width + 16 * w)) ^ seed);
#if defined(__AVX512F__)
            uint16_t bits = _mm512_cmplt_epu32_mask((__m512i)noise, _mm512_set1_epi32(static_cast<int>(limit)));
#else
            uint16_t bits = 0;
            for (int e = 0; e < 16; e++) bits |= static_cast<uint16_t>((noise[e] < limit) << e);
#endif
            lane.kept[i * words(width) + w] = bits;
        }
}

inline v16 where(uint16_t bits, v16 v) {
#if defined(__AVX512F__)
    return (v16)_mm512_maskz_mov_ps(bits, (__m512)v);
#else
    v16 out = {};
    for (int e = 0; e < 16; e++) out[e] = bits >> e & 1 ? v[e] : 0.0f;
    return out;
#endif
}

// to = from after the lane's dropout: m rows from its row `first` on, the columns a ... a + n of its `width`. a is a
// multiple of 16.
template <class From>
inline void drop(const Lane& lane, const From* from, int64_t ldf, float* to, int64_t ldt, int64_t first, int64_t m, int64_t a,
                 int64_t n, int64_t width) {
    const v16 keep = v16{} + lane.keep;
    for (int64_t i = 0; i < m; i++) {
        const uint16_t* kept = lane.kept + (first + i) * words(width) + a / 16;
        const From* in = from + i * ldf;
        float* out = to + i * ldt;
        int64_t j = 0;
        for (; j + 16 <= n; j += 16) store16(out + j, where(kept[j / 16], load16(in + j) * keep));
        for (; j < n; j++) out[j] = kept[j / 16] >> (j % 16) & 1 ? load(in + j) * lane.keep : 0.0f;
    }
}

inline void transpose(const float* from, float* to, int64_t rows, int64_t columns) {
    int64_t whole = columns / 16 * 16, i = 0;
    for (; i + 16 <= rows; i += 16)
        for (int64_t j = 0; j < whole; j += 16) {
            v16 v[16];
            for (int e = 0; e < 16; e++) v[e] = load16(from + (i + e) * columns + j);
            turn<8>(v);
            for (int e = 0; e < 16; e++) store16(to + (j + e) * rows + i, v[e]);
        }
    for (int64_t j = 0; j < columns; j++)
        for (int64_t e = j < whole ? i : 0; e < rows; e++) to[j * rows + e] = from[e * columns + j];
}

template <class T>
inline void add(const float* from, T* to, int64_t n) {
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) store16(to + j, load16(to + j) + load16(from + j));
    for (; j < n; j++) store(to + j, load(to + j) + from[j]);
}

struct Task {
    int64_t lane, first, count;
};

// Stretches of at most `size` of what `length` gives for each lane.
template <class Length>
std::vector<Task> tasks(const Lane* lanes, int64_t n, int64_t size, Length length) {
    std::vector<Task> out;
    for (int64_t i = 0; i < n; i++)
        for (int64_t a = 0, all = length(lanes[i]); a < all; a += size) out.push_back({i, a, std::min(size, all - a)});
    return out;
}

template <class T>
void add_low_rank(const T* x, int64_t in, T* y, int64_t width, const Lane* lanes, int64_t n) {
    auto all = tasks(lanes, n, CHUNK, [](const Lane& lane) { return lane.rows; });
#pragma omp parallel
    {
        Scratch dropped, wide;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++) transpose(lanes[i].B, lanes[i].bt, lanes[i].out, lanes[i].r);
#pragma omp for schedule(dynamic, 1)
        for (size_t t = 0; t < all.size(); t++) {
            const Lane& lane = lanes[all[t].lane];
            int64_t first = all[t].first, m = all[t].count, row = lane.start + first;
            float* h = lane.h + first * lane.r;
            if (lane.kept != nullptr) {
                float* given = dropped.room(CHUNK * in);
                draw(lane, first, m, in);
                drop(lane, x + row * in, in, given, in, first, m, 0, in, in);
                dots(given, in, lane.A, in, h, lane.r, m, lane.r, in, lane.scaling, wide);
            } else
                dots(x + row * in, in, lane.A, in, h, lane.r, m, lane.r, in, lane.scaling, wide);
            combine<true>(h, lane.r, 1, lane.bt, lane.out, y + row * width + lane.column, width, m, lane.out, lane.r);
        }
    }
}

// dx may be null. Lanes that share rows (modules of one lane) stand one after another.
template <class T>
void add_low_rank_backward(const T* x, int64_t in, const T* dy, int64_t width, T* dx, const Lane* lanes, int64_t n) {
    std::vector<Task> stretches;  // the lane is the first of those that share rows
    for (int64_t i = 0; i < n; i++)
        if (i == 0 || lanes[i].start != lanes[i - 1].start)
            for (int64_t a = 0; a < lanes[i].rows; a += CHUNK) stretches.push_back({i, a, std::min(CHUNK, lanes[i].rows - a)});
    auto inputs = tasks(lanes, n, COLUMNS, [in](const Lane&) { return in; });
    auto outputs = tasks(lanes, n, COLUMNS, [](const Lane& lane) { return lane.out; });
#pragma omp parallel
    {
        Scratch sums, dropped, wide;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++) transpose(lanes[i].B, lanes[i].bt, lanes[i].out, lanes[i].r);
#pragma omp for schedule(dynamic, 1)
        for (size_t t = 0; t < stretches.size(); t++) {
            int64_t first = stretches[t].first, m = stretches[t].count, row = lanes[stretches[t].lane].start + first;
            for (int64_t i = stretches[t].lane; i < n && lanes[i].start == lanes[stretches[t].lane].start; i++) {
                const Lane& lane = lanes[i];
                float* dh = lane.dh + first * lane.r;
                dots(dy + row * width + lane.column, width, lane.bt, lane.out, dh, lane.r, m, lane.r, lane.out, lane.scaling, wide);
                if (dx == nullptr) continue;
                if (lane.kept != nullptr) {
                    float* sum = sums.room(CHUNK * in);
                    combine<false>(dh, lane.r, 1, lane.A, in, sum, in, m, in, lane.r);
                    drop(lane, sum, in, sum, in, first, m, 0, in, in);
                    add(sum, dx + row * in, m * in);
                } else
                    combine<true>(dh, lane.r, 1, lane.A, in, dx + row * in, in, m, in, lane.r);
            }
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (size_t t = 0; t < inputs.size(); t++) {
            const Lane& lane = lanes[inputs[t].lane];
            int64_t a = inputs[t].first, m = inputs[t].count;
            const T* from = x + lane.start * in + a;
            if (lane.kept != nullptr) {
                float* given = dropped.room(lane.rows * m);
                drop(lane, from, in, given, m, 0, lane.rows, a, m, in);
                combine<false>(lane.dh, 1, lane.r, given, m, lane.dA + a, in, lane.r, m, lane.rows);
            } else
                combine<false>(lane.dh, 1, lane.r, from, in, lane.dA + a, in, lane.r, m, lane.rows);
        }
#pragma omp for schedule(dynamic, 1)
        for (size_t t = 0; t < outputs.size(); t++) {
            const Lane& lane = lanes[outputs[t].lane];
            int64_t a = outputs[t].first, m = outputs[t].count;
            float* sum = sums.room(lane.r * m);
            combine<false>(lane.h, 1, lane.r, dy + lane.start * width + lane.column + a, width, sum, m, lane.r, m, lane.rows);
            transpose(sum, lane.dB + a * lane.r, lane.r, m);
        }
    }
}

}  // namespace

#define LOW_RANK(T, suffix)                                                                                             \
    extern "C" void add_low_rank_##suffix(const T* x, int64_t in, T* y, int64_t width, const Lane* lanes, int64_t n) {  \
        add_low_rank(x, in, y, width, lanes, n);                                                                        \
    }                                                                                                                   \
    extern "C" void add_low_rank_backward_##suffix(const T* x, int64_t in, const T* dy, int64_t width, T* dx,           \
                                                   const Lane* lanes, int64_t n) {                                      \
        add_low_rank_backward(x, in, dy, width, dx, lanes, n);                                                          \
    }

LOW_RANK(bf16, bf16)
LOW_RANK(float, f32)
