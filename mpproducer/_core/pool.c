#include "pool.h"

#include "orders.h"

#include <limits.h>
#include <stdlib.h>

const char *mp_sender_open(struct mp_sender *sender, int ctl_fd, int pool_fd,
                           const struct mp_geometry *geometry) {
    memset(sender, 0, sizeof *sender);
    if (geometry->slots == 0 || geometry->slots > MP_MAX_SLOTS) return "slot count out of range";
    if (geometry->max_partitions == 0 || geometry->max_partitions > 1u << 20)
        return "max_partitions out of range";
    if (geometry->batch_size == 0 || geometry->max_request_size == 0)
        return "batch_size and max_request_size must be given";
    if (geometry->batch_size > MP_MAX_BYTES || geometry->max_request_size > MP_MAX_BYTES)
        return "batch_size and max_request_size must be below 16 MiB";
    const char *failed =
        mp_region_map(&sender->region, ctl_fd, pool_fd, geometry->slots, geometry->max_partitions,
                      geometry->max_topics, 1);
    if (failed) return failed;
    sender->next_seq = malloc(sizeof *sender->next_seq * geometry->max_partitions);
    sender->committed = calloc(geometry->slots, sizeof *sender->committed);
    sender->known = calloc(geometry->slots, sizeof *sender->known);
    sender->alive = calloc(MP_MAX_OWNERS + 1, sizeof *sender->alive);
    sender->quarantine = calloc(geometry->slots, sizeof *sender->quarantine);
    if (!sender->next_seq || !sender->committed || !sender->known || !sender->alive ||
        !sender->quarantine) {
        mp_sender_close(sender);
        return "out of memory";
    }
    for (uint32_t i = 0; i < geometry->max_partitions; i++) sender->next_seq[i] = 1;
    for (uint32_t i = 0; i < geometry->slots; i++) mp_show_free(&sender->region, i);
    sender->partial_owner = 0;
    sender->partial_first = MP_NONE;
    struct mp_ctl *ctl = sender->region.ctl;
    ctl->layout_hash = mp_layout_hash();
    ctl->version = MP_LAYOUT_VERSION;
    ctl->slots = geometry->slots;
    ctl->max_partitions = geometry->max_partitions;
    ctl->max_topics = geometry->max_topics;
    ctl->batch_size = geometry->batch_size;
    ctl->max_request_size = geometry->max_request_size;
    ctl->linger_us = geometry->linger_us;
    ctl->ignore_keys = geometry->ignore_keys;
    ctl->compress = geometry->compress;
    ctl->generation = geometry->generation;
    ctl->magic = MP_MAGIC;
    return NULL;
}

void mp_sender_close(struct mp_sender *sender) {
    mp_region_unmap(&sender->region);
    free(sender->next_seq);
    free(sender->committed);
    free(sender->known);
    free(sender->alive);
    free(sender->quarantine);
    memset(sender, 0, sizeof *sender);
}

uint64_t mp_take_dirty(struct mp_sender *sender, uint32_t i) {
    mp_a64 *word = &sender->region.dirty[i];
    if (atomic_load_explicit(word, SEQ_CST) == 0) return 0;
    return atomic_exchange_explicit(word, 0, SEQ_CST);
}

int64_t mp_new_batches(struct mp_sender *sender, uint32_t partition, uint32_t *slots,
                       uint64_t *first_seq) {
    struct mp_region *region = &sender->region;
    const uint64_t open = atomic_load_explicit(&region->partitions[partition].open, ACQUIRE);
    uint64_t seq = mp_open_seq(open);
    const uint64_t next = sender->next_seq[partition];
    if (open == 0 || seq < next) return 0;
    const uint64_t count = seq - next + 1;
    if (count > region->slots) return -1;
    uint32_t slot = mp_open_slot(open);
    for (uint64_t i = 0; i < count; i++, seq--) {
        if (slot >= region->slots || sender->known[slot] != MP_UNKNOWN) return -1;
        struct mp_slot *header = &region->slot[slot];
        const uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
        if (!(word & MP_LIVE) || mp_is_extension(word)) return -1;
        if (atomic_load_explicit(&header->batch_id, RELAXED) != mp_batch_id(partition, seq))
            return -1;
        slots[i] = slot;
        slot = atomic_load_explicit(&header->prev, RELAXED);
    }
    for (uint64_t i = 0; i < count; i++) sender->known[slots[i]] = MP_REPORTED;
    *first_seq = next;
    sender->next_seq[partition] = next + count;
    return (int64_t)count;
}

