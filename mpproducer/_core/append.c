#include "append.h"

#include "encode.h"
#include "orders.h"
#include "run.h"

#include <sched.h>

/* A contender that sees one unchanged owned word for this long seals the batch and goes on. */
#define STEAL_NS 200000
#define PAUSES 64
/* A batch whose rest could not take such a small record is full. */
#define FULL_SLACK 1024u
#define ALWAYS inline __attribute__((always_inline))

/* Keeps `count` chained slots that no committed byte lies in for the next turn. What is left of them
 * when the call ends goes back by mp_drop_stash, which looks for writers that wait. */
static void keep(struct mp_writer *writer, uint32_t first, uint32_t count) {
    for (; count > 0; count--) {
        const uint32_t next = atomic_load_explicit(&writer->region.slot[first].next, RELAXED);
        mp_stash_slot(writer, first);
        first = next;
    }
}

/* Claims `count` extensions of the batch behind chain place `pos`, and links them behind `tail`.
 * Returns the new tail, or MP_NONE when there are not so many. */
static uint32_t extend(struct mp_writer *writer, uint32_t head, uint32_t tail, uint64_t batch_id,
                       uint32_t pos, uint32_t count, uint32_t *first) {
    struct mp_region *region = &writer->region;
    *first = MP_NONE;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = mp_take_slot(writer, 1);
        if (slot == MP_NONE) {
            keep(writer, *first, i);
            return MP_NONE;
        }
        struct mp_slot *header = &region->slot[slot];
        atomic_store_explicit(&header->batch_id, batch_id, RELAXED);
        atomic_store_explicit(&header->pos, pos + 1 + i, RELAXED);
        atomic_store_explicit(&header->head, head, RELEASE);
        MP_STEP(4);
        atomic_store_explicit(&region->slot[tail].next, slot, RELAXED);
        if (i == 0) *first = slot;
        tail = slot;
    }
    return tail;
}

/* T6: "I write no more here". */
static inline void acknowledge(struct mp_region *region, uint32_t slot) {
    MP_STEP(5);
    atomic_fetch_and_explicit(&region->slot[slot].word, ~MP_OWNER_MASK, RELEASE);
}

static inline void join(struct mp_region *region, uint32_t slot, uint32_t owner) {
    /* Plain load and store suffice: only the owner of the batch writes here. */
    mp_a64 *set = &region->slot[slot].participants[owner / 64];
    const uint64_t bit = UINT64_C(1) << owner % 64;
    const uint64_t seen = atomic_load_explicit(set, RELAXED);
    if (!(seen & bit)) atomic_store_explicit(set, seen | bit, RELAXED);
}

/* After our seal and before its announcement. */
static void note_sealed(struct mp_writer *writer, struct mp_place *place, uint64_t batch_id,
                        uint32_t slot, uint64_t word) {
    if (place->sealed_count == MP_MAX_SEALED) return; /* the sender compresses the rest */
    struct mp_sealed *sealed = &place->sealed[place->sealed_count++];
    *sealed = (struct mp_sealed){batch_id, slot, mp_gen(word), 0};
    if (writer->region.ctl->compress) sealed->ours = mp_compress_begin(writer, *sealed);
}

static inline int is_full(uint32_t bytes, uint32_t records, uint32_t last, uint32_t batch_size) {
    const uint32_t next = last + MP_RECORD_OVERHEAD; /* at most what one more like it takes */
    return bytes + (next < FULL_SLACK ? next : FULL_SLACK) > batch_size || records >= MP_MAX_RECORDS;
}

/* Waits while another owner works on the batch. Returns once the word has changed, or after
 * sealing it when it stayed the same for STEAL_NS (any change restarts the clock, so that a crowd
 * that makes progress never seals). */
SELDOM static void wait_for_owner(struct mp_writer *writer, struct mp_slot *header, uint64_t word) {
    int64_t since = 0;
    for (;;) {
        for (int i = 0; i < PAUSES; i++) {
            if (atomic_load_explicit(&header->word, RELAXED) != word) return;
            mp_pause();
        }
        const int64_t now = mp_now_ns();
        if (since == 0) since = now;
        if (now - since > STEAL_NS) break;
        sched_yield();
    }
    MP_STEP(6);
    if (atomic_compare_exchange_strong_explicit(&header->word, &word, word | MP_SEAL, ACQ_REL,
                                                RELAXED))
        writer->steals++;
}

