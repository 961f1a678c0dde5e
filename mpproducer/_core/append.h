/* A worker's half of the protocol: encode a record into the partition's open batch, or open one. */
#ifndef MP_APPEND_H
#define MP_APPEND_H

#include "region.h"

/* One record as the caller holds it. Lengths of -1 mean null. */
struct mp_record {
    const uint8_t *key;
    const uint8_t *value;
    const uint8_t *headers; /* header count and headers, already encoded; NULL means none */
    int64_t timestamp_ms;
    int32_t key_bytes;
    int32_t value_bytes;
    uint32_t headers_bytes;
};

/* A value, or a key. */
struct mp_value {
    const uint8_t *data;
    int32_t bytes; /* -1: null */
};

/* A record that is a value and nothing else. */
static inline struct mp_record mp_plain_record(const struct mp_value *value, int64_t timestamp_ms) {
    return (struct mp_record){.value = value->data,
                              .value_bytes = value->bytes,
                              .key_bytes = -1,
                              .timestamp_ms = timestamp_ms};
}

enum mp_status {
    MP_DONE,
    MP_NO_MEMORY, /* nothing appended; `mp_place.units` slots would be needed */
    MP_CLOSED,    /* the region is closed; nothing appended */
    MP_FULL,      /* nothing appended: the batch had no room, and the records may go elsewhere;
                   * granted slots stay in the stash for the next call */
};

/* A batch this process sealed, as its compressor names it. */
struct mp_sealed {
    uint64_t batch_id;
    uint32_t slot;
    uint32_t gen;
    int ours; /* its compression is begun: to be ended or abandoned */
};

#define MP_MAX_SEALED 4u
struct mp_place {
    uint64_t batch_id;
    uint32_t slot;
    uint32_t index;              /* of the first record in its batch */
    uint32_t count, bytes;       /* records appended, and their size */
    uint32_t units;              /* after MP_NO_MEMORY */
    uint32_t lost;               /* races for the batch that others won */
    uint32_t found_full;         /* the batch before this one was sealed by others, full */
    uint32_t sealed_count;       /* batches this call sealed */
    struct mp_sealed sealed[MP_MAX_SEALED];
};

/* What one appending process carries from call to call; never shared. */
#define MP_MAP_SLOTS 16u /* mapped at once: a batch's worth, 256 KiB */
struct mp_writer {
    struct mp_region region;
    uint32_t owner;
    uint32_t stash;      /* slots granted to us and not used yet, chained by next; or MP_NONE */
    int wake_fd;
    uint64_t lost_races; /* turns that another worker's were in the way of */
    uint64_t lost_commits;
    uint64_t steals;
    uint64_t opened;
    uint64_t stale;
    uint64_t mapped[MP_MAX_SLOTS / MP_MAP_SLOTS / 64 + 1]; /* runs of slots whose pages we have */
};

/* Adds to what the processes under this owner id have counted. */
static inline void mp_tally(const struct mp_writer *writer, enum mp_tally_word word, uint64_t by) {
    atomic_fetch_add_explicit(&writer->region.pool->tallies[writer->owner].word[word], by,
                              memory_order_relaxed);
}

/* Bytes of key, value and headers; a null length counts as 0, without a branch. */
static inline uint64_t mp_record_bytes(const struct mp_record *record) {
    return (uint64_t)(record->key_bytes & ~(record->key_bytes >> 31)) +
           (uint64_t)(record->value_bytes & ~(record->value_bytes >> 31)) + record->headers_bytes;
}

/* Upper bound of an encoded record, whatever its place in a batch. */
#define MP_RECORD_OVERHEAD 31u
static inline uint64_t mp_record_bound(const struct mp_record *record) {
    return MP_RECORD_OVERHEAD + mp_record_bytes(record);
}

/* Appends the first `place.count` >= 1 of the records to one batch of the partition, side by side:
 * as many as fit, within a bound on how long the batch is held. The caller comes back for the rest.
 * Records that are not bound to this partition (`roam`) do not open its next batch when they find
 * the present one full: they go where the caller sends them, and leave no batch of one behind. */
enum mp_status mp_append_run(struct mp_writer *writer, uint32_t partition,
                             const struct mp_record *const *records, uint32_t count, int roam,
                             struct mp_place *place);

/* The same for records that are a value and nothing else: no key, no headers, one timestamp. */
enum mp_status mp_append_values(struct mp_writer *writer, uint32_t partition,
                                const struct mp_value *values, uint32_t count,
                                int64_t timestamp_ms, int roam, struct mp_place *place);

/* Whether the batch the records went to is full now: not only the one before it, which had no room
 * for them. Then, or after MP_FULL, unkeyed records move on (KIP-794). */
static inline int mp_filled_batch(const struct mp_place *place) {
    return place->sealed_count > 0 && place->sealed[place->sealed_count - 1].slot == place->slot;
}

enum mp_status mp_append(struct mp_writer *writer, uint32_t partition,
                         const struct mp_record *record, int roam, struct mp_place *place);

/* A slot out of the stash, or claimed; MP_NONE: there is none. */
uint32_t mp_take_slot(struct mp_writer *writer, int extension);
/* Keeps a slot that was claimed and is not placed for the next call. */
void mp_stash_slot(struct mp_writer *writer, uint32_t slot);

/* Gives back `count` extensions from `first` on that no committed byte lies in, and lets the sender serve
 * the next waiter. */
void mp_unextend(struct mp_writer *writer, uint32_t first, uint32_t count);

/* Gives back what mp_append_run left in the stash, and lets the sender serve the next waiter. */
void mp_drop_stash(struct mp_writer *writer);

/* Memory waiter: begin, then slices, then end; between them the caller may release the GIL. */
void mp_wait_begin(struct mp_writer *writer, uint32_t units);
void mp_wait_slice(struct mp_writer *writer, int64_t timeout_ns);
int mp_wait_over(const struct mp_writer *writer);
int mp_wait_end(struct mp_writer *writer); /* 1: granted, the stash holds the slots */

/* Tells the sender that a partition has something to do, now (`sealed`) or when its linger ends: the
 * mark in dirty[], and behind it the wake-up, should it sleep for longer. */
void mp_announce(struct mp_writer *writer, uint32_t partition, int sealed);
void mp_mark(struct mp_region *region, uint32_t partition);
void mp_wake_for_mark(struct mp_writer *writer, int sealed);
/* For a batch whose mark still stands while the sender sleeps: who opened it may have been stopped. */
void mp_wake_for_other(struct mp_writer *writer, uint64_t sleep, uint32_t opened_us);
/* Wakes a sender that sleeps beyond `ready_us` (CLOCK_MONOTONIC). */
void mp_wake_sender(struct mp_writer *writer, uint64_t ready_us);

/* Compression by the worker that filled a batch: begun by mp_append_run (`ours`) before the batch is
 * announced as full, so that the sender, which looks at once, leaves it alone; then end or abandon.
 * While it is ours the sender keeps the batch's memory. end copies the output into slots and
 * publishes it (1), or leaves it to the sender (0). */
int mp_compress_begin(struct mp_writer *writer, struct mp_sealed batch);
int mp_compress_end(struct mp_writer *writer, struct mp_sealed batch, const uint8_t *output,
                    uint32_t bytes);
void mp_compress_abandon(struct mp_writer *writer, struct mp_sealed batch);

#endif