int64_t mp_opened_ns(const struct mp_sender *sender, uint32_t slot, int64_t now_ns) {
    const mp_a32 *opened_us = &sender->region.slot[slot].opened_us;
    const uint32_t now_us = (uint32_t)(now_ns / 1000);
    const int32_t age_us = (int32_t)(now_us - atomic_load_explicit(opened_us, RELAXED));
    return age_us > 0 ? now_ns - (int64_t)age_us * 1000 : now_ns;
}

int mp_seal(struct mp_sender *sender, uint32_t slot) {
    mp_a64 *word = &sender->region.slot[slot].word;
    uint64_t seen = atomic_load_explicit(word, ACQUIRE);
    if (!(seen & MP_SEAL)) {
        /* R1. An owner may commit or change between the test and the seal; that is harmless. */
        if (mp_records(seen) == 0 && mp_owner(seen) && sender->alive[mp_owner(seen)]) return 0;
        MP_STEP(40);
        atomic_fetch_or_explicit(word, MP_SEAL, ACQ_REL);
        seen = atomic_load_explicit(word, ACQUIRE);
    }
    sender->committed[slot] = mp_bytes(seen);
    return 1;
}

static inline void set_free(struct mp_region *region, uint32_t slot, uint64_t word) {
    /* CAS of the loaded word (R4); only the sender frees these, so it cannot fail for long. */
    while (!atomic_compare_exchange_weak_explicit(&region->slot[slot].word, &word,
                                                  word & MP_GEN_MASK, ACQ_REL, ACQUIRE)) {
    }
    mp_show_free(region, slot);
}

/* Frees `count` extensions from `slot` on, as far as they belong to the batch. */
static void free_chain(struct mp_region *region, uint32_t slot, uint32_t count, uint64_t batch_id,
                       uint32_t pos) {
    for (; count > 0 && slot < region->slots; count--, pos++) {
        struct mp_slot *header = &region->slot[slot];
        const uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
        if (!(word & MP_LIVE) || !mp_is_extension(word) ||
            atomic_load_explicit(&header->batch_id, RELAXED) != batch_id ||
            atomic_load_explicit(&header->pos, RELAXED) != pos)
            return;
        const uint32_t next = atomic_load_explicit(&header->next, RELAXED);
        set_free(region, slot, word);
        slot = next;
    }
}

/* R2: no process that may still write into the batch, or read it, is left. A compress word that is
 * nobody's is taken each time, so that compression cannot begin once this has said yes: NONE comes
 * back when BUSY is given up, by a worker whose generation came round even under the rightful one
 * (models/compress.pml, mutant 11). */
static int is_quiet(struct mp_sender *sender, uint32_t slot) {
    uint32_t compressor = 0, first, bytes;
    const uint32_t state = mp_compressed(sender, slot, &compressor, &first, &bytes);
    const uint32_t owner =
        mp_owner(atomic_load_explicit(&sender->region.slot[slot].word, ACQUIRE));
    if (owner && sender->alive[owner]) return 0;
    return !((state == MP_C_BUSY || state == MP_C_RECALLED) && sender->alive[compressor]);
}

