/* libFuzzer target of the sender's half over a pool in which any worker may have written anything:
 * whatever the words, chains and waiters say, the sender reads and writes inside its arrays, every
 * call ends, and what a walk accepts lies inside the pool.
 *
 * Input: operations, one byte and its operands each; some write to shared words as a broken worker
 * would, the others are the sender's calls in the order of their uses. Every array of the region is
 * an allocation of its own, so that one element too far is seen. */
#include <stdlib.h>

#include "append.h"
#include "collect.h"

enum { SLOTS = 6, PARTITIONS = 3, TOPICS = 2, OWNERS = 8, MAX_STEPS = 400 };

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

struct input {
    const uint8_t *at, *end;
};

static uint64_t take(struct input *in, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++) value |= (uint64_t)(in->at < in->end ? *in->at++ : 0) << 8 * i;
    return value;
}

static void *zeroed(size_t count, size_t bytes, size_t align) {
    const size_t whole = (count * bytes + align - 1) / align * align;
    void *memory = aligned_alloc(align, whole ? whole : align);
    if (!memory) abort();
    return memset(memory, 0, whole);
}

static struct mp_sender open_sender(void) {
    struct mp_sender s;
    memset(&s, 0, sizeof s);
    s.region = (struct mp_region){
        .ctl = zeroed(1, sizeof(struct mp_ctl), MP_LINE),
        .topics = zeroed(TOPICS, sizeof(struct mp_topic), 64),
        .available = zeroed(PARTITIONS, 1, 1),
        .pool = zeroed(1, sizeof(struct mp_pool), MP_LINE),
        .dirty = zeroed(1, 8, 8),
        .free = zeroed(1, 8, 8),
        .sticky = zeroed(TOPICS, sizeof(struct mp_sticky), 64),
        .partitions = zeroed(PARTITIONS, sizeof(struct mp_partition), MP_LINE),
        .slot = zeroed(SLOTS, sizeof(struct mp_slot), MP_LINE),
        .data = zeroed(SLOTS, MP_SLOT_BYTES, 16),
        .slots = SLOTS, .max_partitions = PARTITIONS, .max_topics = TOPICS,
    };
    s.region.ctl->batch_size = 40000;
    s.next_seq = zeroed(PARTITIONS, sizeof *s.next_seq, 8);
    s.committed = zeroed(SLOTS, sizeof *s.committed, 8);
    s.known = zeroed(SLOTS, sizeof *s.known, 1);
    s.alive = zeroed(MP_MAX_OWNERS + 1, sizeof *s.alive, 1);
    s.quarantine = zeroed(SLOTS, sizeof *s.quarantine, 4);
    for (int i = 0; i < PARTITIONS; i++) s.next_seq[i] = 1;
    for (uint32_t i = 0; i < SLOTS; i++) mp_show_free(&s.region, i);
    s.partial_first = MP_NONE;
    s.next_index = PARTITIONS;
    return s;
}

static void close_sender(struct mp_sender *s) {
    struct mp_region *r = &s->region;
    void *all[] = {r->ctl,   r->topics,    r->available, r->pool,  r->dirty,    r->sticky, r->partitions,
                   r->free,
                   r->slot,  r->data,      s->next_seq,  s->committed, s->known, s->alive,  s->quarantine};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void check_spans(const struct mp_walk *walk, uint32_t bytes) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < walk->spans; i++) {
        total += walk->span[i].bytes;
        if (walk->span[i].offset + walk->span[i].bytes > (uint64_t)SLOTS * MP_SLOT_BYTES) abort();
    }
    if (total != bytes) abort();
}

static void check_found(const struct mp_collector *collector, const struct mp_sender *s) {
    if (collector->count > SLOTS + PARTITIONS || collector->unborn > PARTITIONS) abort();
    for (uint32_t i = 0; i < collector->count; i++) {
        const struct mp_found *one = &collector->found[i];
        if (one->slot >= SLOTS || one->partition >= PARTITIONS) abort();
        if (one->seq >= s->next_seq[one->partition] || (!one->seq && !one->full)) abort();
        if (i > 0 && one->key < collector->found[i - 1].key) abort();
    }
}

