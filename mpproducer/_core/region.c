#include "region.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static size_t align_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

struct offsets {
    size_t topics, available, metrics, ctl_end;
    size_t dirty, free, sticky, partitions, slots, data, pool_end;
};

static struct offsets place(uint32_t slots, uint32_t max_partitions, uint32_t max_topics) {
    struct offsets at;
    at.topics = align_up(sizeof(struct mp_ctl), MP_LINE);
    at.available = at.topics + (size_t)max_topics * sizeof(struct mp_topic);
    at.metrics = align_up(at.available + max_partitions, MP_LINE);
    at.ctl_end = align_up(at.metrics + mp_metrics_bytes(max_topics), 4096);
    at.dirty = align_up(sizeof(struct mp_pool), MP_LINE);
    at.free = align_up(at.dirty + ((size_t)max_partitions + 63) / 64 * 8, MP_LINE);
    at.sticky = align_up(at.free + ((size_t)slots + 63) / 64 * 8, MP_LINE);
    at.partitions = align_up(at.sticky + (size_t)max_topics * sizeof(struct mp_sticky), MP_LINE);
    at.slots = at.partitions + (size_t)max_partitions * sizeof(struct mp_partition);
    at.data = align_up(at.slots + (size_t)slots * sizeof(struct mp_slot), 4096);
    at.pool_end = at.data + (size_t)slots * MP_SLOT_BYTES;
    return at;
}

void mp_segment_sizes(uint32_t slots, uint32_t max_partitions, uint32_t max_topics, size_t *ctl,
                      size_t *pool) {
    const struct offsets at = place(slots, max_partitions, max_topics);
    *ctl = at.ctl_end;
    *pool = at.pool_end;
}

static int shorter_than(int fd, size_t bytes) {
    struct stat st;
    if (fstat(fd, &st) != 0) return 1;
    if (st.st_size < 0 || (size_t)st.st_size < bytes) {
        errno = EINVAL;
        return 1;
    }
    return 0;
}

const char *mp_region_map(struct mp_region *region, int ctl_fd, int pool_fd, uint32_t slots,
                          uint32_t max_partitions, uint32_t max_topics, int writable_ctl) {
    const struct offsets at = place(slots, max_partitions, max_topics);
    memset(region, 0, sizeof *region);
    if (shorter_than(ctl_fd, at.ctl_end) || shorter_than(pool_fd, at.pool_end))
        return "a segment is smaller than its geometry says";
    const int protection = writable_ctl ? PROT_READ | PROT_WRITE : PROT_READ;
    uint8_t *ctl = mmap(NULL, at.ctl_end, protection, MAP_SHARED, ctl_fd, 0);
    if (ctl == MAP_FAILED) return "mapping the control segment failed";
    uint8_t *pool =
        mmap(NULL, at.pool_end, PROT_READ | PROT_WRITE, MAP_SHARED, pool_fd, 0);
    if (pool == MAP_FAILED) {
        munmap(ctl, at.ctl_end);
        return "mapping the pool failed";
    }
    /* A forked child must never write under its parent's owner id: it has no mapping at all. */
    madvise(pool, at.pool_end, MADV_DONTFORK);
    region->ctl = (struct mp_ctl *)ctl;
    region->topics = (struct mp_topic *)(ctl + at.topics);
    region->available = (mp_a8 *)(ctl + at.available);
    region->metrics = (struct mp_metrics *)(ctl + at.metrics);
    region->pool = (struct mp_pool *)pool;
    region->dirty = (mp_a64 *)(pool + at.dirty);
    region->free = (mp_a64 *)(pool + at.free);
    region->sticky = (struct mp_sticky *)(pool + at.sticky);
    region->partitions = (struct mp_partition *)(pool + at.partitions);
    region->slot = (struct mp_slot *)(pool + at.slots);
    region->data = pool + at.data;
    region->ctl_bytes = at.ctl_end;
    region->pool_bytes = at.pool_end;
    region->slots = slots;
    region->max_partitions = max_partitions;
    region->max_topics = max_topics;
    return NULL;
}

