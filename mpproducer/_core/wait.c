/* A worker's wait for memory: begin, slices, end. The sender's half is pool.c:mp_grant. */
#include "append.h"

#include "orders.h"

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
