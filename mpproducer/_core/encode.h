/* A record's bytes, in one slot or across several. Included by append.c. */
#ifndef MP_ENCODE_H
#define MP_ENCODE_H

#include "orders.h"
#include "run.h"

#include <string.h>

/* What a single append does not need must not be where its registers and instructions are. */
#define SELDOM __attribute__((noinline, cold))

/* Where the next byte of a chain goes. Crossing a slot's end follows `next`. */
struct cursor {
    const struct mp_region *region;
    uint32_t slot;
    uint32_t used; /* bytes used in that slot, up to MP_SLOT_BYTES */
};

static void put_bytes(struct cursor *at, const uint8_t *bytes, size_t length) {
    while (length > 0) {
        if (at->used == MP_SLOT_BYTES) {
            at->slot = atomic_load_explicit(&at->region->slot[at->slot].next, RELAXED);
            at->used = 0;
        }
        const size_t room = MP_SLOT_BYTES - at->used;
        const size_t part = length < room ? length : room;
        memcpy(mp_payload(at->region, at->slot) + at->used, bytes, part);
        bytes += part;
        length -= part;
        at->used += (uint32_t)part;
    }
}

static inline uint8_t *put_field(uint8_t *at, const uint8_t *bytes, int32_t length) {
    at = put_varint(at, zigzag(length));
    if (length > 0) {
        memcpy(at, bytes, (size_t)length);
        at += length;
    }
    return at;
}

/* Writes the record where a slot has room for its bound, and returns its end. The length comes first
 * and is known last: the size of the length is guessed from `least`, and a wrong guess is one byte
 * short. */
static inline uint8_t *encode_flat(uint8_t *start, const struct mp_record record, uint32_t least,
                                   uint64_t delta, uint32_t index) {
    const uint32_t guess = least < 64 ? 1 : least < 8192 ? 2 : 3;
    uint8_t *body = start + guess, *at = body;
    *at++ = 0;
    at = put_varint(at, delta);
    at = put_varint(at, (uint64_t)index << 1);
    at = put_field(at, record.key, record.key_bytes);
    at = put_field(at, record.value, record.value_bytes);
    if (record.headers) {
        memcpy(at, record.headers, record.headers_bytes);
        at += record.headers_bytes;
    } else {
        *at++ = 0;
    }
    const uint32_t bytes = (uint32_t)(at - body);
    if (__builtin_expect((bytes < 64 ? 1u : bytes < 8192 ? 2u : 3u) != guess, 0)) {
        memmove(body + 1, body, bytes);
        at++;
    }
    put_varint(start, zigzag(bytes));
    return at;
}

/* Writes the record where it may cross from slot to slot. */
SELDOM static void encode(const struct mp_region *region, uint32_t slot, uint32_t used,
                   const struct mp_record *record, uint64_t delta, uint32_t index, uint32_t body) {
    static const uint8_t no_headers = 0;
    uint8_t head[48];
    struct cursor out = {region, slot, used};
    uint8_t *at = put_varint(head, zigzag(body));
    *at++ = 0;
    at = put_varint(at, delta);
    at = put_varint(at, (uint64_t)index << 1);
    at = put_varint(at, zigzag(record->key_bytes));
    put_bytes(&out, head, (size_t)(at - head));
    if (record->key_bytes > 0) put_bytes(&out, record->key, (size_t)record->key_bytes);
    at = put_varint(head, zigzag(record->value_bytes));
    put_bytes(&out, head, (size_t)(at - head));
    if (record->value_bytes > 0) put_bytes(&out, record->value, (size_t)record->value_bytes);
    if (record->headers)
        put_bytes(&out, record->headers, record->headers_bytes);
    else
        put_bytes(&out, &no_headers, 1);
}

#endif
