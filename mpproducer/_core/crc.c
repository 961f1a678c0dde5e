/* One instruction takes 8 bytes and needs 3 cycles, but three can be under way: so three lanes side
 * by side, whose checksums are shifted to their places and put together. Without the instruction,
 * eight tables. */
#include "crc.h"

#include <pthread.h>
#include <string.h>

#if defined(MP_CRC_TABLES) /* tests: as on a machine without the instruction */
#elif defined(__x86_64__)
#include <nmmintrin.h>
#define HARDWARE __attribute__((target("sse4.2")))
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

static uint32_t table[8][256];     /* eight bytes at a time */
static uint32_t power[64];         /* x^(2^n) modulo the polynomial */
static uint32_t behind[2][4][256]; /* a checksum's bytes, moved by one lane and by two */
#ifdef HARDWARE
static int hardware;
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

/* The factor that moves a checksum by `length` bytes: x^(8 * length). */
static uint32_t shift(uint64_t length) {
    uint32_t factor = UINT32_C(1) << 31;
    for (uint32_t n = 3; length; length >>= 1, n++)
        if (length & 1) factor = multiply(power[n % 64], factor);
    return factor;
}

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

uint32_t mp_crc32c(uint32_t crc, const uint8_t *data, size_t length) {
    pthread_once(&once, prepare);
#ifdef HARDWARE
    if (hardware) return ~by_steps(~crc, data, length);
#endif
    return ~by_tables(~crc, data, length);
}

uint32_t mp_crc32c_join(uint32_t first, uint32_t second, uint64_t length) {
    pthread_once(&once, prepare);
    return multiply(shift(length), first) ^ second;
}
