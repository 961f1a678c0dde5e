/* A worker's memory beside its batches: the stash, the wait for more, and what is given back unused.
 * The sender's half of the wait is pool.c:mp_grant. */
#include "append.h"

#include "orders.h"

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE /* Linux 5.14; before it, pages come one by one */
#define MADV_POPULATE_WRITE 23
#endif

/* Maps the pages around a slot that is about to be filled, once per process: one by one, by a fault
 * each, they cost 2.5 us apiece in a virtual machine, as much as 40 records. Only for extensions: a
 * batch that never fills its first slot must not take more memory than it needs. */
static void map_around(struct mp_writer *writer, uint32_t slot) {
    const uint32_t run = slot / MP_MAP_SLOTS;
    const uint64_t bit = UINT64_C(1) << run % 64;
    if (slot >= writer->region.slots || writer->mapped[run / 64] & bit) return;
    writer->mapped[run / 64] |= bit;
    const uint32_t first = run * MP_MAP_SLOTS, left = writer->region.slots - first;
    const size_t count = left < MP_MAP_SLOTS ? left : MP_MAP_SLOTS;
    madvise(mp_payload(&writer->region, first), count * MP_SLOT_BYTES, MADV_POPULATE_WRITE);
}

uint32_t mp_take_slot(struct mp_writer *writer, int extension) {
    struct mp_region *region = &writer->region;
    const int stashed = writer->stash != MP_NONE;
    const uint32_t slot = stashed ? writer->stash : mp_claim(region, writer->owner, extension);
    if (extension) map_around(writer, slot);
    if (!stashed) return slot;
    writer->stash = atomic_load_explicit(&region->slot[slot].next, RELAXED);
    if (!extension) { /* stashed slots are unplaced extensions; only we may touch this word */
        const uint64_t word = atomic_load_explicit(&region->slot[slot].word, RELAXED);
        atomic_store_explicit(&region->slot[slot].word,
                              MP_LIVE | mp_own(writer->owner) | (word & MP_GEN_MASK), RELAXED);
    }
    return slot;
}

void mp_stash_slot(struct mp_writer *writer, uint32_t slot) {
    struct mp_slot *header = &writer->region.slot[slot];
    const uint64_t word = atomic_load_explicit(&header->word, RELAXED);
    atomic_store_explicit(&header->head, MP_NONE, RELAXED);
    atomic_store_explicit(&header->word,
                          MP_LIVE | MP_SEAL | mp_own(writer->owner) | (word & MP_GEN_MASK) |
                              MP_EXTENSION,
                          RELAXED);
    atomic_store_explicit(&header->next, writer->stash, RELAXED);
    writer->stash = slot;
}

/* Free first, then look: together with first_waiter's look and the claim behind it, in the order of
 * all, either this sees the waiter or the sender sees the slot. */
static void look_for_waiters(struct mp_writer *writer) {
    if (mp_anyone_waits(&writer->region)) mp_wake_sender(writer, 0);
}

void mp_drop_stash(struct mp_writer *writer) {
    if (writer->stash == MP_NONE) return;
    while (writer->stash != MP_NONE) {
        const uint32_t slot = writer->stash;
        writer->stash = atomic_load_explicit(&writer->region.slot[slot].next, RELAXED);
        mp_unclaim(&writer->region, slot, writer->owner);
    }
    look_for_waiters(writer);
}

void mp_unextend(struct mp_writer *writer, uint32_t first, uint32_t count) {
    struct mp_region *region = &writer->region;
    for (; count > 0; count--) {
        const uint32_t next = atomic_load_explicit(&region->slot[first].next, RELAXED);
        mp_unclaim(region, first, writer->owner);
        first = next;
    }
    look_for_waiters(writer);
}

void mp_wait_begin(struct mp_writer *writer, uint32_t units) {
    struct mp_pool *pool = writer->region.pool;
    struct mp_waiter *waiter = &pool->waiters[writer->owner];
    mp_drop_stash(writer); /* nobody holds memory while he waits for more */
    atomic_store_explicit(&waiter->units, units, RELAXED);
    const uint64_t ticket = atomic_fetch_add_explicit(&pool->ticket, 1, RELAXED);
    atomic_store_explicit(&waiter->ticket, ticket, RELAXED);
    MP_STEP(21);
    atomic_store_explicit(&waiter->state, mp_waiting(ticket), RELEASE);
    MP_STEP(22);
    atomic_fetch_or_explicit(&pool->waiting[writer->owner / 64],
                             UINT64_C(1) << writer->owner % 64, SEQ_CST);
    mp_wake_sender(writer, 0);
}

int mp_wait_over(const struct mp_writer *writer) {
    const struct mp_waiter *waiter = &writer->region.pool->waiters[writer->owner];
    return atomic_load_explicit(&waiter->state, ACQUIRE) == MP_W_GRANTED ||
           atomic_load_explicit(&writer->region.ctl->closed, RELAXED);
}

void mp_wait_slice(struct mp_writer *writer, int64_t timeout_ns) {
    const struct mp_waiter *waiter = &writer->region.pool->waiters[writer->owner];
    if (!mp_wait_over(writer))
        mp_futex_wait(&waiter->state,
                      mp_waiting(atomic_load_explicit(&waiter->ticket, RELAXED)), timeout_ns);
}

int mp_wait_end(struct mp_writer *writer) {
    struct mp_pool *pool = writer->region.pool;
    struct mp_waiter *waiter = &pool->waiters[writer->owner];
    uint32_t state = mp_waiting(atomic_load_explicit(&waiter->ticket, RELAXED));
    int granted = 0;
    MP_STEP(23);
    if (!atomic_compare_exchange_strong_explicit(&waiter->state, &state, MP_W_IDLE, ACQ_REL,
                                                 ACQUIRE) &&
        state == MP_W_GRANTED) {
        writer->stash = atomic_load_explicit(&waiter->first, RELAXED);
        granted = 1;
        MP_STEP(24);
        atomic_store_explicit(&waiter->state, MP_W_IDLE, RELEASE);
    }
    atomic_fetch_and_explicit(&pool->waiting[writer->owner / 64],
                              ~(UINT64_C(1) << writer->owner % 64), SEQ_CST);
    /* What the sender had put by for this wait goes to the next in the queue, or back. */
    if (!granted) mp_wake_sender(writer, 0);
    return granted;
}
