// Attention of rows that share their beginnings: each stretch of rows looks back along its own path of places.
//
// Paths are short and many (a question's words, an answer's), so a library call for each would cost more than it
// computes. A task is one stretch of one lane under one key-value head: its keys and values are gathered and widened
// once for all its queries, products and softmax are float32. What all stretches have in common is a matrix product of
// the caller's, before (scores) and after (weights).

#pragma once

#include "lowrank.hpp"

struct Stretch {
    int64_t first, rows;   // of a lane's rows
    int64_t offset, length;  // of its last row's path among all paths; a row before it sees one place less
};

namespace {

// Weights of one query from its scores, both parts in place: shared (a, common), own (b, seen). What lies outside are
// places that are not seen; they become zeros.
template <class T>
inline void path_softmax(T* shared, int64_t a, int64_t common, float* own, int64_t b, int64_t seen, int64_t width,
                         float scale) {
    float top = largest(own + b, seen - b), sum = 0.0f;
    if (a < common) {
        float other = largest(shared + a, common - a) * scale;
        top = other > top ? other : top;
        for (int64_t j = a; j < common; j++) sum += exponential(load(shared + j) * scale - top);
    }
    for (int64_t j = b; j < seen; j++) {
        own[j] = exponential(own[j] - top);
        sum += own[j];
    }
    float share = 1.0f / sum;
    for (int64_t j = 0; j < b; j++) own[j] = 0.0f;
    for (int64_t j = b; j < seen; j++) own[j] *= share;
    for (int64_t j = seen; j < width; j++) own[j] = 0.0f;
    for (int64_t j = 0; j < a; j++) store(shared + j, 0.0f);
    for (int64_t j = a; j < common; j++) store(shared + j, exponential(load(shared + j) * scale - top) * share);
}

// q (kv groups, lanes n, d), k and v (kv, lanes, places, d), shared (kv groups, lanes n, common): scores of what all
// stretches see first, overwritten with weights; out (lanes n, kv groups d): what the rest of the paths adds.
template <class T>
void path_attention(const T* q, const T* k, const T* v, T* shared, T* out, const Stretch* stretches, const int64_t* paths,
                    int64_t count, int64_t lanes, int64_t kv, int64_t groups, int64_t n, int64_t places, int64_t common,
                    int64_t d, int64_t window, float scale) {
    const int64_t rows = lanes * n, heads = kv * groups;
#pragma omp parallel
    {
        Scratch key_room, value_room, query_room, score_room, sum_room, wide;
#pragma omp for schedule(dynamic, 4)
        for (int64_t t = 0; t < lanes * kv * count; t++) {
            const int64_t lane = t / (kv * count), h = t / count % kv;
            const Stretch& stretch = stretches[t % count];
            const int64_t width = stretch.length - common, queries = stretch.rows * groups;
            float *keys = key_room.room(width * d), *values = value_room.room(width * d);
            float *given = query_room.room(queries * d), *scores = score_room.room(queries * width);
            float* sums = sum_room.room(queries * d);
            const int64_t* path = paths + stretch.offset + common;
            for (int64_t j = 0; j < width; j++) {
                const int64_t place = ((h * lanes + lane) * places + path[j]) * d;
                widen(k + place, keys + j * d, d);
                widen(v + place, values + j * d, d);
            }
            for (int64_t i = 0; i < queries; i++) {
                const int64_t row = lane * n + stretch.first + i / groups;
                widen(q + ((h * groups + i % groups) * rows + row) * d, given + i * d, d);
            }
            dots(given, d, keys, d, scores, width, queries, width, d, scale, wide);
            for (int64_t i = 0; i < queries; i++) {
                const int64_t row = lane * n + stretch.first + i / groups, head = h * groups + i % groups;
                const int64_t length = stretch.length - stretch.rows + i / groups + 1;  // of this row's path
                const int64_t begin = std::max<int64_t>(0, length - window);
                path_softmax(shared + (head * rows + row) * common, std::min(begin, common), common, scores + i * width,
                             std::max<int64_t>(0, begin - common), length - common, width, scale);
            }
            combine<false>(scores, width, 1, values, d, sums, d, queries, d, width);
            for (int64_t i = 0; i < queries; i++) {
                T* to = out + ((lane * n + stretch.first + i / groups) * heads + h * groups + i % groups) * d;
                for (int64_t j = 0; j < d; j++) store(to + j, sums[i * d + j]);
            }
        }
    }
}

}  // namespace

#define PATHS(T, suffix)                                                                                                \
    extern "C" void path_attention_##suffix(const T* q, const T* k, const T* v, T* shared, T* out,                      \
                                            const Stretch* stretches, const int64_t* paths, int64_t count,              \
                                            int64_t lanes, int64_t kv, int64_t groups, int64_t n, int64_t places,       \
                                            int64_t common, int64_t d, int64_t window, float scale) {                   \
        path_attention(q, k, v, shared, out, stretches, paths, count, lanes, kv, groups, n, places, common, d, window,  \
                       scale);                                                                                          \
    }

PATHS(bf16, bf16)
PATHS(float, f32)
