/* Runs of records that are a value and nothing else: no key, no headers, one timestamp for all. Most
 * of such a record is the same as in the one before it, so that what the loop works on fits the
 * registers: it calls nothing, and looks at one limit for all that may end it. */
#include "run.h"

#include "orders.h"

/* Longer values go the general way: what that costs is little beside copying them. */
#define SHORT_VALUE 1024
/* Not inline: what surrounds the loop would take its registers. */
#define APART __attribute__((noinline))

/* Where and what the loop writes. Body of a record: `prefix`, then `middle`, then the value's length
 * and bytes, then a count of no headers. */
struct flat {
    uint8_t *at;
    const uint8_t *limit;  /* a value that would end behind it goes the general way */
    uint64_t prefix;       /* attributes and timestamp delta */
    uint64_t middle;       /* offset delta and null key */
    uint64_t more;         /* the bits of `middle` that say that the offset delta goes on */
    uint32_t prefix_bytes, middle_bytes;
};

static inline void put_8(uint8_t *at, uint64_t bytes) { memcpy(at, &bytes, 8); }

/* Both bytes of a varint of two. */
static inline uint32_t two_bytes(uint32_t value) {
    return (value & 0x7f) | 0x80 | (value & 0x3f80) << 1;
}

static inline void copy_16(uint8_t *to, const uint8_t *from) { memcpy(to, from, 16); }

/* Not a byte outside of either: pieces from both ends overlap in the middle. */
static inline void copy_short(uint8_t *to, const uint8_t *from, size_t size) {
    if (size > 128) {
        const size_t tail = size - 64;
        for (size_t i = 0; i < tail; i += 64) {
            copy_16(to + i, from + i);
            copy_16(to + i + 16, from + i + 16);
            copy_16(to + i + 32, from + i + 32);
            copy_16(to + i + 48, from + i + 48);
        }
        copy_16(to + tail, from + tail);
        copy_16(to + tail + 16, from + tail + 16);
        copy_16(to + tail + 32, from + tail + 32);
        copy_16(to + tail + 48, from + tail + 48);
    } else if (size >= 16) {
        copy_16(to, from);
        if (size > 32) {
            copy_16(to + 16, from + 16);
            if (size > 64) {
                copy_16(to + 32, from + 32);
                copy_16(to + 48, from + 48);
                copy_16(to + size - 64, from + size - 64);
                copy_16(to + size - 48, from + size - 48);
            }
            copy_16(to + size - 32, from + size - 32);
        }
        copy_16(to + size - 16, from + size - 16);
    } else if (size >= 8) {
        memcpy(to, from, 8);
        memcpy(to + size - 8, from + size - 8, 8);
    } else if (size >= 4) {
        memcpy(to, from, 4);
        memcpy(to + size - 4, from + size - 4, 4);
    } else if (size > 0) {
        to[0] = from[0];
        to[size / 2] = from[size / 2];
        to[size - 1] = from[size - 1];
    }
}

/* Writes values as long as they are short and end before the limit; returns how many. What it writes
 * beyond a record's end lies within MP_RECORD_OVERHEAD, which the limit leaves. */
APART static uint32_t write_flat(struct flat *flat, const struct mp_value *values,
                                 uint32_t count) {
    uint8_t *at = flat->at;
    const uint8_t *const limit = flat->limit;
    const uint64_t prefix = flat->prefix, more = flat->more;
    const uint32_t prefix_bytes = flat->prefix_bytes, middle_bytes = flat->middle_bytes;
    uint64_t middle = flat->middle;
    const struct mp_value *value = values, *const last = values + count;
    for (; value < last; value++) {
        const uint8_t *data = value->data;
        uint32_t size = (uint32_t)value->bytes, length = size << 1;
        if (__builtin_expect(size > SHORT_VALUE, 0)) {
            if (value->bytes != -1) break;
            size = 0;
            length = 1; /* null */
        }
        if (__builtin_expect(limit - at < (ptrdiff_t)size, 0)) break;
        MP_STEP(11);
        const uint32_t body = prefix_bytes + middle_bytes + (size < 64 ? 2 : 3) + size;
        const uint32_t whole = body << 1;
        const uint32_t whole_bytes = body < 64 ? 1 : 2;
        const uint16_t start = (uint16_t)(body < 64 ? whole : two_bytes(whole));
        memcpy(at, &start, 2);
        at += whole_bytes;
        put_8(at, prefix);
        at += prefix_bytes;
        put_8(at, middle | (uint64_t)(size < 64 ? length : two_bytes(length)) << middle_bytes * 8);
        at += middle_bytes + (size < 64 ? 1 : 2);
        copy_short(at, data, size);
        at += size;
        *at++ = 0;
        middle = (middle + 2) | more;
        MP_STEP(12);
    }
    flat->at = at;
    flat->middle = middle;
    return (uint32_t)(value - values);
}

