/* The shared words of one host: who writes which, who reads it, in which memory order.
 *
 * Two segments. CTL is written by the sender only (workers map it read-only, the memfd is sealed
 * against new writable mappings): geometry, configuration, topic directory, metrics. POOL is
 * written by everybody: batch words, slots, waiters, wake word.
 *
 * A batch is a chain of slots of one partition. The word of its first slot (the head) decides
 * everything: committed record and byte count, exclusive owner, seal. A record is in the batch if
 * and only if its owner's CAS on that word succeeded before the seal; whatever else lies in the
 * slots has no meaning. Nothing is ever repaired.
 *
 *  word            writer                          reader          success order    pairs with
 *  --------------- ------------------------------- --------------- ---------------- ----------------
 *  open[p]         worker that links a batch (CAS) all             acq_rel          link -> append
 *  slot.word  T1   claimer: FREE -> owner=W        all             acq_rel          T8 of last use
 *             T2   owner: n+1, bytes+len, owner=0  worker, sender  release          T3, T5
 *                   (first record of a batch)                      seq_cst          wake (Dekker)
 *             T3   worker: owner 0 -> W            -               acquire          T2
 *             T4   owner gives up: owner=0         -               release          T3, T5
 *             T5   sender: or SEAL; worker: CAS    all             acq_rel          T2
 *             T6   former owner: and ~owner        sender          release          T8
 *             T8   sender: -> FREE, gen kept       claimer         acq_rel          T6, T1
 *             T9   claimer, never linked: -> FREE  claimer, sender seq_cst          T1, waiting[]
 *  slot.batch_id,  claimer or owner while it owns  all             relaxed,         published by
 *   prev, next,     the slot (T1..T2)                              under word       link or T2
 *   tail, pos, opened_us, base/max timestamp,
 *   participants
 *  slot.head       claimer of an extension         sender          release/acquire  batch_id, pos
 *  slot.compress   worker and sender (CAS)         both            acq_rel          itself
 *  dirty[]         worker (or), sender (xchg 0)    both            seq_cst          wake (Dekker)
 *  wake            sender (xchg), worker (CAS->0)  worker          seq_cst          dirty (Dekker)
 *  waiting[]       worker (or / and own bit)       all             seq_cst          wake, T9 (Dekker)
 *  waiter.state    worker, sender (CAS)            both, futex     acq_rel          itself
 *  free[]          who frees a slot (or), claimer  claimer         seq_cst          T8, T9, waiting[]
 *                   (and), a hint                                                   (Dekker)
 *  waiter.units,   its owner; first: the sender    the other       relaxed          waiter.state
 *   ticket, first
 *  ticket          worker (add)                    worker          relaxed          -
 *  cursor          any claimer, a hint             claimer         relaxed          -
 *  sticky[t]       worker (CAS), a hint            worker          relaxed          -
 *  ctl.topic_*     sender                          worker, futex   release/acquire  topic_version
 *  topic.lock      sender (+1, +1), its text       worker          release/acquire  itself (seqlock)
 *  ctl header      sender, before it sends the fd  worker          plain            the socket
 *  ctl.closed,     sender                          worker          relaxed          -
 *   available[]
 *  metrics         sender                          all             relaxed          - (metrics.h)
 *  metrics.sequence, samples  sender               all             release/acquire  themselves
 *  tallies[owner]  worker (add)                    all             relaxed          -
 *
 * Rules that keep it sound:
 *  R1  the sender seals an empty batch only when its owner is dead, a worker only after the word
 *      stood still for a while (else claimer and sealer can chase each other for ever).
 *  R2  memory that a not provably finished writer may touch is not reused: a sealed batch whose
 *      word still shows an owner waits (quarantine) for T6 or for that owner's pidfd. Never time.
 *  R3  n and bytes are read once at the seal and kept privately; the walk recomputes the rest.
 *  R4  reaper order: death confirmed -> new batches collected -> word loaded -> CAS from it.
 *  R5  an owner id is given to another process only when no slot shows it.
 *  R6  between T1/T3 and T2 no allocation, lock, Python call, log line or system call.
 *  R7  a claimed extension slot names its batch and place (batch_id, pos): if its claimer dies it
 *      is freed exactly when that batch does not count it.
 *  R8  a slot whose word is FREE has its bit in free[], or a process stands between the two: one that
 *      frees it, or one that claims it. Whoever reaps the dead sets the bits of all FREE slots.
 */
