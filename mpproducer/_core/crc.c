/* Three ways, the best that the processor knows:
 * - Folding: four registers of 64 bytes, moved on by carry-less multiplication.
 * - An instruction takes 8 bytes and needs 3 cycles, but three can be under way: so three lanes side
 *   by side, whose checksums are shifted to their places and put together.
 * - Eight tables. */
#include "crc.h"

#include <pthread.h>
#include <string.h>

#if defined(MP_CRC_TABLES) /* tests: as on a machine without the instruction */
#elif defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__) && __clang_major__ >= 14 /* a feature by itself, which Zig switches off */
#define CRC32 "sse4.2,crc32"
#else
#define CRC32 "sse4.2"
#endif
#if !defined(MP_CRC_LANES) /* tests: as on a machine without wide multiplication */
#define FOLDING __attribute__((target("avx512f,pclmul,vpclmulqdq," CRC32)))
#define HAS_FOLDING() \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("pclmul") && \
     __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("sse4.2"))
#endif
#define HARDWARE __attribute__((target(CRC32)))
#define STEP(crc, word) _mm_crc32_u64(crc, word)
#define HAS_STEP() __builtin_cpu_supports("sse4.2")
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define HARDWARE __attribute__((target("+crc")))
#define STEP(crc, word) __builtin_aarch64_crc32cx((uint32_t)(crc), word)
#define HAS_STEP() (getauxval(AT_HWCAP) & (1ul << 7)) /* HWCAP_CRC32 */
#endif

#define POLYNOMIAL UINT32_C(0x82f63b78) /* Castagnoli, bits reversed */
#define LANE MP_CRC_LANE
#define FOLD_BYTES 256u  /* moved at once: four registers */
#define AHEAD_BYTES 2048 /* another core wrote what comes: asked for early, across pages too */

static uint32_t table[8][256];     /* eight bytes at a time */
static uint32_t power[64];         /* x^(2^n) modulo the polynomial */
static uint32_t behind[2][4][256]; /* a checksum's bytes, moved by one lane and by two */
#ifdef HARDWARE
static int hardware;
#endif
#ifdef FOLDING
static int folding;
static uint64_t fold_by[3][2]; /* factors of the two halves of 16 bytes that move by FOLD[i] */
#endif
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* a * b modulo the polynomial. */
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (; a; a <<= 1) {
        product ^= b & (0u - (a >> 31));
        b = b >> 1 ^ (POLYNOMIAL & (0u - (b & 1)));
    }
    return product;
}

/* x^bits modulo the polynomial. */
static uint32_t x_to(uint64_t bits) {
    uint32_t factor = UINT32_C(1) << 31;
    for (uint32_t n = 0; bits; bits >>= 1, n++)
        if (bits & 1) factor = multiply(power[n], factor);
    return factor;
}

/* The factor that moves a checksum by `length` bytes. */
static uint32_t shift(uint64_t length) { return x_to(8 * length); }

static void prepare(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (POLYNOMIAL & (0u - (crc & 1)));
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int n = 1; n < 8; n++)
            table[n][i] = table[n - 1][i] >> 8 ^ table[0][table[n - 1][i] & 0xff];
    power[0] = UINT32_C(1) << 30;
    for (int n = 1; n < 64; n++) power[n] = multiply(power[n - 1], power[n - 1]);
    for (uint32_t lanes = 0; lanes < 2; lanes++)
        for (uint32_t byte = 0; byte < 4; byte++)
            for (uint32_t i = 0; i < 256; i++)
                behind[lanes][byte][i] = multiply(shift((lanes + 1) * LANE), i << 8 * byte);
#ifdef HARDWARE
    hardware = HAS_STEP() != 0;
#endif
#ifdef FOLDING
    /* The product of reversed numbers of 64 and 32 bits comes out 33 bits too high; the first half
     * of 16 bytes stands 64 bits above the second. */
    static const uint64_t distance[] = {FOLD_BYTES, 64, 16};
    for (int i = 0; i < 3; i++) {
        fold_by[i][0] = x_to(8 * distance[i] + 64 - 33);
        fold_by[i][1] = x_to(8 * distance[i] - 33);
    }
    folding = HAS_FOLDING() != 0;
#endif
}

