/* Mapping of the two segments, and the leaves that both sides share. No Python below this line. */
#ifndef MP_REGION_H
#define MP_REGION_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clock_gettime, sched_yield, futex under -std=c11 */
#endif

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "layout.h"

/* In test builds every shared step is a place where a process can be killed or stopped. */
#ifdef MP_TESTPOINTS
void mp_step(int id);
#define MP_STEP(id) mp_step(id)
#else
#define MP_STEP(id) ((void)0)
#endif

void mp_segment_sizes(uint32_t slots, uint32_t max_partitions, uint32_t max_topics, size_t *ctl,
                      size_t *pool);

/* Maps both fds. Returns NULL, or a static text that says what failed (errno is set). */
const char *mp_region_map(struct mp_region *region, int ctl_fd, int pool_fd, uint32_t slots,
                          uint32_t max_partitions, uint32_t max_topics, int writable_ctl);
void mp_region_unmap(struct mp_region *region);

/* What a worker asks of a segment before it trusts it: NULL, or a static text that says what is
 * wrong. The sender has checked what it wrote; this is about another version, or another file. */
const char *mp_region_check(const struct mp_region *region);

/* Maps CTL alone, read-only: for who looks at a host and sends nothing. */
const char *mp_control_map(struct mp_region *region, int ctl_fd, uint32_t max_partitions,
                           uint32_t max_topics);

/* MP_TALLY_WORDS sums over the rows of all owner ids ever given. */
void mp_sum_tallies(const struct mp_region *region, uint64_t *sums);

/* Claims a FREE slot for `owner` (T1): a head with no records, or an unplaced extension.
 * Returns the slot or MP_NONE when the pool is exhausted. */
uint32_t mp_claim(struct mp_region *region, uint32_t owner, int extension);

/* T9: gives back a slot that `owner` claimed and nobody else can see. */
void mp_unclaim(struct mp_region *region, uint32_t slot, uint32_t owner);

/* The last step of making a slot FREE: claimers find it from here on. */
void mp_show_free(struct mp_region *region, uint32_t slot);

int mp_anyone_waits(const struct mp_region *region);

/* Slots needed for `bytes` of payload; an empty batch has one. */
static inline uint32_t mp_slots_for(uint32_t bytes) {
    return bytes == 0 ? 1u : (bytes + MP_SLOT_BYTES - 1u) / MP_SLOT_BYTES;
}

static inline uint8_t *mp_payload(const struct mp_region *region, uint32_t slot) {
    return region->data + (size_t)slot * MP_SLOT_BYTES;
}

static inline int64_t mp_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void mp_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

long mp_futex_wait(const mp_a32 *word, uint32_t expected, int64_t timeout_ns);
long mp_futex_wake(mp_a32 *word, int count);

uint32_t mp_murmur2(const uint8_t *data, size_t length);

/* Topic directory (CTL). */
uint32_t mp_topic_find(const struct mp_region *region, const char *name, size_t length);
/* Partition index of a partition below partition_count, or MP_NONE. */
static inline uint32_t mp_topic_index(const struct mp_topic *topic, uint32_t partition) {
    for (uint32_t i = 0; i < MP_EXTENTS; i++) {
        /* Relaxed: what partition_count covers was written before it, and only grows. */
        const struct mp_extent *run = &topic->extent[i];
        const uint32_t count = atomic_load_explicit(&run->count, memory_order_relaxed);
        if (partition < count)
            return atomic_load_explicit(&run->first, memory_order_relaxed) + partition;
        partition -= count;
    }
    return MP_NONE;
}

#endif
