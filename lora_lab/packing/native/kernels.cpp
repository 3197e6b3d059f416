// The memory-bound parts of a packed step on a CPU, each in one pass over its rows.
//
// Matrix products stay with the library (oneDNN). What lies between them - norms, rotary positions, the causal softmax,
// gated activations, dropout, cross-entropy - is a chain of element-wise operations in PyTorch, each of which reads and
// writes all rows once more. Arithmetic is float32; tensors are bfloat16 or float32. Every row is computed by itself, so
// that a lane's NaN stays in the lane. Built and called by native/__init__.py; no state, no allocation.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

using bf16 = uint16_t;

inline float load(const float* p) { return *p; }
inline float load(const bf16* p) {
    uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(bf16* p, float value) {  // to nearest, ties to even; a NaN stays a NaN
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    *p = static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline float rounded(float value, const float*) { return value; }
inline float rounded(float value, const bf16*) {
    bf16 narrow;
    store(&narrow, value);
    return load(&narrow);
}

// exp by Cody-Waite reduction and a degree-6 polynomial: relative error below 2e-7, and in the reach of a vectoriser.
inline float exponential(float x) {
    float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);  // a NaN passes through
    float n = __builtin_rintf(clamped * 1.44269504f);
    int32_t whole = static_cast<int32_t>(n);
    float r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, clamped));  // fma: not reassociated
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t power = (whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    float value = p * scale;
    return x < -87.0f ? 0.0f : value;
}

// The largest of n values, NaN left out; sixteen running maxima, which a vectoriser keeps in one register.
template <class T>
inline float largest(const T* values, int64_t n) {
    float tops[16], top = -std::numeric_limits<float>::infinity();
    for (int l = 0; l < 16; l++) tops[l] = top;
    int64_t j = 0;
    for (; j + 16 <= n; j += 16)
        for (int l = 0; l < 16; l++) {
            float value = load(values + j + l);
            tops[l] = value > tops[l] ? value : tops[l];
        }
    for (; j < n; j++) {
        float value = load(values + j);
        top = value > top ? value : top;
    }
    for (int l = 0; l < 16; l++) top = tops[l] > top ? tops[l] : top;
    return top;
}

template <class Word>  // 32 bits, or a vector of them
inline Word mixed(Word h) {  // lowbias32, https://nullprogram.com/blog/2018/07/31/
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    h ^= h >> 16;
    return h;
}

template <class T>
void add_norm(const T* x, const T* delta, const T* weight, T* sum, T* y, float* rstd, int64_t rows, int64_t d, float eps,
              float offset) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T* source = x + i * d;
        if (delta != nullptr) {
            const T* more = delta + i * d;
            T* total = sum + i * d;
            for (int64_t j = 0; j < d; j++) store(total + j, load(source + j) + load(more + j));
            source = total;
        }
        float squares = 0.0f;
        for (int64_t j = 0; j < d; j++) {
            float value = load(source + j);
            squares += value * value;
        }
        float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(d) + eps);
        rstd[i] = scale;
        T* out = y + i * d;
        for (int64_t j = 0; j < d; j++)
            store(out + j, rounded(load(source + j) * scale, source) * (load(weight + j) + offset));
    }
}

template <class T>
void add_norm_backward(const T* dy, const T* x, const T* weight, const float* rstd, const T* dsum, T* dx, int64_t rows,
                       int64_t d, float offset) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *g = dy + i * d, *source = x + i * d, *more = dsum == nullptr ? nullptr : dsum + i * d;
        float scale = rstd[i], dot = 0.0f;
        for (int64_t j = 0; j < d; j++) dot += load(g + j) * (load(weight + j) + offset) * load(source + j);
        dot *= scale * scale / static_cast<float>(d);
        T* out = dx + i * d;
        if (more == nullptr)
            for (int64_t j = 0; j < d; j++)
                store(out + j, scale * (load(g + j) * (load(weight + j) + offset) - load(source + j) * dot));
        else
            for (int64_t j = 0; j < d; j++)
                store(out + j,
                      load(more + j) + scale * (load(g + j) * (load(weight + j) + offset) - load(source + j) * dot));
    }
}

template <class T>
void swiglu(const T* gate_up, T* y, int64_t rows, int64_t m) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *gate = gate_up + 2 * i * m, *up = gate + m;
        T* out = y + i * m;
        for (int64_t j = 0; j < m; j++) {
            float g = load(gate + j);
            store(out + j, rounded(g / (1.0f + exponential(-g)), gate) * load(up + j));
        }
    }
}