/* A worker that has lost its mind, or its memory. */
static void scribble(struct mp_sender *s, struct input *in) {
    const uint32_t kind = (uint32_t)take(in, 1);
    struct mp_slot *slot = &s->region.slot[take(in, 1) % SLOTS];
    struct mp_waiter *waiter = &s->region.pool->waiters[take(in, 1) % OWNERS];
    switch (kind % 15) {
    case 0: atomic_store(&slot->word, take(in, 8)); break;
    case 1: atomic_store(&slot->batch_id, take(in, 8)); break;
    case 2: atomic_store(&slot->compress, take(in, 8)); break;
    case 3: atomic_store(&slot->next, (uint32_t)take(in, 4)); break;
    case 4: atomic_store(&slot->prev, (uint32_t)take(in, 4)); break;
    case 5: atomic_store(&slot->head, (uint32_t)take(in, 4)); break;
    case 6: atomic_store(&slot->pos, (uint32_t)take(in, 4)); break;
    case 7: atomic_store(&s->region.partitions[take(in, 1) % PARTITIONS].open, take(in, 8)); break;
    case 8: atomic_store(&waiter->state, (uint32_t)take(in, 4)); break;
    case 9: atomic_store(&waiter->ticket, take(in, 8)); break;
    case 10: atomic_store(&waiter->units, (uint32_t)take(in, 4)); break;
    case 11: atomic_store(&s->region.pool->waiting[0], take(in, 2)); break;
    case 12: atomic_store(&s->region.pool->cursor, take(in, 8)); break;
    case 13: atomic_store(&s->region.free[0], take(in, 8)); break;
    default: atomic_store(&slot->base_timestamp, (int64_t)take(in, 8)); break;
    }
}

/* A worker that keeps to the rules: so that there are batches to be broken. */
static void append(struct mp_sender *s, struct input *in) {
    static const uint8_t value[50000];
    struct mp_writer writer = {.region = s->region, .owner = 1 + (uint32_t)take(in, 1) % (OWNERS - 1),
                               .stash = MP_NONE, .wake_fd = -1};
    const uint32_t partition = (uint32_t)take(in, 1) % PARTITIONS;
    const struct mp_record record = {.value = value, .value_bytes = (int32_t)take(in, 2) % 50000,
                                     .key_bytes = -1, .timestamp_ms = 1000};
    struct mp_place place;
    const uint64_t open = atomic_load(&s->region.partitions[partition].open);
    /* Its own side trusts the words: only on sound ones. */
    for (uint32_t i = 0; i < SLOTS; i++)
        if (atomic_load(&s->region.slot[i].word) & MP_LIVE) return;
    if (open && mp_open_slot(open) >= SLOTS) return;
    if (mp_append(&writer, partition, &record, 0, &place) == MP_NO_MEMORY) return;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    struct input in = {bytes, bytes + size};
    struct mp_sender s = open_sender();
    struct mp_span *spans = malloc(sizeof *spans * SLOTS);
    uint32_t *found = malloc(sizeof *found * SLOTS);
    struct mp_collector collector;
    if (mp_collector_open(&collector, &s) < 0) abort();
    struct mp_walk walk = {.span = spans};
    for (int steps = 0; in.at < in.end && steps < MAX_STEPS; steps++) {
        const uint32_t what = (uint32_t)take(&in, 1) % 16;
        const uint32_t slot = (uint32_t)take(&in, 1) % SLOTS;
        uint32_t owner = 1 + slot % (OWNERS - 1), first = 0, length = 0;
        uint64_t seq;
        switch (what) {
        case 0: case 1: case 2: scribble(&s, &in); break;
        case 3: append(&s, &in); break;
        case 4: s.alive[owner] ^= 1; break;
        case 5: {
            if (slot % 2) {
                atomic_store(s.region.dirty, take(&in, 1));
                if (mp_collect(&collector, &s, slot % 4 == 1) == 0) check_found(&collector, &s);
                break;
            }
            const int64_t count = mp_new_batches(&s, slot % PARTITIONS, found, &seq);
            if (count > SLOTS) abort();
            for (int64_t i = 0; i < count; i++)
                if (found[i] >= SLOTS || s.known[found[i]] != MP_REPORTED) abort();
            break;
        }
        case 6:
            if (s.known[slot] != MP_REPORTED || !mp_seal(&s, slot)) break;
            mp_collect_sealed(&collector, slot);
            if (!mp_walk(&s, slot, &walk)) check_spans(&walk, walk.bytes);
            break;
        case 7:
            if (s.known[slot] == MP_REPORTED &&
                mp_compressed(&s, slot, &owner, &first, &length) == MP_C_DONE &&
                !mp_output_spans(&s, slot, first, length, &walk))
                check_spans(&walk, length);
            break;
        case 8: if (s.known[slot] == MP_REPORTED) mp_take_compression(&s, slot); break;
        case 9: if (s.known[slot] == MP_REPORTED) mp_release(&s, slot); break;
        case 10: mp_retry_quarantine(&s); break;
        case 11: if (!s.alive[owner]) mp_reap(&s, owner); break;
        case 12: mp_owner_reusable(&s, owner); break;
        case 13: mp_grant(&s); break;
        case 14: mp_waiters(&s); break;
        default:
            if (mp_sleep_begin(&s, take(&in, 6))) mp_sleep_end(&s);
            mp_free_slots(&s);
        }
    }
    mp_collector_close(&collector);
    free(found);
    free(spans);
    close_sender(&s);
    return 0;
}
