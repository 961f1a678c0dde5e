/* Which batches were opened or have become full since the last look: the steps of collect.h. */
#include "collect.h"

#include "orders.h"

#include <stdlib.h>

int mp_collector_open(struct mp_collector *collector, const struct mp_sender *sender) {
    const uint32_t slots = sender->region.slots, partitions = sender->region.max_partitions;
    memset(collector, 0, sizeof *collector);
    collector->latest = calloc(partitions, sizeof *collector->latest);
    collector->unborn_bits = calloc((partitions + 63) / 64, sizeof *collector->unborn_bits);
    collector->partition = calloc(slots, sizeof *collector->partition);
    collector->slots = calloc(slots, sizeof *collector->slots);
    /* Of each partition at most the latest one that was known, of all together each slot once. */
    collector->found = calloc((size_t)slots + partitions, sizeof *collector->found);
    return collector->latest && collector->unborn_bits && collector->partition &&
                   collector->slots && collector->found
               ? 0
               : -1;
}

void mp_collector_close(struct mp_collector *collector) {
    free(collector->latest);
    free(collector->unborn_bits);
    free(collector->partition);
    free(collector->slots);
    free(collector->found);
    memset(collector, 0, sizeof *collector);
}

static void tell(struct mp_collector *collector, uint32_t partition, const struct mp_latest *batch,
                 uint64_t seq, int full) {
    const uint32_t place = collector->count++;
    collector->found[place] = (struct mp_found){0,         seq, batch->opened_ns, partition,
                                                batch->slot, full != 0, place};
    collector->partition[batch->slot] = partition;
}

static void set_unborn(struct mp_collector *collector, uint32_t partition, int unborn) {
    collector->unborn_bits[partition / 64] ^= UINT64_C(1) << partition % 64;
    collector->unborn += unborn ? 1u : -1u;
}

/* The batch is the partition's latest but for `newer` ones behind it: tell what it has come to. */
static void advance(struct mp_collector *collector, const struct mp_sender *sender,
                    uint32_t partition, int newer) {
    struct mp_latest *batch = &collector->latest[partition];
    if (batch->state == MP_NOTHING) return;
    const uint64_t word = atomic_load_explicit(&sender->region.slot[batch->slot].word, ACQUIRE);
    const int full = newer || (word & MP_SEAL);
    if (batch->state == MP_OPENED) {
        if (!full) return;
        tell(collector, partition, batch, 0, 1);
        batch->state = MP_NOTHING;
    } else if (full || mp_records(word)) {
        set_unborn(collector, partition, 0);
        tell(collector, partition, batch, batch->seq, full);
        batch->state = full ? MP_NOTHING : MP_OPENED;
    }
}

static int look(struct mp_collector *collector, struct mp_sender *sender, uint32_t partition,
                int64_t *now_ns) {
    uint64_t seq;
    const int64_t fresh = mp_new_batches(sender, partition, collector->slots, &seq);
    if (fresh < 0) return -1;
    if (fresh > 0 && *now_ns == 0) *now_ns = mp_now_ns();
    const uint32_t first = collector->count;
    struct mp_latest *batch = &collector->latest[partition];
    advance(collector, sender, partition, fresh > 0);
    for (int64_t left = fresh; left > 0; left--, seq++) {
        const uint32_t slot = collector->slots[left - 1];
        *batch = (struct mp_latest){seq, mp_opened_ns(sender, slot, *now_ns), slot, MP_UNBORN};
        set_unborn(collector, partition, 1);
        advance(collector, sender, partition, left > 1);
        if (batch->state == MP_UNBORN) collector->looks = 0;
    }
    int64_t key = 0;
    for (uint32_t i = collector->count; i > first; i--)
        if (collector->found[i - 1].seq) key = collector->found[i - 1].opened_ns;
    for (uint32_t i = first; i < collector->count; i++) collector->found[i].key = key;
    return 0;
}

static int by_opening(const void *left, const void *right) {
    const struct mp_found *a = left, *b = right;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->place < b->place ? -1 : 1;
}

/* What was opened first comes first: its linger ends first. */
static void sort(struct mp_collector *collector) {
    for (uint32_t i = 1; i < collector->count; i++)
        if (collector->found[i].key < collector->found[i - 1].key) {
            qsort(collector->found, collector->count, sizeof *collector->found, by_opening);
            return;
        }
}

int mp_collect(struct mp_collector *collector, struct mp_sender *sender, int everything) {
    int64_t now_ns = 0;
    collector->count = 0;
    if (everything) {
        for (uint32_t i = 0; i < sender->next_index; i++)
            if (atomic_load_explicit(&sender->region.partitions[i].open, ACQUIRE) &&
                look(collector, sender, i, &now_ns) < 0)
                return -1;
    } else {
        collector->looks++;
        for (uint32_t i = 0; i < mp_dirty_words(sender); i++) {
            uint64_t bits = mp_take_dirty(sender, i) | collector->unborn_bits[i];
            for (; bits; bits &= bits - 1) {
                const uint32_t partition = i * 64 + (uint32_t)__builtin_ctzll(bits);
                if (partition < sender->region.max_partitions &&
                    look(collector, sender, partition, &now_ns) < 0)
                    return -1;
            }
        }
    }
    sort(collector);
    return 0;
}

int mp_collect_changed(const struct mp_collector *collector, const struct mp_sender *sender) {
    for (uint32_t i = 0; collector->unborn && i < mp_dirty_words(sender); i++)
        for (uint64_t bits = collector->unborn_bits[i]; bits; bits &= bits - 1) {
            const uint32_t partition = i * 64 + (uint32_t)__builtin_ctzll(bits);
            const uint32_t slot = collector->latest[partition].slot;
            const uint64_t word = atomic_load_explicit(&sender->region.slot[slot].word, SEQ_CST);
            if ((word & MP_SEAL) || mp_records(word)) return 1;
        }
    return 0;
}

void mp_collect_sealed(struct mp_collector *collector, uint32_t slot) {
    struct mp_latest *batch = &collector->latest[collector->partition[slot]];
    if (batch->state == MP_OPENED && batch->slot == slot) batch->state = MP_NOTHING;
}
