// Many lanes' low-rank paths on one product's rows, straight from their float32 factors.
//
// A lane's path is two thin products, too small each for a library call to pay: their operands are read where they lie
// (rows of the pack in the model's dtype, factors in float32) and multiplied in float32 registers. Dropout is computed on
// the way. A task is one lane's stretch of rows, or of columns where rows are summed up; no two tasks write one number.

#pragma once

#include <algorithm>
#include <vector>

typedef float v16 __attribute__((vector_size(64)));
typedef uint32_t u16x32 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

struct Lane {
    const float *A, *B;     // (r, in), (out, r)
    float *dA, *dB;         // their gradients, written; null in a forward
    float *h, *dh, *bt;     // (rows, r) products, scaled; their gradients; (r, out) transpose of B
    int64_t start, rows, r; // of the pack's rows, and the rank
    int64_t column, out;    // where the module's outputs stand, and how many
    uint32_t seed, limit;   // of dropout: an element is kept where its noise is below the limit
    float keep, scaling;    // keep: what kept elements are multiplied with; 0: no dropout
};

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
    u16x32 bits;
    std::memcpy(&bits, &v, 64);
    u16x32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    rounded = (bits & 0x7fffffffu) > 0x7f800000u ? (u16x32{} + 0x7fc0u) : rounded;
    u16x16 narrow = __builtin_convertvector(rounded, u16x16);
    std::memcpy(p, &narrow, 32);
}

// c (m, n) = p (m, k) q (n, k)^T * scale: sums along rows of both.
template <int MI, int NI, class P>
inline void dot_tile(const P* p, int64_t ldp, const float* q, int64_t ldq, float* c, int64_t ldc, int64_t k, float scale) {
    v16 sums[MI][NI] = {};
    int64_t l = 0;
    for (; l + 16 <= k; l += 16) {
        v16 a[MI];
        for (int i = 0; i < MI; i++) a[i] = load16(p + i * ldp + l);
        for (int j = 0; j < NI; j++) {
            v16 b = load16(q + j * ldq + l);
            for (int i = 0; i < MI; i++) sums[i][j] += a[i] * b;
        }
    }
    for (int i = 0; i < MI; i++)
        for (int j = 0; j < NI; j++) {
            float sum = 0.0f;
            for (int e = 0; e < 16; e++) sum += sums[i][j][e];
            for (int64_t e = l; e < k; e++) sum += load(p + i * ldp + e) * q[j * ldq + e];
            c[i * ldc + j] = sum * scale;
        }
}

template <class P>
void dots(const P* p, int64_t ldp, const float* q, int64_t ldq, float* c, int64_t ldc, int64_t m, int64_t n, int64_t k,
          float scale) {
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) {
        int64_t j = 0;
        for (; j + 4 <= n; j += 4) dot_tile<4, 4>(p + i * ldp, ldp, q + j * ldq, ldq, c + i * ldc + j, ldc, k, scale);
        for (; j < n; j++) dot_tile<4, 1>(p + i * ldp, ldp, q + j * ldq, ldq, c + i * ldc + j, ldc, k, scale);
    }
    for (; i < m; i++) {
        int64_t j = 0;
        for (; j + 4 <= n; j += 4) dot_tile<1, 4>(p + i * ldp, ldp, q + j * ldq, ldq, c + i * ldc + j, ldc, k, scale);
        for (; j < n; j++) dot_tile<1, 1>(p + i * ldp, ldp, q + j * ldq, ldq, c + i * ldc + j, ldc, k, scale);
    }
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