#ifndef MP_LAYOUT_H
#define MP_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "metrics.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the shared layout needs a little-endian machine"
#endif
_Static_assert(sizeof(void *) == 8, "the shared layout needs a 64-bit machine");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free across processes");

#define MP_MAGIC UINT64_C(0x3172637564707061) /* a fixed pattern, written last */
#define MP_LAYOUT_VERSION 1u
#define MP_LINE 128
#define MP_SLOT_BYTES 16384u
#define MP_MAX_OWNERS 1023u
#define MP_OWNER_WORDS 16u
#define MP_TOPIC_NAME 256u
#define MP_TOPIC_MESSAGE 136u
#define MP_EXTENTS 12u
#define MP_NONE UINT32_MAX

/* slot.word: SEAL(1) LIVE(1) owner(10) gen(14) records(14) bytes(24) */
#define MP_SEAL (UINT64_C(1) << 63)
#define MP_LIVE (UINT64_C(1) << 62)
#define MP_OWNER_SHIFT 52
#define MP_OWNER_MASK (UINT64_C(0x3ff) << MP_OWNER_SHIFT)
#define MP_GEN_SHIFT 38
#define MP_GEN_ONE (UINT64_C(1) << MP_GEN_SHIFT)
#define MP_GEN_MASK (UINT64_C(0x3fff) << MP_GEN_SHIFT)
#define MP_COUNT_SHIFT 24
#define MP_COUNT_MASK UINT64_C(0x3fff)
#define MP_BYTES_MASK UINT64_C(0xffffff)
/* An extension slot (not a head) shows this impossible count: LIVE|SEAL|owner|gen|MP_EXTENSION. */
#define MP_EXTENSION ((MP_COUNT_MASK << MP_COUNT_SHIFT) | MP_BYTES_MASK)
#define MP_MAX_RECORDS 16382u
#define MP_MAX_BYTES 0xfffffeu

static inline uint64_t mp_own(uint32_t owner) { return (uint64_t)owner << MP_OWNER_SHIFT; }
static inline uint32_t mp_owner(uint64_t word) {
    return (uint32_t)((word & MP_OWNER_MASK) >> MP_OWNER_SHIFT);
}
static inline uint32_t mp_records(uint64_t word) {
    return (uint32_t)(word >> MP_COUNT_SHIFT & MP_COUNT_MASK);
}
static inline uint32_t mp_gen(uint64_t word) {
    return (uint32_t)((word & MP_GEN_MASK) >> MP_GEN_SHIFT);
}
static inline uint32_t mp_bytes(uint64_t word) { return (uint32_t)(word & MP_BYTES_MASK); }
static inline int mp_is_extension(uint64_t word) {
    return (word & MP_EXTENSION) == MP_EXTENSION;
}

/* open[p]: batch_seq(44) | head slot + 1 (20); 0 = never opened. Only ever moves forward. */
#define MP_OPEN_SLOT_BITS 20
static inline uint64_t mp_open_word(uint64_t seq, uint32_t slot) {
    return seq << MP_OPEN_SLOT_BITS | (slot + 1u);
}
static inline uint64_t mp_open_seq(uint64_t open) { return open >> MP_OPEN_SLOT_BITS; }
static inline uint32_t mp_open_slot(uint64_t open) {
    return (uint32_t)(open & ((1u << MP_OPEN_SLOT_BITS) - 1u)) - 1u;
}
#define MP_MAX_SLOTS ((1u << MP_OPEN_SLOT_BITS) - 2u)

/* batch id: partition index(20) | batch_seq(44); names a batch for the life of the segments. */
#define MP_SEQ_BITS 44
static inline uint64_t mp_batch_id(uint32_t partition, uint64_t seq) {
    return (uint64_t)partition << MP_SEQ_BITS | seq;
}

/* slot.compress of a head: state(8) | owner(10) and gen(14), or of DONE first slot(20) and size(24).
 * NONE -> BUSY -> DONE: the worker that filled the batch compresses it, and says so before it
 * announces that the batch is full. NONE -> TAKEN: the sender does. BUSY -> RECALLED -> RETURNED: the
 * sender took it from a slow worker, whose late reads still forbid reuse until it returns. */
