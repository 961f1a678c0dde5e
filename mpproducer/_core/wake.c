/* What a worker tells the sender, and when it has to wake it. The other half is pool.c:mp_sleep_begin. */
#include "append.h"

#include "orders.h"

#include <errno.h>
#include <unistd.h>

void mp_wake_sender(struct mp_writer *writer, uint64_t ready_us) {
    mp_a64 *wake = &writer->region.pool->wake;
    uint64_t sleep = atomic_load_explicit(wake, SEQ_CST);
    if (sleep == 0 || sleep >> 16 <= ready_us) return;
    /* First the write, then the CAS: a worker stopped between them leaves the others free to wake
     * the sender too. Sleep words never repeat, so a late CAS cannot clear another sleep. */
    const uint64_t one = 1;
    MP_STEP(19);
    while (write(writer->wake_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    MP_STEP(20);
    atomic_compare_exchange_strong_explicit(wake, &sleep, 0, SEQ_CST, RELAXED);
}

void mp_mark(struct mp_region *region, uint32_t partition) {
    atomic_fetch_or_explicit(&region->dirty[partition / 64], UINT64_C(1) << partition % 64,
                             SEQ_CST);
}

void mp_wake_for_mark(struct mp_writer *writer, int sealed) {
    const struct mp_region *region = &writer->region;
    if (atomic_load_explicit(&region->pool->wake, SEQ_CST) == 0) return;
    const uint64_t now_us = (uint64_t)mp_now_ns() / 1000;
    mp_wake_sender(writer, sealed ? now_us : now_us + region->ctl->linger_us);
}

void mp_announce(struct mp_writer *writer, uint32_t partition, int sealed) {
    mp_mark(&writer->region, partition);
    mp_wake_for_mark(writer, sealed);
}

void mp_wake_for_other(struct mp_writer *writer, uint64_t sleep, uint32_t opened_us) {
    const uint64_t until_us = sleep >> 16;
    const int32_t late_us =
        (int32_t)((uint32_t)until_us - (opened_us + writer->region.ctl->linger_us));
    if (late_us > 0) mp_wake_sender(writer, until_us - (uint32_t)late_us);
}