enum turn { TURN_DONE, TURN_RETRY, TURN_OPEN, TURN_NO_MEMORY };

SELDOM uint32_t mp_write_across(struct mp_writer *writer, struct mp_run *run,
                                const struct mp_record *record, uint64_t delta) {
    struct mp_region *region = &writer->region;
    const uint32_t body = body_size(record, delta, run->index);
    const uint32_t total = varint_size(zigzag(body)) + body;
    const uint32_t more = mp_slots_for(run->end + total) - run->have;
    const uint32_t tail = run->tail, used = run->end - (run->have - 1) * MP_SLOT_BYTES;
    if (more > 0) {
        uint32_t first = MP_NONE;
        /* Nobody barges past writers that wait: only granted slots may still be used. */
        const uint32_t new_tail =
            writer->stash == MP_NONE && mp_anyone_waits(region)
                ? MP_NONE
                : extend(writer, run->slot, tail, run->batch_id, run->have - 1, more, &first);
        if (new_tail == MP_NONE) return 0;
        if (run->more == 0) run->first = first;
        run->more += more;
        run->have += more;
        run->tail = new_tail;
    }
    MP_STEP(11);
    encode(region, tail, used, record, delta, run->index, body);
    return total;
}

/* Writes as many of the records as fit, and returns how many: 0 when there is no memory. What the
 * loop works on is in locals, because the compiler must take a byte it writes for part of *run. */
static ALWAYS uint32_t write_run(struct mp_writer *writer, struct mp_run *run,
                                 const struct mp_record *const *records, uint32_t count) {
    struct mp_region *region = &writer->region;
    struct mp_slot *header = &region->slot[run->slot];
    const int64_t base = atomic_load_explicit(&header->base_timestamp, RELAXED);
    int64_t newest = atomic_load_explicit(&header->max_timestamp, RELAXED);
    const uint32_t batch_size = region->ctl->batch_size, stop = run->end + MP_RUN_BYTES;
    uint32_t done = 0, end = run->end, index = run->index, total = 0;
    uint32_t room = run->have * MP_SLOT_BYTES - end; /* in the last slot, from `at` on */
    uint8_t *at = mp_payload(region, run->tail) + (MP_SLOT_BYTES - room);
    do {
        const struct mp_record record = *records[done];
        const uint32_t bytes = (uint32_t)mp_record_bytes(&record);
        const uint32_t bound = MP_RECORD_OVERHEAD + bytes;
        if (end + bound > batch_size && done > 0) break;
        const uint64_t delta = zigzag(record.timestamp_ms - base);
        if (bound <= room) {
            MP_STEP(11);
            uint8_t *next = encode_flat(at, record, bytes + (record.headers ? 5 : 6), delta, index);
            total = (uint32_t)(next - at);
            at = next;
            room -= total;
            end += total;
        } else {
            run->end = end;
            run->index = index;
            const uint32_t written = mp_write_across(writer, run, &record, delta);
            if (written == 0) break;
            total = written;
            end += total;
            room = run->have * MP_SLOT_BYTES - end;
            at = mp_payload(region, run->tail) + (MP_SLOT_BYTES - room);
        }
        MP_STEP(12);
        newest = record.timestamp_ms > newest ? record.timestamp_ms : newest;
        index++;
        done++;
    } while (done < count && end < stop && index < MP_MAX_RECORDS);
    run->end = end;
    run->index = index;
    run->last = total;
    if (done > 0) atomic_store_explicit(&header->max_timestamp, newest, RELAXED);
    return done;
}

/* After a commit to a batch that somebody else may have opened.
 *  1. A marks its batch, commits its first record, and is stopped before it wakes the sender.
 *  2. B adds its record to A's batch, which is known to nobody else.
 *  3. The sender sleeps on: B's record would wait for A.
 * A mark that is gone was taken by a sender that was awake: it knows the batch, or looks again. */
static inline void look_for_other(struct mp_writer *writer, uint32_t partition,
                                  const struct mp_slot *header) {
    const struct mp_region *region = &writer->region;
    const uint64_t marks = atomic_load_explicit(&region->dirty[partition / 64], SEQ_CST);
    if (!(marks >> partition % 64 & 1)) return;
    const uint64_t sleep = atomic_load_explicit(&region->pool->wake, SEQ_CST);
    if (sleep == 0) return;
    /* By now the slot may be another batch's: then this one has been sent, and nothing is missed. */
    mp_wake_for_other(writer, sleep, atomic_load_explicit(&header->opened_us, RELAXED));
}