const char *mp_region_check(const struct mp_region *region) {
    const struct mp_ctl *ctl = region->ctl;
    if (ctl->magic != MP_MAGIC || ctl->layout_hash != mp_layout_hash() ||
        ctl->version != MP_LAYOUT_VERSION)
        return "the segments have another layout than this process";
    if (ctl->slots != region->slots || ctl->max_partitions != region->max_partitions ||
        ctl->max_topics != region->max_topics)
        return "the segments have another geometry than the sender said";
    if (ctl->slots == 0 || ctl->slots > MP_MAX_SLOTS || ctl->max_partitions == 0 ||
        ctl->max_partitions > 1u << 20 || ctl->batch_size == 0 || ctl->batch_size > MP_MAX_BYTES ||
        ctl->max_request_size == 0 || ctl->max_request_size > MP_MAX_BYTES)
        return "the segments' geometry is out of range";
    if (atomic_load_explicit(&ctl->topic_count, memory_order_acquire) > ctl->max_topics)
        return "the topic directory is longer than its segment";
    return NULL;
}

const char *mp_control_map(struct mp_region *region, int ctl_fd, uint32_t max_partitions,
                           uint32_t max_topics) {
    const struct offsets at = place(0, max_partitions, max_topics);
    memset(region, 0, sizeof *region);
    if (shorter_than(ctl_fd, at.ctl_end)) return "the segment is smaller than its geometry says";
    uint8_t *ctl = mmap(NULL, at.ctl_end, PROT_READ, MAP_SHARED, ctl_fd, 0);
    if (ctl == MAP_FAILED) return "mapping the control segment failed";
    region->ctl = (struct mp_ctl *)ctl;
    region->topics = (struct mp_topic *)(ctl + at.topics);
    region->metrics = (struct mp_metrics *)(ctl + at.metrics);
    region->ctl_bytes = at.ctl_end;
    region->max_topics = max_topics;
    return NULL;
}

void mp_region_unmap(struct mp_region *region) {
    if (region->ctl) munmap(region->ctl, region->ctl_bytes);
    if (region->pool) munmap(region->pool, region->pool_bytes);
    memset(region, 0, sizeof *region);
}

static uint32_t free_words(const struct mp_region *region) { return (region->slots + 63) / 64; }