/* The offset delta and null key of record `index`; returns how many records on their size stays. */
static uint32_t set_middle(struct flat *flat, uint32_t index) {
    uint8_t bytes[16] = {0};
    uint8_t *at = put_varint(bytes, (uint64_t)index << 1);
    *at++ = 1;
    memcpy(&flat->middle, bytes, 8);
    flat->middle_bytes = (uint32_t)(at - bytes);
    flat->more = index < 64 ? 0 : index < 8192 ? 0x80 : 0x8080;
    return (index < 64 ? 64 : index < 8192 ? 8192 : MP_MAX_RECORDS) - index;
}

/* How far records may be written before something must be looked at: the end of the slot, of the
 * batch, of the run. */
static uint32_t flat_bytes(const struct mp_run *run, uint32_t batch_size, uint32_t stop) {
    uint32_t until = run->have * MP_SLOT_BYTES;
    if (until > batch_size) until = batch_size;
    if (until > stop) until = stop;
    return until > run->end + MP_RECORD_OVERHEAD ? until - run->end - MP_RECORD_OVERHEAD : 0;
}

uint32_t mp_write_values(struct mp_writer *writer, struct mp_run *run,
                         const struct mp_value *values, uint32_t count, int64_t timestamp_ms) {
    struct mp_region *region = &writer->region;
    struct mp_slot *header = &region->slot[run->slot];
    const uint64_t delta =
        zigzag(timestamp_ms - atomic_load_explicit(&header->base_timestamp, RELAXED));
    const uint32_t batch_size = region->ctl->batch_size, stop = run->end + MP_RUN_BYTES;
    struct flat flat = {.prefix_bytes = 1 + varint_size(delta)};
    uint8_t prefix[16] = {0};
    put_varint(prefix + 1, delta);
    memcpy(&flat.prefix, prefix, 8);
    uint32_t done = 0;
    do {
        const uint32_t room = flat_bytes(run, batch_size, stop);
        if (room > 0 && flat.prefix_bytes <= 8) {
            const uint32_t same = set_middle(&flat, run->index);
            uint8_t *const from = mp_payload(region, run->tail) +
                                  (run->end - (run->have - 1) * MP_SLOT_BYTES);
            flat.at = from;
            flat.limit = from + room;
            const uint32_t left = count - done;
            const uint32_t written = write_flat(&flat, values + done, left < same ? left : same);
            run->end += (uint32_t)(flat.at - from);
            run->index += written;
            done += written;
            if (written == same) continue;
            if (done == count) break;
        }
        const struct mp_record record = mp_plain_record(&values[done], timestamp_ms);
        if (run->end + mp_record_bound(&record) > batch_size && done > 0) break;
        const uint32_t total = mp_write_across(writer, run, &record, delta);
        if (total == 0) break;
        MP_STEP(12);
        run->end += total;
        run->index++;
        done++;
    } while (done < count && run->end < stop && run->index < MP_MAX_RECORDS);
    if (done == 0) return 0;
    const struct mp_record last = mp_plain_record(&values[done - 1], timestamp_ms);
    const uint32_t body = body_size(&last, delta, run->index - 1);
    run->last = varint_size(zigzag(body)) + body;
    if (timestamp_ms > atomic_load_explicit(&header->max_timestamp, RELAXED))
        atomic_store_explicit(&header->max_timestamp, timestamp_ms, RELAXED);
    return done;
}