#define MP_COMPRESS_SHIFT 56
enum { MP_C_NONE, MP_C_BUSY, MP_C_TAKEN, MP_C_DONE, MP_C_RECALLED, MP_C_RETURNED };
static inline uint64_t mp_compress_word(uint32_t state, uint64_t rest) {
    return (uint64_t)state << MP_COMPRESS_SHIFT | rest;
}
static inline uint32_t mp_compress_state(uint64_t word) {
    return (uint32_t)(word >> MP_COMPRESS_SHIFT);
}
static inline uint64_t mp_compress_busy(uint32_t owner, uint32_t gen) {
    return mp_compress_word(MP_C_BUSY, (uint64_t)owner << 14 | gen);
}
static inline uint64_t mp_compress_recalled(uint32_t owner, uint32_t gen) {
    return mp_compress_word(MP_C_RECALLED, (uint64_t)owner << 14 | gen);
}
static inline uint32_t mp_compress_owner(uint64_t word) {
    return (uint32_t)(word >> 14) & 0x3ffu;
}
#define MP_COMPRESS_FIRST_SHIFT 24
/* pos of an extension slot that holds compressed output instead of records */
#define MP_POS_COMPRESSED UINT32_C(0x80000000)

typedef _Atomic uint64_t mp_a64;
typedef _Atomic uint32_t mp_a32;
typedef _Atomic int64_t mp_ai64;
typedef _Atomic uint8_t mp_a8;

struct mp_slot {
    _Alignas(MP_LINE) mp_a64 word;
    mp_a64 batch_id;       /* head and extension: the batch it was claimed for */
    mp_a64 compress;       /* head */
    mp_ai64 base_timestamp; /* head: timestamp of record 0, ms */
    mp_ai64 max_timestamp;  /* head: a hint, the walk recomputes it */
    mp_a32 prev;           /* head: head slot of the partition's previous batch, or MP_NONE */
    mp_a32 next;           /* next slot of the chain; counts only below the committed bytes */
    mp_a32 tail;           /* head: last slot of the committed chain */
    mp_a32 pos;            /* extension: place in the chain, the head being 0 */
    mp_a32 head;           /* extension: its head slot, MP_NONE while unplaced */
    mp_a32 opened_us;      /* head: CLOCK_MONOTONIC when it was opened, us, its low 32 bits */
    _Alignas(MP_LINE) mp_a64 participants[MP_OWNER_WORDS]; /* head: owners that committed */
};
_Static_assert(sizeof(struct mp_slot) == 2 * MP_LINE, "slot header size is part of the layout");

struct mp_partition {
    _Alignas(MP_LINE) mp_a64 open;
};
_Static_assert(sizeof(struct mp_partition) == MP_LINE, "one line per open word");

/* waiter.state: ticket(30) | one of these(2). With its ticket a wait that followed another one of the
 * same owner does not pass for it, and is not served in its place. */
enum { MP_W_IDLE, MP_W_WAITING, MP_W_GRANTED };
#define MP_W_STATE UINT32_C(3)
static inline uint32_t mp_waiting(uint64_t ticket) {
    return (uint32_t)ticket << 2 | MP_W_WAITING;
}
/* One writer waiting for memory per owner; threads of a process queue up before it. */
struct mp_waiter {
    _Alignas(64) mp_a32 state; /* futex word */
    mp_a32 units;              /* slots wanted (worker), before state=WAITING */
    mp_a64 ticket;             /* order of arrival (worker), before state=WAITING */
    mp_a32 first;              /* granted slots, chained by next (sender), before state=GRANTED */
};
_Static_assert(sizeof(struct mp_waiter) == 64, "waiter size is part of the layout");

/* What the processes under one owner id have counted, one after another: never set back, so that the
 * sum over all rows only grows. Threads of a process add atomically; nobody else writes the row. */
struct mp_tally {
    _Alignas(MP_LINE) mp_a64 word[MP_TALLY_WORDS];
};
_Static_assert(sizeof(struct mp_tally) == MP_LINE, "one line per owner: no contention");

struct mp_sticky {
    _Alignas(64) mp_a64 partition; /* partition + 1 that unkeyed records of a topic go to; 0 = unset */
};

struct mp_pool {
    _Alignas(MP_LINE) mp_a64 wake;     /* 0 = sender awake, else deadline_us << 16 | epoch */
    _Alignas(MP_LINE) mp_a64 cursor;   /* word of free[] where the next claim looks first */
    _Alignas(MP_LINE) mp_a64 ticket;   /* next waiter's ticket */
    _Alignas(MP_LINE) mp_a64 waiting[MP_OWNER_WORDS]; /* owners that wait for memory */
    _Alignas(MP_LINE) struct mp_waiter waiters[MP_MAX_OWNERS + 1];
    _Alignas(MP_LINE) struct mp_tally tallies[MP_MAX_OWNERS + 1];
    /* then, each aligned to MP_LINE: dirty[], free[] (one bit per slot), sticky[], partitions[],
     * slots[], and the payload */
};