template <class T>
void swiglu_backward(const T* dy, const T* gate_up, T* dgate_up, int64_t rows, int64_t m) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *d = dy + i * m, *gate = gate_up + 2 * i * m, *up = gate + m;
        T *dgate = dgate_up + 2 * i * m, *dup = dgate + m;
        for (int64_t j = 0; j < m; j++) {
            float g = load(gate + j), s = 1.0f / (1.0f + exponential(-g)), grad = load(d + j);
            store(dgate + j, grad * load(up + j) * s * (1.0f + g * (1.0f - s)));
            store(dup + j, grad * g * s);
        }
    }
}

// qkv (rows, (heads + 2 kv) d) to q (s, kv, groups, t, d), k and v (s, kv, t, d); row -1 is a position past a sequence's
// end and becomes zeros. cos and sin are (positions, d / 2), float32: rotation of halves, as in Llama.
template <class T>
void split_rotate(const T* qkv, const int64_t* index, const int64_t* position, const float* cosine, const float* sine,
                  T* q, T* k, T* v, int64_t sequences, int64_t t, int64_t kv, int64_t groups, int64_t d) {
    int64_t heads = kv * groups, width = (heads + 2 * kv) * d, half = d / 2;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t i = 0; i < t; i++) {
            int64_t row = index[s * t + i];
            for (int64_t h = 0; h < heads + 2 * kv; h++) {
                T* out = h < heads ? q + (((s * kv + h / groups) * groups + h % groups) * t + i) * d
                         : h < heads + kv ? k + ((s * kv + h - heads) * t + i) * d
                                          : v + ((s * kv + h - heads - kv) * t + i) * d;
                if (row < 0) {
                    std::memset(out, 0, sizeof(T) * d);
                    continue;
                }
                const T* in = qkv + row * width + h * d;
                if (h >= heads + kv) {
                    std::memcpy(out, in, sizeof(T) * d);
                    continue;
                }
                const float *c = cosine + position[row] * half, *n = sine + position[row] * half;
                for (int64_t j = 0; j < half; j++) {
                    float a = load(in + j), b = load(in + half + j);
                    store(out + j, a * c[j] - b * n[j]);
                    store(out + half + j, b * c[j] + a * n[j]);
                }
            }
        }
}

template <class T>
void split_rotate_backward(const T* dq, const T* dk, const T* dv, const int64_t* index, const int64_t* position,
                           const float* cosine, const float* sine, T* dqkv, int64_t sequences, int64_t t, int64_t kv,
                           int64_t groups, int64_t d) {
    int64_t heads = kv * groups, width = (heads + 2 * kv) * d, half = d / 2;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t i = 0; i < t; i++) {
            int64_t row = index[s * t + i];
            if (row < 0) continue;
            for (int64_t h = 0; h < heads + 2 * kv; h++) {
                const T* in = h < heads ? dq + (((s * kv + h / groups) * groups + h % groups) * t + i) * d
                              : h < heads + kv ? dk + ((s * kv + h - heads) * t + i) * d
                                               : dv + ((s * kv + h - heads - kv) * t + i) * d;
                T* out = dqkv + row * width + h * d;
                if (h >= heads + kv) {
                    std::memcpy(out, in, sizeof(T) * d);
                    continue;
                }
                const float *c = cosine + position[row] * half, *n = sine + position[row] * half;
                for (int64_t j = 0; j < half; j++) {
                    float a = load(in + j), b = load(in + half + j);
                    store(out + j, a * c[j] + b * n[j]);
                    store(out + half + j, b * c[j] - a * n[j]);
                }
            }
        }
}

// heads (s, kv, groups, t, d) to rows (rows, kv groups d), and back; positions past the end are skipped, or zeros.
template <class T>
void join_heads(const T* heads, const int64_t* index, T* rows, int64_t sequences, int64_t t, int64_t h, int64_t d,
                int64_t back) {
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t i = 0; i < t; i++) {
            int64_t row = index[s * t + i];
            for (int64_t g = 0; g < h; g++) {
                T *inner = const_cast<T*>(heads) + ((s * h + g) * t + i) * d, *outer = rows + (row * h + g) * d;
                if (!back && row >= 0) std::memcpy(outer, inner, sizeof(T) * d);
                if (back && row >= 0) std::memcpy(inner, outer, sizeof(T) * d);
                if (back && row < 0) std::memset(inner, 0, sizeof(T) * d);
            }
        }
}