/* Appends to the batch that open[partition] shows, if it still takes records: as many as fit, all
 * committed by one CAS, so that they are in the batch together or not at all. */
static ALWAYS enum turn append_open(struct mp_writer *writer, uint32_t partition, uint64_t open,
                             const struct mp_record *const *records,
                             const struct mp_value *values, uint32_t count,
                             struct mp_place *place) {
    struct mp_region *region = &writer->region;
    const uint32_t slot = mp_open_slot(open);
    const uint64_t id = mp_batch_id(partition, mp_open_seq(open));
    const uint32_t batch_size = region->ctl->batch_size;
    const uint32_t bound = (uint32_t)mp_record_bound(records[0]);
    struct mp_slot *header = &region->slot[slot];
    uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
    if (!(word & MP_LIVE)) return TURN_OPEN;
    /* A recycled slot: the batch that open[] shows was drained long ago. */
    if (atomic_load_explicit(&header->batch_id, RELAXED) != id) return TURN_OPEN;
    if (word & MP_SEAL) {
        place->found_full = is_full(mp_bytes(word), mp_records(word), FULL_SLACK, batch_size);
        return TURN_OPEN;
    }
    if (mp_owner(word)) {
        wait_for_owner(writer, header, word);
        return TURN_RETRY;
    }
    const uint32_t index = mp_records(word);
    const uint32_t bytes = mp_bytes(word);
    /* A batch is linked with its first record in the making, so it is sealed or has one by now. */
    if (bytes + bound > batch_size || index >= MP_MAX_RECORDS) {
        MP_STEP(7);
        if (!atomic_compare_exchange_strong_explicit(&header->word, &word, word | MP_SEAL, ACQ_REL,
                                                     RELAXED))
            return TURN_RETRY;
        note_sealed(writer, place, id, slot, word);
        return TURN_OPEN;
    }
    const uint64_t mine = word | mp_own(writer->owner);
    MP_STEP(8);
    if (!atomic_compare_exchange_strong_explicit(&header->word, &word, mine, ACQUIRE, RELAXED))
        return TURN_RETRY;
    MP_STEP(9);
    uint64_t expected = mine;
    if (atomic_load_explicit(&header->batch_id, RELAXED) != id) {
        /* Recycled between our load and our CAS: we own somebody else's batch. Step back. */
        writer->stale++;
        if (!atomic_compare_exchange_strong_explicit(&header->word, &expected, word, RELEASE,
                                                     RELAXED))
            acknowledge(region, slot);
        return TURN_OPEN;
    }
    struct mp_run run = {
        .batch_id = id,
        .slot = slot,
        .index = index,
        .end = bytes,
        .tail = bytes <= MP_SLOT_BYTES ? slot : atomic_load_explicit(&header->tail, RELAXED),
        .have = mp_slots_for(bytes),
    };
    const uint32_t done =
        values ? mp_write_values(writer, &run, values, count, records[0]->timestamp_ms)
               : write_run(writer, &run, records, count);
    if (done == 0) {
        /* No memory: leave the batch as it was. While somebody waits the sender lets nothing linger,
         * so it goes as soon as its turn comes; until then it grows by what is granted. Sealed here it
         * would go with the little it has, and give back as little: in the end the pool is batches of
         * one slot, a request each. */
        MP_STEP(10);
        if (!atomic_compare_exchange_strong_explicit(&header->word, &expected, word, RELEASE,
                                                     RELAXED))
            acknowledge(region, slot);
        return TURN_NO_MEMORY;
    }
    atomic_store_explicit(&header->tail, run.tail, RELAXED);
    join(region, slot, writer->owner);
    uint64_t committed = MP_LIVE | (word & MP_GEN_MASK) |
                         (uint64_t)run.index << MP_COUNT_SHIFT | run.end;
    const int full = is_full(run.end, run.index, run.last, batch_size);
    if (full) committed |= MP_SEAL;
    MP_STEP(13);
    if (!atomic_compare_exchange_strong_explicit(&header->word, &expected, committed, RELEASE,
                                                 RELAXED)) {
        /* Sealed over us: no record of the run is in the batch, and none ever will be. */
        writer->lost_commits++;
        keep(writer, run.first, run.more);
        acknowledge(region, slot);
        return TURN_RETRY;
    }
    MP_STEP(14);
    place->batch_id = id;
    place->slot = slot;
    place->index = index;
    place->count = done;
    place->bytes = run.end - bytes;
    if (full) {
        /* Stopped here, the announcement may come late, but nobody depends on it: the next writer
         * of this partition finds the seal and announces the batch that it opens. */
        note_sealed(writer, place, id, slot, word);
        mp_announce(writer, partition, 1);
    } else {
        look_for_other(writer, partition, header);
    }
    return TURN_DONE;
}