struct mp_extent {
    mp_a32 first; /* partition index of the first partition of this run */
    mp_a32 count;
};

enum { MP_T_WANTED, MP_T_READY, MP_T_ERROR };
/* Written by the sender. Extents grow only and are written before partition_count (release);
 * error fields are written under `lock` (odd while being written). */
struct mp_topic {
    char name[MP_TOPIC_NAME];
    mp_a32 state;
    mp_a32 partition_count;
    mp_a32 lock;
    mp_a32 error_code;
    uint32_t extents;
    uint32_t pad;
    struct mp_extent extent[MP_EXTENTS];
    mp_a64 message[MP_TOPIC_MESSAGE / 8];
};
_Static_assert(sizeof(struct mp_topic) == 512, "topic entry size is part of the layout");

struct mp_ctl {
    uint64_t magic;
    uint64_t layout_hash;
    uint32_t version;
    uint32_t slots;
    uint32_t max_partitions;
    uint32_t max_topics;
    uint32_t batch_size;
    uint32_t max_request_size;
    uint32_t linger_us;
    uint32_t ignore_keys;
    uint32_t compress;
    uint32_t generation;
    mp_a32 closed;
    mp_a32 topic_count;
    _Alignas(MP_LINE) mp_a32 topic_version; /* futex word: any change of the directory */
    /* then, each aligned to MP_LINE: topics[], available[] (one byte per partition index): 0, or
     * 1 + batches that wait, where records without a key may go; metrics */
};

/* One process's mapping of both segments. Pointers are private; the memory is shared. */
struct mp_region {
    struct mp_ctl *ctl;
    struct mp_topic *topics;
    mp_a8 *available;
    struct mp_metrics *metrics;
    struct mp_pool *pool;
    mp_a64 *dirty;
    mp_a64 *free;
    struct mp_sticky *sticky;
    struct mp_partition *partitions;
    struct mp_slot *slot;
    uint8_t *data;
    size_t ctl_bytes;
    size_t pool_bytes;
    uint32_t slots;
    uint32_t max_partitions;
    uint32_t max_topics;
};

/* Hash over everything both sides must agree on; a worker with another one is refused. What it does
 * not see, the order of the arrays behind the headers and what words mean, is MP_LAYOUT_VERSION. */
static inline uint64_t mp_layout_hash(void) {
    const uint64_t parts[] = {
        MP_LAYOUT_VERSION, MP_SLOT_BYTES, MP_MAX_OWNERS, MP_COUNTERS, MP_EXTENTS,
        sizeof(struct mp_slot), offsetof(struct mp_slot, batch_id),
        offsetof(struct mp_slot, compress), offsetof(struct mp_slot, base_timestamp),
        offsetof(struct mp_slot, max_timestamp), offsetof(struct mp_slot, prev),
        offsetof(struct mp_slot, next), offsetof(struct mp_slot, tail),
        offsetof(struct mp_slot, pos), offsetof(struct mp_slot, head),
        offsetof(struct mp_slot, opened_us),
        offsetof(struct mp_slot, participants), sizeof(struct mp_waiter),
        offsetof(struct mp_waiter, ticket), offsetof(struct mp_waiter, first),
        sizeof(struct mp_pool), offsetof(struct mp_pool, waiters), sizeof(struct mp_topic),
        offsetof(struct mp_topic, extent), sizeof(struct mp_ctl), offsetof(struct mp_ctl, topic_version),
        sizeof(struct mp_sample), sizeof(struct mp_metrics), sizeof(struct mp_tally), MP_TALLY_WORDS,
        MP_NODES, MP_BUCKETS, MP_DISTRIBUTIONS, MP_PEAKS, offsetof(struct mp_pool, tallies),
        MP_OWNER_SHIFT, MP_COUNT_SHIFT, MP_OPEN_SLOT_BITS, MP_SEQ_BITS, MP_COMPRESS_SHIFT,
    };
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        hash = (hash ^ parts[i]) * UINT64_C(0x100000001b3);
    return hash >> 11; /* fits a JSON number */
}

#endif
