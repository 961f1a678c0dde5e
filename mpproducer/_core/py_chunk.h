/* A part of the records of one send_many: decoded, then appended. */
#ifndef MP_PY_CHUNK_H
#define MP_PY_CHUNK_H

#include "py_columns.h"

/* Of a chunk that is appended, and of Python objects that are decoded at once. */
#define CHUNK_BYTES (UINT64_C(1) << 20)

struct chunk {
    uint32_t room; /* records */
    struct mp_value *values, *keys;
    struct mp_record *records;     /* NULL: each is a value and nothing else */
    const struct mp_record **list; /* of them, as they are appended */
    uint32_t record_count;
    Py_buffer *views;
    uint32_t view_count;
};

/* 0, or -1 with MemoryError; undone by chunk_free either way. */
int chunk_make(struct chunk *chunk, uint32_t room, int plain, int keyed);
void chunk_free(struct chunk *chunk);

/* Decodes `count` records from `at` on. Returns how many fit the chunk, or -1 with an exception; the
 * bits of each value's length are set in *sizes. What they point to is given back by chunk_release. */
Py_ssize_t chunk_read(struct chunk *chunk, struct column *values, struct column *keys,
                      struct column *headers, Py_ssize_t at, uint32_t count, int64_t now_ms,
                      uint64_t *sizes);
void chunk_release(struct chunk *chunk);

/* A record of the list. */
static inline struct mp_record chunk_record(const struct chunk *chunk, uint32_t at,
                                            int64_t now_ms) {
    return chunk->records ? *chunk->list[at] : mp_plain_record(&chunk->values[at], now_ms);
}

#endif