/* Opens the partition's next batch with the record in it. The record is written before the link, so
 * that others never meet a long ownership. The mark in dirty[] comes between link and commit, the
 * wake-up behind the commit:
 *  1. A wakes the sender before its commit, on the processor it runs on, and loses it.
 *  2. The sender finds a batch without a record, and can only look again later.
 * What a stop between commit and wake-up leaves undone, the next writer of the batch does, who sees
 * by the mark that the sender has not looked since (look_for_other). */
SELDOM static enum turn append_new(struct mp_writer *writer, uint32_t partition, uint64_t open,
                                   const struct mp_record *record, int alone,
                                   struct mp_place *place) {
    struct mp_region *region = &writer->region;
    const uint64_t seq = open ? mp_open_seq(open) + 1 : 1;
    const uint64_t id = mp_batch_id(partition, seq);
    const uint32_t body = body_size(record, 0, 0);
    const uint32_t total = varint_size(zigzag(body)) + body;
    const uint32_t more = mp_slots_for(total) - 1;
    place->units = more + 1;
    if (writer->stash == MP_NONE && mp_anyone_waits(region)) return TURN_NO_MEMORY;
    const uint32_t slot = mp_take_slot(writer, 0);
    if (slot == MP_NONE) return TURN_NO_MEMORY;
    struct mp_slot *header = &region->slot[slot];
    uint32_t tail = slot, first = MP_NONE;
    atomic_store_explicit(&header->batch_id, id, RELAXED);
    /* After the id: whoever takes BUSY by an old generation must find this one beside it. */
    atomic_store_explicit(&header->compress,
                          mp_compress_word(MP_C_NONE, mp_gen(atomic_load_explicit(&header->word,
                                                                                  RELAXED))),
                          RELEASE);
    atomic_store_explicit(&header->prev, open ? mp_open_slot(open) : MP_NONE, RELAXED);
    atomic_store_explicit(&header->base_timestamp, record->timestamp_ms, RELAXED);
    atomic_store_explicit(&header->max_timestamp, record->timestamp_ms, RELAXED);
    atomic_store_explicit(&header->opened_us, (uint32_t)(mp_now_ns() / 1000), RELAXED);
    for (uint32_t i = 0; i < MP_OWNER_WORDS; i++)
        atomic_store_explicit(&header->participants[i], 0, RELAXED);
    join(region, slot, writer->owner);
    if (more > 0) {
        tail = extend(writer, slot, slot, id, 0, more, &first);
        if (tail == MP_NONE) {
            mp_stash_slot(writer, slot);
            return TURN_NO_MEMORY;
        }
    }
    atomic_store_explicit(&header->tail, tail, RELAXED);
    encode(region, slot, 0, record, 0, 0, body);
    MP_STEP(15);
    if (!atomic_compare_exchange_strong_explicit(&region->partitions[partition].open, &open,
                                                 mp_open_word(seq, slot), ACQ_REL, RELAXED)) {
        keep(writer, first, more); /* another worker opened it first */
        mp_stash_slot(writer, slot);
        return TURN_RETRY;
    }
    MP_STEP(16);
    const uint32_t batch_size = region->ctl->batch_size;
    const uint64_t gen = atomic_load_explicit(&header->word, RELAXED) & MP_GEN_MASK;
    uint64_t expected = MP_LIVE | mp_own(writer->owner) | gen;
    uint64_t committed = MP_LIVE | gen | UINT64_C(1) << MP_COUNT_SHIFT | total;
    const int full = is_full(total, 1, total, batch_size);
    if (full) committed |= MP_SEAL;
    mp_mark(region, partition);
    MP_STEP(17);
    /* SEQ_CST, as the wake word: a sender that has taken the mark looks at the batch once more when
     * its sleep is announced (mp_collect_changed). */
    if (!atomic_compare_exchange_strong_explicit(&header->word, &expected, committed, SEQ_CST,
                                                 RELAXED)) {
        /* Taken for stuck and sealed empty: the sender skips it. */
        writer->lost_commits++;
        keep(writer, first, more);
        acknowledge(region, slot);
        return TURN_RETRY;
    }
    MP_STEP(18);
    writer->opened++;
    if (full) note_sealed(writer, place, id, slot, committed);
    if (alone || full) mp_wake_for_mark(writer, full); /* else append_rest does */
    place->batch_id = id;
    place->slot = slot;
    place->index = 0;
    place->count = 1;
    place->bytes = total;
    return TURN_DONE;
}

