/* Records that are being written behind the committed end of a batch which the writer owns. */
#ifndef MP_RUN_H
#define MP_RUN_H

#include "append.h"
#include "varint.h"

/* A run ends when it has written that much: a few microseconds of ownership, far below the time
 * after which others seal the batch. */
#define MP_RUN_BYTES (32u * 1024u)

struct mp_run {
    uint64_t batch_id;
    uint32_t slot, index;  /* head of the batch, index of the next record in it */
    uint32_t end, last;    /* bytes of the batch, and of its last record */
    uint32_t tail, have;   /* last slot of the chain, and slots in it */
    uint32_t first, more;  /* those that the run added */
};

/* Body length of the record: everything after its own length field. */
static inline uint32_t body_size(const struct mp_record *record, uint64_t delta, uint32_t index) {
    const uint32_t key = record->key_bytes > 0 ? (uint32_t)record->key_bytes : 0u;
    const uint32_t value = record->value_bytes > 0 ? (uint32_t)record->value_bytes : 0u;
    return 1u + varint_size(delta) + varint_size((uint64_t)index << 1) +
           varint_size(zigzag(record->key_bytes)) + key +
           varint_size(zigzag(record->value_bytes)) + value +
           (record->headers ? record->headers_bytes : 1u);
}

/* A record that may need more slots, behind run->end. Returns its size, or 0: there is no memory. */
uint32_t mp_write_across(struct mp_writer *writer, struct mp_run *run,
                         const struct mp_record *record, uint64_t delta);

/* Writes as many of the values as fit, and returns how many: 0 when there is no memory. */
uint32_t mp_write_values(struct mp_writer *writer, struct mp_run *run,
                         const struct mp_value *values, uint32_t count, int64_t timestamp_ms);

#endif