static void release_now(struct mp_sender *sender, uint32_t slot) {
    struct mp_region *region = &sender->region;
    struct mp_slot *header = &region->slot[slot];
    const uint64_t batch_id = atomic_load_explicit(&header->batch_id, RELAXED);
    const uint64_t compress = atomic_load_explicit(&header->compress, ACQUIRE);
    if (mp_compress_state(compress) == MP_C_DONE) {
        const uint32_t bytes = (uint32_t)(compress & MP_BYTES_MASK);
        const uint32_t first = (uint32_t)(compress >> MP_COMPRESS_FIRST_SHIFT) & 0xfffffu;
        free_chain(region, first, mp_slots_for(bytes), batch_id, MP_POS_COMPRESSED);
    }
    free_chain(region, atomic_load_explicit(&header->next, RELAXED),
               mp_slots_for(sender->committed[slot]) - 1, batch_id, 1);
    MP_STEP(41);
    set_free(region, slot, atomic_load_explicit(&header->word, ACQUIRE));
    sender->known[slot] = MP_UNKNOWN;
}

int mp_release(struct mp_sender *sender, uint32_t slot) {
    if (is_quiet(sender, slot)) {
        release_now(sender, slot);
        return 1;
    }
    sender->known[slot] = MP_QUARANTINED;
    sender->quarantine[sender->quarantined++] = slot;
    return 0;
}

uint32_t mp_retry_quarantine(struct mp_sender *sender) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < sender->quarantined; i++) {
        const uint32_t slot = sender->quarantine[i];
        if (is_quiet(sender, slot))
            release_now(sender, slot);
        else
            sender->quarantine[kept++] = slot;
    }
    sender->quarantined = kept;
    return kept;
}

/* R7: does the batch that this extension was claimed for count it? */
static int is_counted(const struct mp_sender *sender, const struct mp_slot *header) {
    const struct mp_region *region = &sender->region;
    const uint32_t head = atomic_load_explicit(&header->head, ACQUIRE);
    if (head >= region->slots) return 0;
    const struct mp_slot *batch = &region->slot[head];
    const uint64_t word = atomic_load_explicit(&batch->word, ACQUIRE);
    if (!(word & MP_LIVE) || mp_is_extension(word)) return 0;
    if (atomic_load_explicit(&batch->batch_id, RELAXED) !=
        atomic_load_explicit(&header->batch_id, RELAXED))
        return 0;
    const uint32_t pos = atomic_load_explicit(&header->pos, RELAXED);
    if (pos & MP_POS_COMPRESSED)
        return mp_compress_state(atomic_load_explicit(&batch->compress, ACQUIRE)) == MP_C_DONE;
    return pos < mp_slots_for(mp_bytes(word));
}

uint32_t mp_reap(struct mp_sender *sender, uint32_t owner) {
    struct mp_region *region = &sender->region;
    struct mp_pool *pool = region->pool;
    uint32_t freed = 0;
    if (sender->partial_owner == owner) { /* freed below like all its unplaced slots */
        sender->partial_owner = 0;
        sender->partial_first = MP_NONE;
        sender->partial_units = 0;
    }
    for (uint32_t slot = 0; slot < region->slots; slot++) {
        struct mp_slot *header = &region->slot[slot];
        const uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
        if (!(word & MP_LIVE)) mp_show_free(region, slot); /* R8: it died on the way to or from it */
        if (!(word & MP_LIVE) || mp_owner(word) != owner) continue;
        if (mp_is_extension(word) ? is_counted(sender, header) : sender->known[slot]) continue;
        MP_STEP(42);
        set_free(region, slot, word);
        freed++;
    }
    atomic_store_explicit(&pool->waiters[owner].state, MP_W_IDLE, RELEASE);
    atomic_fetch_and_explicit(&pool->waiting[owner / 64], ~(UINT64_C(1) << owner % 64), SEQ_CST);
    return freed;
}

