/* Kafka's variable-length integers. */
#ifndef MP_VARINT_H
#define MP_VARINT_H

#include <stdint.h>

static inline uint32_t varint_size(uint64_t zigzag) {
    return zigzag == 0 ? 1u : (uint32_t)(70 - __builtin_clzll(zigzag)) / 7u;
}

static inline uint64_t zigzag(int64_t value) {
    return (uint64_t)value << 1 ^ (uint64_t)(value >> 63);
}

static inline int64_t unzigzag(uint64_t value) {
    return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

static __attribute__((noinline, cold, unused)) uint8_t *put_long_varint(uint8_t *at, uint64_t value) {
    while (value >= 0x80) {
        *at++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *at++ = (uint8_t)value;
    return at;
}

static inline uint8_t *put_varint(uint8_t *at, uint64_t value) {
    if (__builtin_expect(value >= 0x4000, 0)) return put_long_varint(at, value);
    if (value < 0x80) {
        *at = (uint8_t)value;
        return at + 1;
    }
    at[0] = (uint8_t)(value | 0x80);
    at[1] = (uint8_t)(value >> 7);
    return at + 2;
}

#endif