/* Takes the slot's bit and then its word; the bit is a hint, the word decides. */
static int take(struct mp_region *region, uint32_t slot, uint64_t bits) {
    const uint64_t bit = UINT64_C(1) << slot % 64;
    if (!(atomic_fetch_and_explicit(&region->free[slot / 64], ~bit, memory_order_seq_cst) & bit))
        return 0; /* another claimer was faster */
    if (slot >= region->slots) return 0; /* somebody wrote over the bits */
    mp_a64 *word = &region->slot[slot].word;
    uint64_t free_word = atomic_load_explicit(word, memory_order_seq_cst);
    const uint64_t claimed = bits | ((free_word + MP_GEN_ONE) & MP_GEN_MASK);
    MP_STEP(1);
    return !(free_word & MP_LIVE) &&
           atomic_compare_exchange_strong_explicit(word, &free_word, claimed, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

uint32_t mp_claim(struct mp_region *region, uint32_t owner, int extension) {
    const uint64_t bits =
        MP_LIVE | mp_own(owner) | (extension ? MP_SEAL | MP_EXTENSION : UINT64_C(0));
    const uint32_t words = free_words(region);
    const uint32_t first =
        (uint32_t)(atomic_load_explicit(&region->pool->cursor, memory_order_relaxed) % words);
    /* The word it starts in is looked at twice: as a whole first, and once more at the end. */
    for (uint32_t seen = 0, i = first; seen <= words; seen++) {
        uint64_t set = atomic_load_explicit(&region->free[i], memory_order_seq_cst);
        for (; set; set &= set - 1) {
            const uint32_t slot = i * 64 + (uint32_t)__builtin_ctzll(set);
            if (slot >= region->slots) break; /* nobody's: a broken worker set it */
            if (!take(region, slot, bits)) continue;
            MP_STEP(2);
            if (extension)
                atomic_store_explicit(&region->slot[slot].head, MP_NONE, memory_order_relaxed);
            if (seen > 0)
                atomic_store_explicit(&region->pool->cursor, i, memory_order_relaxed);
            return slot;
        }
        if (++i == words) i = 0;
    }
    return MP_NONE;
}

/* Freed slots are claimed again first: their lines and pages are warm, and a host that keeps up
 * with its writers touches a small part of the pool only. */
void mp_show_free(struct mp_region *region, uint32_t slot) {
    atomic_fetch_or_explicit(&region->free[slot / 64], UINT64_C(1) << slot % 64,
                             memory_order_seq_cst);
    if (slot / 64 < atomic_load_explicit(&region->pool->cursor, memory_order_relaxed))
        atomic_store_explicit(&region->pool->cursor, slot / 64, memory_order_relaxed);
}

void mp_unclaim(struct mp_region *region, uint32_t slot, uint32_t owner) {
    mp_a64 *word = &region->slot[slot].word;
    uint64_t seen = atomic_load_explicit(word, memory_order_relaxed);
    MP_STEP(3);
    while (mp_owner(seen) == owner &&
           !atomic_compare_exchange_weak_explicit(word, &seen, seen & MP_GEN_MASK,
                                                  memory_order_seq_cst, memory_order_relaxed)) {
    }
    mp_show_free(region, slot);
}

int mp_anyone_waits(const struct mp_region *region) {
    for (uint32_t i = 0; i < MP_OWNER_WORDS; i++) {
        uint64_t bits = atomic_load_explicit(&region->pool->waiting[i], memory_order_seq_cst);
        for (; bits; bits &= bits - 1) {
            const struct mp_waiter *waiter =
                &region->pool->waiters[i * 64 + (uint32_t)__builtin_ctzll(bits)];
            const uint32_t state = atomic_load_explicit(&waiter->state, memory_order_acquire);
            if ((state & MP_W_STATE) == MP_W_WAITING) return 1;
        }
    }
    return 0;
}

void mp_sum_tallies(const struct mp_region *region, uint64_t *sums) {
    uint64_t owners = atomic_load_explicit(&region->metrics->owners, memory_order_relaxed);
    if (owners > MP_MAX_OWNERS) owners = MP_MAX_OWNERS;
    memset(sums, 0, MP_TALLY_WORDS * sizeof *sums);
    for (uint64_t owner = 1; owner <= owners; owner++)
        for (uint32_t i = 0; i < MP_TALLY_WORDS; i++)
            sums[i] += atomic_load_explicit(&region->pool->tallies[owner].word[i],
                                            memory_order_relaxed);
}

/* Not FUTEX_PRIVATE: the word lies in memory shared between processes. */
long mp_futex_wait(const mp_a32 *word, uint32_t expected, int64_t timeout_ns) {
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

long mp_futex_wake(mp_a32 *word, int count) {
    return syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* org.apache.kafka.common.utils.Utils.murmur2: seed 0x9747b28c, byte order little-endian. */
uint32_t mp_murmur2(const uint8_t *data, size_t length) {
    const uint32_t m = 0x5bd1e995;
    uint32_t hash = 0x9747b28c ^ (uint32_t)length;
    size_t i = 0;
    for (; i + 4 <= length; i += 4) {
        uint32_t k;
        memcpy(&k, data + i, 4);
        k *= m;
        k ^= k >> 24;
        k *= m;
        hash = hash * m ^ k;
    }
    const size_t rest = length - i;
    if (rest == 3) hash ^= (uint32_t)data[i + 2] << 16;
    if (rest >= 2) hash ^= (uint32_t)data[i + 1] << 8;
    if (rest >= 1) hash = (hash ^ data[i]) * m;
    hash ^= hash >> 13;
    hash *= m;
    return hash ^ hash >> 15;
}

uint32_t mp_topic_find(const struct mp_region *region, const char *name, size_t length) {
    if (length >= MP_TOPIC_NAME) return MP_NONE;
    const uint32_t count = atomic_load_explicit(&region->ctl->topic_count, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        const char *known = region->topics[i].name;
        if (memcmp(known, name, length) == 0 && known[length] == '\0') return i;
    }
    return MP_NONE;
}
