// Frozen weights of 4 bits, and of 8, as the numbers they stand for. Included by kernels.cpp.
//
// The layout is bitsandbytes': two weights a byte, the first in the upper half; the weights of a block share a scale,
// which is itself 8 bits where scales are quantised ("double quantisation"). A block's sixteen possible numbers are
// scaled and rounded once, and its weights are looked up among them.

namespace {

// Neither fused nor in another order, so that a weight is bit for bit the one bitsandbytes gives.
#if defined(__clang__)
#define TWO_ROUNDINGS
#define AS_WRITTEN _Pragma("clang fp contract(off) reassociate(off)")
#else
#define AS_WRITTEN
#define TWO_ROUNDINGS __attribute__((noinline, optimize("fp-contract=off", "no-associative-math")))
#endif

// The scales of blocks first ... first + n.
TWO_ROUNDINGS void block_scales(float* out, int64_t first, int64_t n, const float* scales, const uint8_t* narrow,
                                const float* table, const float* wide, int64_t of, const float* offset) {
    AS_WRITTEN
    if (narrow == nullptr) {
        std::memcpy(out, scales + first, sizeof(float) * n);
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = table[narrow[first + i]] * wide[(first + i) / of] + *offset;
}

template <class T>
inline void unpack_block(T* out, const uint8_t* packed, const T* numbers, int64_t n) {
    int64_t j = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    if (sizeof(T) == 2) {  // 64 weights: the lookup is one instruction for 32 of them
        const __m512i table = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers)));
        const __m512i low = _mm512_set1_epi16(0x0f);
        for (; j + 32 <= n; j += 32) {
            const __m128i* from = reinterpret_cast<const __m128i*>(packed + j / 2);
            __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(from));  // one byte, two weights, in 16 bits
            __m256i upper = _mm256_srli_epi16(pairs, 4);
            __m256i lower = _mm256_and_si256(pairs, _mm512_castsi512_si256(low));
            __m256i both = _mm256_or_si256(upper, _mm256_slli_epi16(lower, 8));  // bytes in the weights' order
            _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(both), table));
        }
    }
#endif
    for (; j + 1 < n; j += 2) {
        out[j] = numbers[packed[j / 2] >> 4];
        out[j + 1] = numbers[packed[j / 2] & 15];
    }
    if (j < n) out[j] = numbers[packed[j / 2] >> 4];
}

template <class T>
void unpack4(T* out, const uint8_t* packed, const float* code, int64_t n, int64_t block, const float* scales,
             const uint8_t* narrow, const float* table, const float* wide, int64_t of, const float* offset) {
    constexpr int64_t together = 128;
    const int64_t blocks = (n + block - 1) / block;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b += together) {
        const int64_t count = blocks - b < together ? blocks - b : together;
        float scale[together];
        block_scales(scale, b, count, scales, narrow, table, wide, of, offset);
        const v16 unscaled = load16(code);
        alignas(64) T numbers[16];
        for (int64_t i = 0; i < count; i++) {
            store16(numbers, unscaled * scale[i]);
            const int64_t first = (b + i) * block;
            unpack_block(out + first, packed + first / 2, numbers, n - first < block ? n - first : block);
        }
    }
}

template <class T>
TWO_ROUNDINGS void unpack_row(T* out, const int8_t* whole, float scale, int64_t d) {
    AS_WRITTEN
    for (int64_t j = 0; j < d; j++) store(out + j, (static_cast<float>(whole[j]) * scale) * (1.0f / 127.0f));
}

template <class T>
void unpack8(T* out, const int8_t* whole, const float* scales, int64_t rows, int64_t d) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) unpack_row(out + i * d, whole + i * d, scales[i], d);
}

}  // namespace

#define UNPACK(T, suffix)                                                                                              \
    extern "C" void unpack4_##suffix(T* out, const uint8_t* packed, const float* code, int64_t n, int64_t block,       \
                                     const float* scales, const uint8_t* narrow, const float* table,                   \
                                     const float* wide, int64_t of, const float* offset) {                             \
        unpack4(out, packed, code, n, block, scales, narrow, table, wide, of, offset);                                 \
    }                                                                                                                  \
    extern "C" void unpack8_##suffix(T* out, const int8_t* whole, const float* scales, int64_t rows, int64_t d) {      \
        unpack8(out, whole, scales, rows, d);                                                                          \
    }

UNPACK(bf16, bf16)
UNPACK(float, f32)