/* The other records of a run go into the batch that its first one opened before the sender is woken,
 * which would find that one alone, and send it so when nothing lingers. */
SELDOM static void append_rest(struct mp_writer *writer, uint32_t partition,
                               const struct mp_record *const *records,
                               const struct mp_value *values, uint32_t count,
                               struct mp_place *place) {
    const uint64_t id = place->batch_id;
    const uint64_t open = mp_open_word(id & ((UINT64_C(1) << MP_SEQ_BITS) - 1), place->slot);
    const uint32_t bytes = place->bytes;
    const struct mp_record second =
        values ? mp_plain_record(values + 1, records[0]->timestamp_ms) : *records[1];
    const struct mp_record *list = &second;
    if (append_open(writer, partition, open, values ? &list : records + 1,
                    values ? values + 1 : NULL, count - 1, place) == TURN_DONE) {
        place->index = 0;
        place->count++;
        place->bytes += bytes;
    } else {
        mp_wake_for_mark(writer, place->sealed_count > 0);
    }
}

/* Compiled for one record, of which nothing of the loop is left, for many, and for values: then there
 * is one record alone, the first of them. */
static ALWAYS enum mp_status append(struct mp_writer *writer, uint32_t partition,
                                    const struct mp_record *const *records,
                                    const struct mp_value *values, uint32_t count, int roam,
                                    struct mp_place *place) {
    struct mp_region *region = &writer->region;
    place->sealed_count = 0;
    place->units = 1;
    place->lost = 0;
    place->found_full = 0;
    for (;;) {
        if (atomic_load_explicit(&region->ctl->closed, RELAXED)) {
            mp_drop_stash(writer);
            return MP_CLOSED;
        }
        const uint64_t open =
            atomic_load_explicit(&region->partitions[partition].open, ACQUIRE);
        enum turn turn = TURN_OPEN;
        if (open) turn = append_open(writer, partition, open, records, values, count, place);
        if (turn == TURN_OPEN && roam && place->sealed_count > 0) {
            mp_announce(writer, partition, 1); /* no batch that we open here would tell of it */
            return MP_FULL;
        }
        if (turn == TURN_OPEN) {
            turn = append_new(writer, partition, open, records[0], count == 1, place);
            if (turn == TURN_DONE && count > 1 && !mp_filled_batch(place))
                append_rest(writer, partition, records, values, count, place);
        }
        if (turn == TURN_RETRY) {
            place->lost++;
            writer->lost_races++;
            continue;
        }
        if (turn == TURN_NO_MEMORY) {
            const uint32_t need = mp_slots_for((uint32_t)mp_record_bound(records[0]));
            if (need > place->units) place->units = need;
            mp_drop_stash(writer);
            return MP_NO_MEMORY;
        }
        if (writer->stash != MP_NONE) mp_drop_stash(writer);
        return MP_DONE;
    }
}

enum mp_status mp_append(struct mp_writer *writer, uint32_t partition,
                         const struct mp_record *record, int roam, struct mp_place *place) {
    return append(writer, partition, &record, NULL, 1, roam, place);
}

enum mp_status mp_append_run(struct mp_writer *writer, uint32_t partition,
                             const struct mp_record *const *records, uint32_t count, int roam,
                             struct mp_place *place) {
    return append(writer, partition, records, NULL, count, roam, place);
}

enum mp_status mp_append_values(struct mp_writer *writer, uint32_t partition,
                                const struct mp_value *values, uint32_t count,
                                int64_t timestamp_ms, int roam, struct mp_place *place) {
    const struct mp_record first = mp_plain_record(values, timestamp_ms), *list = &first;
    return append(writer, partition, &list, values, count, roam, place);
}
