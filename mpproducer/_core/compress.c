/* A worker's half of the compress word. The sender's is pool.c:mp_compressed. */
#include "append.h"

#include "orders.h"

#include <string.h>

int mp_compress_begin(struct mp_writer *writer, struct mp_sealed batch) {
    /* The generation guards against a slot that was sent, freed and claimed again meanwhile. */
    struct mp_slot *head = &writer->region.slot[batch.slot];
    uint64_t none = mp_compress_word(MP_C_NONE, batch.gen);
    MP_STEP(27);
    if (!atomic_compare_exchange_strong_explicit(&head->compress, &none,
                                                 mp_compress_busy(writer->owner, batch.gen),
                                                 ACQ_REL, RELAXED))
        return 0;
    MP_STEP(28);
    /* Generations come round; ids do not. From here on the sender keeps the batch. */
    if (atomic_load_explicit(&head->batch_id, RELAXED) == batch.batch_id) return 1;
    mp_compress_abandon(writer, batch);
    return 0;
}

void mp_compress_abandon(struct mp_writer *writer, struct mp_sealed batch) {
    mp_a64 *word = &writer->region.slot[batch.slot].compress;
    uint64_t busy = mp_compress_busy(writer->owner, batch.gen);
    if (atomic_compare_exchange_strong_explicit(word, &busy,
                                                mp_compress_word(MP_C_NONE, batch.gen), ACQ_REL,
                                                RELAXED))
        return;
    /* Recalled: from here on this process reads the batch no more. */
    uint64_t recalled = mp_compress_recalled(writer->owner, batch.gen);
    atomic_compare_exchange_strong_explicit(word, &recalled,
                                            mp_compress_word(MP_C_RETURNED, batch.gen), RELEASE,
                                            RELAXED);
}

int mp_compress_end(struct mp_writer *writer, struct mp_sealed batch, const uint8_t *output,
                    uint32_t bytes) {
    struct mp_region *region = &writer->region;
    struct mp_slot *head = &region->slot[batch.slot];
    const uint64_t id = atomic_load_explicit(&head->batch_id, RELAXED);
    const uint32_t count = mp_slots_for(bytes);
    uint32_t first = MP_NONE, tail = MP_NONE;
    for (uint32_t i = 0; i < count; i++) {
        /* Writers that wait for memory go first: the sender can compress as well. */
        const uint32_t next =
            mp_anyone_waits(region) ? MP_NONE : mp_claim(region, writer->owner, 1);
        if (next == MP_NONE) {
            mp_unextend(writer, first, i);
            mp_compress_abandon(writer, batch);
            return 0;
        }
        struct mp_slot *header = &region->slot[next];
        atomic_store_explicit(&header->batch_id, id, RELAXED);
        atomic_store_explicit(&header->pos, MP_POS_COMPRESSED | i, RELAXED);
        atomic_store_explicit(&header->head, batch.slot, RELEASE);
        MP_STEP(25);
        const size_t at = (size_t)i * MP_SLOT_BYTES;
        const size_t part = bytes - at < MP_SLOT_BYTES ? bytes - at : MP_SLOT_BYTES;
        memcpy(mp_payload(region, next), output + at, part);
        if (i == 0)
            first = next;
        else
            atomic_store_explicit(&region->slot[tail].next, next, RELAXED);
        tail = next;
    }
    uint64_t busy = mp_compress_busy(writer->owner, batch.gen);
    MP_STEP(26);
    if (atomic_compare_exchange_strong_explicit(
            &head->compress, &busy,
            mp_compress_word(MP_C_DONE, (uint64_t)first << MP_COMPRESS_FIRST_SHIFT | bytes),
            ACQ_REL, RELAXED)) {
        mp_announce(writer, (uint32_t)(id >> MP_SEQ_BITS), 1);
        return 1;
    }
    mp_unextend(writer, first, count);
    mp_compress_abandon(writer, batch);
    return 0;
}