static inline uint64_t word_at(const uint8_t *data) {
    uint64_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

static uint32_t by_tables(uint32_t crc, const uint8_t *data, size_t length) {
    for (; length >= 8; length -= 8, data += 8) {
        const uint64_t word = word_at(data) ^ crc;
        crc = 0;
        for (int n = 0; n < 8; n++) crc ^= table[7 - n][word >> 8 * n & 0xff];
    }
    for (; length > 0; length--) crc = crc >> 8 ^ table[0][(crc ^ *data++) & 0xff];
    return crc;
}

#ifdef HARDWARE
static inline uint32_t moved(uint32_t crc, uint32_t lanes) {
    const uint32_t(*by)[256] = behind[lanes - 1];
    return by[0][crc & 0xff] ^ by[1][crc >> 8 & 0xff] ^ by[2][crc >> 16 & 0xff] ^ by[3][crc >> 24];
}

HARDWARE static uint32_t by_steps(uint32_t crc, const uint8_t *data, size_t length) {
    for (; length >= 3 * LANE; length -= 3 * LANE, data += 3 * LANE) {
        uint64_t a = crc, b = 0, c = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            a = STEP(a, word_at(data + i));
            b = STEP(b, word_at(data + LANE + i));
            c = STEP(c, word_at(data + 2 * LANE + i));
        }
        crc = moved((uint32_t)a, 2) ^ moved((uint32_t)b, 1) ^ (uint32_t)c;
    }
    uint64_t rest = crc;
    for (; length >= 8; length -= 8, data += 8) rest = STEP(rest, word_at(data));
    return by_tables((uint32_t)rest, data, length);
}
#endif

#ifdef FOLDING
/* Each 16 bytes of `sum` moved on by what `by` says, and added to `next`. */
FOLDING static inline __m512i moved_on(__m512i sum, __m512i by, __m512i next) {
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, by, 0x00),
                                     _mm512_clmulepi64_epi128(sum, by, 0x11), next, 0x96);
}

FOLDING static inline __m512i factors(const uint64_t *by) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)by));
}

/* Carries the sum of every 256 bytes on to the next 256; what comes out at the end goes through the
 * steps. At least 256 bytes; those behind the last whole 256 are left over. */
FOLDING static uint32_t by_folding(uint32_t crc, const uint8_t *data, size_t length,
                                   size_t *left_over) {
    __m512i sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_si512(data + 64 * i);
    sum[0] = _mm512_xor_si512(sum[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    const __m512i far = factors(fold_by[0]), near = factors(fold_by[1]);
    const uint8_t *at = data + FOLD_BYTES;
    for (; (size_t)(data + length - at) >= FOLD_BYTES; at += FOLD_BYTES)
        for (int i = 0; i < 4; i++) {
            _mm_prefetch(at + 64 * i + AHEAD_BYTES, _MM_HINT_T0);
            sum[i] = moved_on(sum[i], far, _mm512_loadu_si512(at + 64 * i));
        }
    for (int i = 1; i < 4; i++) sum[i] = moved_on(sum[i - 1], near, sum[i]);
    uint64_t word[8];
    _mm512_storeu_si512(word, sum[3]);
    *left_over = (size_t)(data + length - at);
    const __m128i by = _mm_loadu_si128((const __m128i *)fold_by[2]);
    __m128i last = _mm_loadu_si128((const __m128i *)word);
    for (int i = 2; i < 8; i += 2) {
        const __m128i low = _mm_clmulepi64_si128(last, by, 0x00);
        const __m128i high = _mm_clmulepi64_si128(last, by, 0x11);
        last = _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128((__m128i *)(word + i)));
    }
    _mm_storeu_si128((__m128i *)word, last);
    return (uint32_t)STEP(STEP(0, word[0]), word[1]);
}
#endif

uint32_t mp_crc32c(uint32_t crc, const uint8_t *data, size_t length) {
    pthread_once(&once, prepare);
#ifdef FOLDING
    if (folding && length >= FOLD_BYTES) {
        size_t left_over;
        const uint32_t sum = by_folding(~crc, data, length, &left_over);
        return ~by_steps(sum, data + length - left_over, left_over);
    }
#endif
#ifdef HARDWARE
    if (hardware) return ~by_steps(~crc, data, length);
#endif
    return ~by_tables(~crc, data, length);
}

uint32_t mp_crc32c_join(uint32_t first, uint32_t second, uint64_t length) {
    pthread_once(&once, prepare);
    return multiply(shift(length), first) ^ second;
}