int mp_owner_reusable(const struct mp_sender *sender, uint32_t owner) {
    const struct mp_region *region = &sender->region;
    for (uint32_t slot = 0; slot < region->slots; slot++) {
        const struct mp_slot *header = &region->slot[slot];
        const uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
        if (!(word & MP_LIVE)) continue;
        if (mp_owner(word) == owner) return 0;
        if (mp_is_extension(word)) continue;
        /* Its completions must have been routed, too. */
        if (atomic_load_explicit(&header->participants[owner / 64], RELAXED) >> owner % 64 & 1)
            return 0;
        const uint64_t compress = atomic_load_explicit(&header->compress, ACQUIRE);
        const uint32_t state = mp_compress_state(compress);
        if ((state == MP_C_BUSY || state == MP_C_RECALLED) && mp_compress_owner(compress) == owner)
            return 0;
    }
    return 1;
}

/* The waiting owner with the lowest ticket, or 0. Refreshes what sleep_begin compares with. The
 * ticket goes with the acquired state: read once more it might be the next wait's, without units. */
static uint32_t first_waiter(struct mp_sender *sender, uint64_t *first, uint32_t *count) {
    struct mp_pool *pool = sender->region.pool;
    uint64_t best = UINT64_MAX;
    uint32_t found = 0;
    *count = 0;
    for (uint32_t i = 0; i < MP_OWNER_WORDS; i++) {
        uint64_t bits = atomic_load_explicit(&pool->waiting[i], SEQ_CST);
        sender->seen_waiting[i] = bits;
        for (; bits; bits &= bits - 1) {
            const uint32_t owner = i * 64 + (uint32_t)__builtin_ctzll(bits);
            struct mp_waiter *waiter = &pool->waiters[owner];
            const uint32_t state = atomic_load_explicit(&waiter->state, ACQUIRE);
            const uint64_t ticket = atomic_load_explicit(&waiter->ticket, RELAXED);
            if (state != mp_waiting(ticket)) continue;
            (*count)++;
            if (ticket < best) {
                best = ticket;
                found = owner;
            }
        }
    }
    sender->seen_waiters = *count;
    *first = best;
    return found;
}

/* The chain lies in shared memory: what a broken worker made of it ends here, and what it cut off
 * is freed with that worker. */
static void drop_partial(struct mp_sender *sender) {
    uint32_t slot = sender->partial_first;
    for (uint32_t i = 0; i < sender->partial_units && slot < sender->region.slots; i++) {
        const uint32_t next = atomic_load_explicit(&sender->region.slot[slot].next, RELAXED);
        mp_unclaim(&sender->region, slot, sender->partial_owner);
        slot = next;
    }
    sender->partial_owner = 0;
    sender->partial_first = MP_NONE;
    sender->partial_units = 0;
}

uint32_t mp_waiters(struct mp_sender *sender) {
    uint64_t ticket;
    uint32_t count;
    first_waiter(sender, &ticket, &count);
    if (count == 0) drop_partial(sender); /* whoever it was put by for has given up */
    return count;
}

uint32_t mp_grant(struct mp_sender *sender) {
    struct mp_region *region = &sender->region;
    uint32_t served = 0, count;
    uint64_t ticket;
    for (;;) {
        const uint32_t owner = first_waiter(sender, &ticket, &count);
        if (!owner) {
            drop_partial(sender);
            return served;
        }
        struct mp_waiter *waiter = &region->pool->waiters[owner];
        uint32_t units = atomic_load_explicit(&waiter->units, RELAXED);
        if (units < 1 || units > region->slots) units = 1;
        if (sender->partial_owner != owner || sender->partial_ticket != ticket) {
            drop_partial(sender);
            sender->partial_owner = owner;
            sender->partial_ticket = ticket;
        }
        /* What the head of the queue has got stays its own: small requests cannot starve it. */
        while (sender->partial_units < units) {
            const uint32_t slot = mp_claim(region, owner, 1);
            if (slot == MP_NONE) return served;
            atomic_store_explicit(&region->slot[slot].next, sender->partial_first, RELAXED);
            sender->partial_first = slot;
            sender->partial_units++;
        }
        atomic_store_explicit(&waiter->first, sender->partial_first, RELAXED);
        uint32_t waiting = mp_waiting(ticket);
        MP_STEP(43);
        if (atomic_compare_exchange_strong_explicit(&waiter->state, &waiting, MP_W_GRANTED,
                                                    RELEASE, RELAXED)) {
            sender->partial_owner = 0;
            sender->partial_first = MP_NONE;
            sender->partial_units = 0;
            mp_futex_wake(&waiter->state, INT_MAX);
            served++;
        }
        /* Else it timed out between, and may wait again: the next turn drops the partial grant. */
    }
}