// scores (blocks, t, t) to weights, in place: row i of a block sees positions 0 ... i, at most window of them.
template <class T>
void causal_softmax(T* scores, int64_t blocks, int64_t t, int64_t window, float scale) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = 0; i < t; i++) {
            T* row = scores + (b * t + i) * t;
            int64_t first = i + 1 > window ? i + 1 - window : 0;
            float top = largest(row + first, i + 1 - first), sum = 0.0f;
            for (int64_t j = first; j <= i; j++) sum += exponential((load(row + j) - top) * scale);
            float inverse = 1.0f / sum;
            for (int64_t j = 0; j < first; j++) store(row + j, 0.0f);
            for (int64_t j = first; j <= i; j++) store(row + j, exponential((load(row + j) - top) * scale) * inverse);
            for (int64_t j = i + 1; j < t; j++) store(row + j, 0.0f);
        }
}

template <class T>
void causal_softmax_backward(const T* weights, T* dweights, int64_t blocks, int64_t t, int64_t window, float scale) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t i = 0; i < t; i++) {
            const T* w = weights + (b * t + i) * t;
            T* d = dweights + (b * t + i) * t;
            int64_t first = i + 1 > window ? i + 1 - window : 0;
            float dot = 0.0f;
            for (int64_t j = first; j <= i; j++) dot += load(w + j) * load(d + j);
            for (int64_t j = 0; j < first; j++) store(d + j, 0.0f);
            for (int64_t j = first; j <= i; j++) store(d + j, load(w + j) * (load(d + j) - dot) * scale);
            for (int64_t j = i + 1; j < t; j++) store(d + j, 0.0f);
        }
}

template <class T>
void cross_entropy(const T* logits, const int64_t* labels, float* losses, float* normalisers, uint8_t* hits, int64_t n,
                   int64_t vocabulary) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const T* row = logits + i * vocabulary;
        float top = largest(row, vocabulary), sum = 0.0f;
        for (int64_t j = 0; j < vocabulary; j++) sum += exponential(load(row + j) - top);
        float mine = load(row + labels[i]), wide = top + __builtin_logf(sum);
        bool first = mine == top;  // the arg-max is the first of equals
        for (int64_t j = 0; first && j < labels[i]; j++) first = load(row + j) != top;
        normalisers[i] = wide;
        losses[i] = wide - mine;
        hits[i] = first;
    }
}

template <class T>
void cross_entropy_backward(const T* logits, const int64_t* labels, const float* normalisers, const float* grads, T* out,
                            int64_t n, int64_t vocabulary) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const T* row = logits + i * vocabulary;
        T* target = out + i * vocabulary;
        float wide = normalisers[i], grad = grads[i];
        float mine = (exponential(load(row + labels[i]) - wide) - 1.0f) * grad;
        for (int64_t j = 0; j < vocabulary; j++) store(target + j, exponential(load(row + j) - wide) * grad);
        store(target + labels[i], mine);
    }
}

// out = x * scale where hash(seed, element) < limit, else 0. (out may be x.)
template <class T>
void dropout(const T* x, T* out, int64_t elements, int64_t seed, int64_t limit, float scale) {
    const uint32_t key = static_cast<uint32_t>(seed), below = static_cast<uint32_t>(limit);
#pragma omp parallel for schedule(static)
    for (int64_t a = 0; a < elements; a += 4096) {
        const int32_t n = static_cast<int32_t>(elements - a < 4096 ? elements - a : 4096);
#pragma GCC ivdep
        for (int32_t j = 0; j < n; j++) {
            uint32_t noise = mixed(mixed(static_cast<uint32_t>(a) + static_cast<uint32_t>(j)) ^ key);
            float value = load(x + a + j) * scale;
            store(out + a + j, noise < below ? value : 0.0f);
        }
    }
}

// rows[index] to blocks, -1 to zeros; and rows[index] += blocks.
template <class T>
void gather(const T* rows, const int64_t* index, T* blocks, int64_t n, int64_t d) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        if (index[i] < 0)
            std::memset(blocks + i * d, 0, sizeof(T) * d);
        else
            std::memcpy(blocks + i * d, rows + index[i] * d, sizeof(T) * d);
    }
}

template <class T>
void scatter_add(T* rows, const int64_t* index, const T* blocks, int64_t n, int64_t d, int64_t stride, int64_t offset) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        if (index[i] < 0) continue;
        T* row = rows + index[i] * stride + offset;
        for (int64_t j = 0; j < d; j++) store(row + j, load(row + j) + load(blocks + i * d + j));
    }
}

}  // namespace