// to = from after the lane's dropout: m rows from its row `first` on, the columns a ... a + n of its `width`.
template <class From, class To>
inline void drop(const Lane& lane, const From* from, int64_t ldf, To* to, int64_t ldt, int64_t first, int64_t m, int64_t a,
                 int64_t n, int64_t width) {
    const uint32_t seed = lane.seed, limit = lane.limit;
    const float keep = lane.keep;
    for (int64_t i = 0; i < m; i++) {
        uint32_t place = static_cast<uint32_t>((first + i) * width + a);
        const From* in = from + i * ldf;
        To* out = to + i * ldt;
#pragma GCC ivdep
        for (int32_t j = 0; j < static_cast<int32_t>(n); j++) {
            uint32_t noise = mixed(mixed(place + static_cast<uint32_t>(j)) ^ seed);
            float value = load(in + j) * keep;
            store(out + j, noise < limit ? value : 0.0f);
        }
    }
}

inline void transpose(const float* from, float* to, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) to[j * rows + i] = from[i * columns + j];
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
        std::vector<float> dropped;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++) transpose(lanes[i].B, lanes[i].bt, lanes[i].out, lanes[i].r);
#pragma omp for schedule(dynamic, 1)
        for (size_t t = 0; t < all.size(); t++) {
            const Lane& lane = lanes[all[t].lane];
            int64_t first = all[t].first, m = all[t].count, row = lane.start + first;
            float* h = lane.h + first * lane.r;
            if (lane.keep > 0.0f) {
                dropped.resize(CHUNK * in);
                drop(lane, x + row * in, in, dropped.data(), in, first, m, 0, in, in);
                dots(dropped.data(), in, lane.A, in, h, lane.r, m, lane.r, in, lane.scaling);
            } else
                dots(x + row * in, in, lane.A, in, h, lane.r, m, lane.r, in, lane.scaling);
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
        std::vector<float> sums, dropped;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < n; i++) transpose(lanes[i].B, lanes[i].bt, lanes[i].out, lanes[i].r);
#pragma omp for schedule(dynamic, 1)
        for (size_t t = 0; t < stretches.size(); t++) {
            int64_t first = stretches[t].first, m = stretches[t].count, row = lanes[stretches[t].lane].start + first;
            for (int64_t i = stretches[t].lane; i < n && lanes[i].start == lanes[stretches[t].lane].start; i++) {
                const Lane& lane = lanes[i];
                float* dh = lane.dh + first * lane.r;
                dots(dy + row * width + lane.column, width, lane.bt, lane.out, dh, lane.r, m, lane.r, lane.out, lane.scaling);
                if (dx == nullptr) continue;
                if (lane.keep > 0.0f) {
                    sums.resize(CHUNK * in);
                    combine<false>(dh, lane.r, 1, lane.A, in, sums.data(), in, m, in, lane.r);
                    drop(lane, sums.data(), in, sums.data(), in, first, m, 0, in, in);
                    T* out = dx + row * in;
                    for (int64_t e = 0; e < m * in; e++) store(out + e, load(out + e) + sums[e]);
                } else
                    combine<true>(dh, lane.r, 1, lane.A, in, dx + row * in, in, m, in, lane.r);
            }
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (size_t t = 0; t < inputs.size(); t++) {
            const Lane& lane = lanes[inputs[t].lane];
            int64_t a = inputs[t].first, m = inputs[t].count;
            const T* from = x + lane.start * in + a;
            if (lane.keep > 0.0f) {
                dropped.resize(lane.rows * m);
                drop(lane, from, in, dropped.data(), m, 0, lane.rows, a, m, in);
                combine<false>(lane.dh, 1, lane.r, dropped.data(), m, lane.dA + a, in, lane.r, m, lane.rows);
            } else
                combine<false>(lane.dh, 1, lane.r, from, in, lane.dA + a, in, lane.r, m, lane.rows);
        }
#pragma omp for schedule(dynamic, 1)
        for (size_t t = 0; t < outputs.size(); t++) {
            const Lane& lane = lanes[outputs[t].lane];
            int64_t a = outputs[t].first, m = outputs[t].count;
            sums.resize(std::max<int64_t>(sums.size(), lane.r * m));
            combine<false>(lane.h, 1, lane.r, dy + lane.start * width + lane.column + a, width, sums.data(), m, lane.r, m,
                           lane.rows);
            transpose(sums.data(), lane.dB + a * lane.r, lane.r, m);
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