uint32_t mp_free_slots(const struct mp_sender *sender) {
    const uint32_t slots = sender->region.slots;
    uint32_t count = 0;
    for (uint32_t i = 0; i < (slots + 63) / 64; i++) {
        uint64_t bits = atomic_load_explicit(&sender->region.free[i], RELAXED);
        if (slots - i * 64 < 64) bits &= (UINT64_C(1) << (slots - i * 64)) - 1; /* the rest is nobody's */
        count += (uint32_t)__builtin_popcountll(bits);
    }
    return count;
}

int mp_sleep_begin(struct mp_sender *sender, uint64_t deadline_us) {
    struct mp_region *region = &sender->region;
    const uint64_t word = deadline_us << 16 | (++sender->epoch & 0xffffu);
    atomic_exchange_explicit(&region->pool->wake, word, SEQ_CST);
    uint64_t busy = 0, waiting = 0;
    for (uint32_t i = 0; i < mp_dirty_words(sender); i++)
        busy |= atomic_load_explicit(&region->dirty[i], SEQ_CST);
    for (uint32_t i = 0; i < MP_OWNER_WORDS; i++) {
        const uint64_t bits = atomic_load_explicit(&region->pool->waiting[i], SEQ_CST);
        busy |= bits ^ sender->seen_waiting[i]; /* come, or gone: what was put by must move on */
        waiting |= bits;
    }
    /* Who gave memory back, or began a second wait, while the word was still 0 has woken nobody. One
     * that waits again and is not served is news, too: now nothing may linger. */
    const uint32_t seen = sender->seen_waiters;
    if (!busy && waiting) busy = mp_grant(sender) || sender->seen_waiters > seen;
    if (busy) mp_sleep_end(sender);
    return busy == 0;
}

void mp_sleep_end(struct mp_sender *sender) {
    atomic_exchange_explicit(&sender->region.pool->wake, 0, SEQ_CST);
}

uint32_t mp_compressed(struct mp_sender *sender, uint32_t slot, uint32_t *owner, uint32_t *first,
                       uint32_t *bytes) {
    struct mp_slot *header = &sender->region.slot[slot];
    uint64_t word = atomic_load_explicit(&header->compress, ACQUIRE);
    const uint32_t gen = mp_gen(atomic_load_explicit(&header->word, RELAXED));
    if (mp_compress_state(word) == MP_C_NONE &&
        atomic_compare_exchange_strong_explicit(&header->compress, &word,
                                                mp_compress_word(MP_C_TAKEN, gen), ACQ_REL,
                                                ACQUIRE))
        return MP_C_NONE; /* it was nobody's; it is ours from here on */
    *owner = mp_compress_owner(word);
    *first = (uint32_t)(word >> MP_COMPRESS_FIRST_SHIFT) & 0xfffffu;
    *bytes = (uint32_t)(word & MP_BYTES_MASK);
    return mp_compress_state(word);
}

