/* The sender's half of the protocol: find batches, seal, give memory back, serve waiters. */
#ifndef MP_POOL_H
#define MP_POOL_H

#include "region.h"

enum mp_known { MP_UNKNOWN, MP_REPORTED, MP_QUARANTINED };

/* Private to the one sender process; nothing of it is shared. */
struct mp_sender {
    struct mp_region region;
    uint32_t next_index;  /* first partition index not given to a topic */
    uint64_t *next_seq;   /* per partition: first batch_seq not reported yet */
    uint32_t *committed;  /* per slot: byte count of a sealed head, read once at the seal */
    uint8_t *known;       /* per slot: enum mp_known of a head */
    uint8_t *alive;       /* per owner */
    uint32_t *quarantine; /* heads that a stopped writer may still touch */
    uint32_t quarantined;
    uint64_t seen_waiting[MP_OWNER_WORDS];
    uint32_t seen_waiters;
    uint32_t partial_owner; /* waiter at the head of the queue that has got some slots already */
    uint32_t partial_first;
    uint32_t partial_units;
    uint64_t partial_ticket;
    uint32_t epoch; /* of sleeps */
};

struct mp_geometry {
    uint32_t slots, max_partitions, max_topics;
    uint32_t batch_size, max_request_size, linger_us, ignore_keys, compress, generation;
};

/* NULL, or a static text that says what failed. */
const char *mp_sender_open(struct mp_sender *sender, int ctl_fd, int pool_fd,
                           const struct mp_geometry *geometry);
void mp_sender_close(struct mp_sender *sender);

/* Words of the dirty set that can have a bit. */
static inline uint32_t mp_dirty_words(const struct mp_sender *sender) {
    return (sender->next_index + 63) / 64;
}

/* Takes the dirty bits of word `i` of the dirty set. */
uint64_t mp_take_dirty(struct mp_sender *sender, uint32_t i);

/* When the batch in this head slot was opened, not later than now. */
int64_t mp_opened_ns(const struct mp_sender *sender, uint32_t slot, int64_t now_ns);

/* Batches of the partition that were linked since the last call, newest first into `slots`
 * (room for all slots). Returns their count, or -1 when the chain is corrupt. */
int64_t mp_new_batches(struct mp_sender *sender, uint32_t partition, uint32_t *slots,
                       uint64_t *first_seq);

int mp_seal(struct mp_sender *sender, uint32_t slot);
int mp_release(struct mp_sender *sender, uint32_t slot);
uint32_t mp_retry_quarantine(struct mp_sender *sender);
uint32_t mp_reap(struct mp_sender *sender, uint32_t owner);
int mp_owner_reusable(const struct mp_sender *sender, uint32_t owner);

uint32_t mp_waiters(struct mp_sender *sender);
uint32_t mp_grant(struct mp_sender *sender);
uint32_t mp_free_slots(const struct mp_sender *sender);
int mp_sleep_begin(struct mp_sender *sender, uint64_t deadline_us);
void mp_sleep_end(struct mp_sender *sender);

/* Compressed output of a batch: its state now (enum MP_C_*, after trying to take it when NONE). */
uint32_t mp_compressed(struct mp_sender *sender, uint32_t slot, uint32_t *owner, uint32_t *first,
                       uint32_t *bytes);
int mp_take_compression(struct mp_sender *sender, uint32_t slot); /* 1: the sender compresses */

/* A sealed batch, checked: every record parsed once, from memory that nobody may write any more,
 * but read as if somebody did (each value is bounded when it is read, and read once). */
struct mp_span {
    uint64_t offset;
    uint64_t bytes;
};
struct mp_walk {
    uint32_t records;
    uint32_t bytes;
    int64_t base_timestamp;
    int64_t max_timestamp;
    uint32_t crc; /* CRC-32C of the records' bytes */
    uint32_t largest; /* bytes of the largest record */
    uint32_t spans;
    struct mp_span *span; /* room for mp_slots_for(bytes) */
};
/* NULL, or a static text that says what is wrong with the batch. */
const char *mp_walk(struct mp_sender *sender, uint32_t slot, struct mp_walk *walk);
/* Spans of compressed output. */
const char *mp_output_spans(struct mp_sender *sender, uint32_t slot, uint32_t first,
                            uint32_t bytes, struct mp_walk *walk);
/* The bare record parser over spans, for fuzzing. */
const char *mp_check_records(const uint8_t *data, const struct mp_span *span, uint32_t spans,
                             uint32_t records, struct mp_walk *walk);

/* Topic directory. */
uint32_t mp_topic_add(struct mp_sender *sender, const char *name, size_t length);
int mp_topic_grow(struct mp_sender *sender, uint32_t topic, uint32_t partitions);
void mp_topic_fail(struct mp_sender *sender, uint32_t topic, uint32_t code, const char *message,
                   size_t length);
void mp_topic_notify(struct mp_sender *sender);

#endif
