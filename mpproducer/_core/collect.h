/* What the sender's machine hears of batches: one was opened, one is full. Private to the sender.
 *
 *  latest batch of a partition   is                                what a look at the partition tells
 *  ----------------------------- --------------------------------- ------------------------------------
 *  MP_NOTHING                    told and full, or there is none   newer ones: opened
 *  MP_UNBORN                     linked, without a record: not     a record, a seal or a newer one:
 *                                told yet, looked at each time     opened
 *  MP_OPENED                     told, and may get more records    a seal, a newer one: full
 *
 * A batch with a newer one behind it is full, sealed or not: nobody will add to it. One that was frozen
 * is not told as full any more.
 */
#ifndef MP_COLLECT_H
#define MP_COLLECT_H

#include "pool.h"

enum mp_latest_state { MP_NOTHING, MP_UNBORN, MP_OPENED };
struct mp_latest {
    uint64_t seq;
    int64_t opened_ns;
    uint32_t slot;
    uint32_t state;
};

struct mp_found {
    int64_t key; /* when the first batch of the partition's was opened; 0: it was told before */
    uint64_t seq; /* 0: a batch that was told before is full; else it was opened */
    int64_t opened_ns;
    uint32_t partition, slot;
    uint32_t full;
    uint32_t place; /* in the order of the looks */
};

struct mp_collector {
    struct mp_latest *latest;  /* per partition */
    uint64_t *unborn_bits;     /* per partition: its latest batch is MP_UNBORN */
    uint32_t *partition;       /* per slot, of a batch that was told */
    uint32_t *slots;           /* scratch for mp_new_batches */
    struct mp_found *found;    /* what the last call found, in the order of opening */
    uint32_t count;
    uint32_t unborn;           /* batches that have no record yet */
    uint32_t looks;            /* of mp_collect since the last of them was first seen */
};

/* 0, or -1: out of memory. Close in any case. */
int mp_collector_open(struct mp_collector *collector, const struct mp_sender *sender);
void mp_collector_close(struct mp_collector *collector);

/* Looks at the partitions that workers announced and at those whose latest batch has no record; with
 * `everything`, at all that were ever used: a worker may have died, or stopped, between its commit and
 * its announcement. 0, or -1 when a chain is corrupt. */
int mp_collect(struct mp_collector *collector, struct mp_sender *sender, int everything);

/* Whether a batch that had no record has one by now, or is sealed. Its writer wakes no sender that is
 * awake: to be asked, as the marks are, when the sleep word is out. */
int mp_collect_changed(const struct mp_collector *collector, const struct mp_sender *sender);

/* The batch in this head slot was sealed by the sender. */
void mp_collect_sealed(struct mp_collector *collector, uint32_t slot);

#endif