int mp_take_compression(struct mp_sender *sender, uint32_t slot) {
    mp_a64 *compress = &sender->region.slot[slot].compress;
    uint64_t word = atomic_load_explicit(compress, ACQUIRE);
    while (mp_compress_state(word) == MP_C_BUSY) {
        const uint64_t recalled = mp_compress_recalled(mp_compress_owner(word), word & 0x3fff);
        if (atomic_compare_exchange_strong_explicit(compress, &word, recalled, ACQ_REL, ACQUIRE))
            return 1;
    }
    return mp_compress_state(word) != MP_C_DONE && mp_compress_state(word) != MP_C_NONE;
}

uint32_t mp_topic_add(struct mp_sender *sender, const char *name, size_t length) {
    struct mp_region *region = &sender->region;
    if (length == 0 || length >= MP_TOPIC_NAME) return MP_NONE;
    const uint32_t known = mp_topic_find(region, name, length);
    if (known != MP_NONE) return known;
    const uint32_t topic = atomic_load_explicit(&region->ctl->topic_count, RELAXED);
    if (topic >= region->max_topics) return MP_NONE;
    memcpy(region->topics[topic].name, name, length); /* the rest is zero */
    atomic_store_explicit(&region->ctl->topic_count, topic + 1, RELEASE);
    return topic;
}

int mp_topic_grow(struct mp_sender *sender, uint32_t topic, uint32_t partitions) {
    struct mp_region *region = &sender->region;
    struct mp_topic *entry = &region->topics[topic];
    const uint32_t known = atomic_load_explicit(&entry->partition_count, RELAXED);
    if (partitions > known) {
        const uint32_t more = partitions - known;
        if (more > region->max_partitions - sender->next_index) return -1;
        struct mp_extent *run = entry->extents > 0 ? &entry->extent[entry->extents - 1] : NULL;
        const uint32_t count = run ? atomic_load_explicit(&run->count, RELAXED) : 0;
        if (run && atomic_load_explicit(&run->first, RELAXED) + count == sender->next_index) {
            /* Readers add up counts below partition_count only, which is stored after this. */
            atomic_store_explicit(&run->count, count + more, RELAXED);
        } else {
            if (entry->extents == MP_EXTENTS) return -1;
            run = &entry->extent[entry->extents++];
            atomic_store_explicit(&run->first, sender->next_index, RELAXED);
            atomic_store_explicit(&run->count, more, RELAXED);
        }
        for (uint32_t i = 0; i < more; i++)
            atomic_store_explicit(&region->available[sender->next_index + i], 1, RELAXED);
        sender->next_index += more;
        atomic_store_explicit(&entry->partition_count, partitions, RELEASE);
    }
    atomic_store_explicit(&entry->state, MP_T_READY, RELEASE);
    return 0;
}

void mp_topic_fail(struct mp_sender *sender, uint32_t topic, uint32_t code, const char *message,
                   size_t length) {
    struct mp_topic *entry = &sender->region.topics[topic];
    if (atomic_load_explicit(&entry->state, RELAXED) == MP_T_READY) return;
    if (length >= MP_TOPIC_MESSAGE) length = MP_TOPIC_MESSAGE - 1;
    char text[MP_TOPIC_MESSAGE] = {0};
    memcpy(text, message, length);
    atomic_fetch_add_explicit(&entry->lock, 1, RELAXED);
    /* Each store is a release: who reads one of them sees the odd lock afterwards. */
    for (uint32_t i = 0; i < MP_TOPIC_MESSAGE / 8; i++) {
        uint64_t word;
        memcpy(&word, text + i * 8, 8);
        atomic_store_explicit(&entry->message[i], word, RELEASE);
    }
    atomic_store_explicit(&entry->error_code, code, RELEASE);
    atomic_store_explicit(&entry->state, MP_T_ERROR, RELEASE);
    atomic_fetch_add_explicit(&entry->lock, 1, RELEASE);
}

void mp_topic_notify(struct mp_sender *sender) {
    mp_a32 *version = &sender->region.ctl->topic_version;
    atomic_fetch_add_explicit(version, 1, RELEASE);
    mp_futex_wake(version, INT_MAX);
}