#define BOTH(T, suffix)                                                                                                 \
    extern "C" void add_norm_##suffix(const T* x, const T* delta, const T* w, T* sum, T* y, float* rstd, int64_t rows,  \
                                      int64_t d, float eps, float offset) {                                             \
        add_norm(x, delta, w, sum, y, rstd, rows, d, eps, offset);                                                      \
    }                                                                                                                   \
    extern "C" void add_norm_backward_##suffix(const T* dy, const T* x, const T* w, const float* rstd, const T* dsum,   \
                                               T* dx, int64_t rows, int64_t d, float offset) {                          \
        add_norm_backward(dy, x, w, rstd, dsum, dx, rows, d, offset);                                                   \
    }                                                                                                                   \
    extern "C" void swiglu_##suffix(const T* x, T* y, int64_t rows, int64_t m) { swiglu(x, y, rows, m); }               \
    extern "C" void swiglu_backward_##suffix(const T* dy, const T* x, T* dx, int64_t rows, int64_t m) {                 \
        swiglu_backward(dy, x, dx, rows, m);                                                                            \
    }                                                                                                                   \
    extern "C" void split_rotate_##suffix(const T* qkv, const int64_t* index, const int64_t* position, const float* c,  \
                                          const float* n, T* q, T* k, T* v, int64_t sequences, int64_t t, int64_t kv,   \
                                          int64_t groups, int64_t d) {                                                  \
        split_rotate(qkv, index, position, c, n, q, k, v, sequences, t, kv, groups, d);                                 \
    }                                                                                                                   \
    extern "C" void split_rotate_backward_##suffix(const T* dq, const T* dk, const T* dv, const int64_t* index,         \
                                                   const int64_t* position, const float* c, const float* n, T* dqkv,    \
                                                   int64_t sequences, int64_t t, int64_t kv, int64_t groups,            \
                                                   int64_t d) {                                                         \
        split_rotate_backward(dq, dk, dv, index, position, c, n, dqkv, sequences, t, kv, groups, d);                    \
    }                                                                                                                   \
    extern "C" void join_heads_##suffix(T* heads, const int64_t* index, T* rows, int64_t sequences, int64_t t,          \
                                        int64_t h, int64_t d, int64_t back) {                                           \
        join_heads(heads, index, rows, sequences, t, h, d, back);                                                       \
    }                                                                                                                   \
    extern "C" void causal_softmax_##suffix(T* scores, int64_t blocks, int64_t t, int64_t window, float scale) {        \
        causal_softmax(scores, blocks, t, window, scale);                                                               \
    }                                                                                                                   \
    extern "C" void causal_softmax_backward_##suffix(const T* w, T* dw, int64_t blocks, int64_t t, int64_t window,      \
                                                     float scale) {                                                     \
        causal_softmax_backward(w, dw, blocks, t, window, scale);                                                       \
    }                                                                                                                   \
    extern "C" void cross_entropy_##suffix(const T* logits, const int64_t* labels, float* losses, float* normalisers,   \
                                           uint8_t* hits, int64_t n, int64_t vocabulary) {                              \
        cross_entropy(logits, labels, losses, normalisers, hits, n, vocabulary);                                        \
    }                                                                                                                   \
    extern "C" void cross_entropy_backward_##suffix(const T* logits, const int64_t* labels, const float* normalisers,   \
                                                    const float* grads, T* out, int64_t n, int64_t vocabulary) {        \
        cross_entropy_backward(logits, labels, normalisers, grads, out, n, vocabulary);                                 \
    }                                                                                                                   \
    extern "C" void dropout_##suffix(const T* x, T* out, int64_t elements, int64_t seed, int64_t limit,                 \
                                     float scale) {                                                                     \
        dropout(x, out, elements, seed, limit, scale);                                                                  \
    }                                                                                                                   \
    extern "C" void gather_##suffix(const T* rows, const int64_t* index, T* blocks, int64_t n, int64_t d) {             \
        gather(rows, index, blocks, n, d);                                                                              \
    }                                                                                                                   \
    extern "C" void scatter_add_##suffix(T* rows, const int64_t* index, const T* blocks, int64_t n, int64_t d,          \
                                         int64_t stride, int64_t offset) {                                              \
        scatter_add(rows, index, blocks, n, d, stride, offset);                                                                 \
    }

BOTH(bf16, bf16)
BOTH(float, f32)

#include "lowrank.hpp"
#include "path_attention.hpp"
#include "unpack.hpp"
