/* Validate-and-walk: the one place that reads records back out of shared memory. */
#include "pool.h"

#include "crc.h"
#include "orders.h"
#include "varint.h"

/* Attributes, two deltas, null key, null value, no headers: one byte each. */
#define MIN_BODY 6

/* So many bytes are summed before they are walked: the sum reads them as fast as memory gives them,
 * the walk then finds them in the nearest cache. */
#define CRC_BYTES MP_CRC_BLOCK

struct reader {
    const uint8_t *data;
    const struct mp_span *span;
    const struct mp_span *span_end;
    const uint8_t *at;
    const uint8_t *end;
    const uint8_t *summed; /* from here on the present span is not in `crc` yet: never behind `at` */
    uint32_t crc;
    int failed;
};

static int next_span(struct reader *in) {
    if (in->span == in->span_end) return 0;
    in->crc = mp_crc32c(in->crc, in->summed, (size_t)(in->end - in->summed));
    in->at = in->data + in->span->offset;
    in->end = in->at + in->span->bytes;
    in->summed = in->at;
    in->span++;
    return 1;
}

static inline uint8_t get(struct reader *in) {
    if (in->at == in->end && !next_span(in)) {
        in->failed = 1;
        return 0;
    }
    return *in->at++;
}

static inline void skip(struct reader *in, uint64_t bytes) {
    for (;;) {
        const uint64_t room = (uint64_t)(in->end - in->at);
        if (bytes <= room) {
            in->at += bytes;
            return;
        }
        bytes -= room;
        if (!next_span(in)) {
            in->failed = 1;
            in->at = in->end;
            return;
        }
    }
}

/* A zigzag varint of at most `limit` bytes; *used counts its bytes. */
static inline int64_t get_varint(struct reader *in, uint32_t limit, uint64_t *used) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < limit; i++) {
        const uint8_t byte = get(in);
        value |= (uint64_t)(byte & 0x7f) << 7 * i;
        if (!(byte & 0x80)) {
            *used += i + 1;
            return unzigzag(value);
        }
    }
    in->failed = 1;
    return 0;
}

/* A length field and its bytes; -1 (null) only where `nullable`. */
static inline void get_field(struct reader *in, uint64_t body, uint64_t *used, int nullable) {
    const int64_t length = get_varint(in, 5, used);
    if (length < 0) {
        if (length != -1 || !nullable) in->failed = 1;
        return;
    }
    if ((uint64_t)length > body - *used || *used > body) {
        in->failed = 1;
        return;
    }
    skip(in, (uint64_t)length);
    *used += (uint64_t)length;
}

static const char *check_record(struct reader *in, uint32_t index, uint64_t left, uint64_t *total,
                                int64_t *delta) {
    uint64_t used = 0;
    const int64_t body = get_varint(in, 5, &used);
    if (in->failed || body < MIN_BODY || (uint64_t)body > left - used)
        return "a record's length does not fit its batch";
    *total = used + (uint64_t)body;
    used = 1;
    if (get(in) != 0) return "a record has attributes";
    *delta = get_varint(in, 10, &used);
    if (get_varint(in, 5, &used) != (int64_t)index) return "a record's offset delta is not dense";
    get_field(in, (uint64_t)body, &used, 1);
    get_field(in, (uint64_t)body, &used, 1);
    const int64_t headers = get_varint(in, 5, &used);
    if (headers < 0 || headers > body) return "a record's header count is out of range";
    for (int64_t i = 0; i < headers && !in->failed; i++) {
        get_field(in, (uint64_t)body, &used, 0);
        get_field(in, (uint64_t)body, &used, 1);
    }
    if (in->failed || used != (uint64_t)body) return "a record's fields do not fill its length";
    return NULL;
}

/* A varint of up to three bytes; what is longer is noted in `longer`. */
static inline uint32_t short_varint(const uint8_t **at, uint32_t *longer) {
    const uint8_t *byte = *at;
    const uint32_t first = byte[0];
    *at = byte + 1;
    if (first < 0x80) return first;
    const uint32_t second = byte[1];
    *at = byte + 2;
    if (second < 0x80) return first - 0x80 + (second << 7);
    const uint32_t third = byte[2];
    *at = byte + 3;
    *longer |= third & 0x80;
    return first - 0x80 + ((second - 0x80) << 7) + (third << 14);
}

/* A key or value that ends at `end` at the latest: what is behind it, or NULL. */
static inline const uint8_t *skip_field(const uint8_t *at, const uint8_t *end, uint32_t *longer) {
    const int64_t length = unzigzag(short_varint(&at, longer));
    if (length < -1 || length > end - at) return NULL;
    return at + (length & ~(length >> 63));
}

/* The most that is read of a record in front of a key, and behind one. */
#define FRONT_BYTES (3 + 1 + 3 + 3 + 3)
#define REST_BYTES 4

/* Whether a record that lies in one span, with short fields and no headers, is right: nearly all are
 * such, and cost half as much without a look for the end at each byte. What it does not take
 * check_record decides, and says what is wrong. */
static inline int is_flat(struct reader *in, uint32_t index, uint64_t left, uint64_t *total,
                          int64_t *delta) {
    const uint8_t *at = in->at;
    uint32_t longer = 0;
    if (in->end - at < FRONT_BYTES) return 0;
    const int64_t body = unzigzag(short_varint(&at, &longer));
    if (body < MIN_BODY || body > in->end - at) return 0;
    const uint8_t *end = at + body;
    if ((uint64_t)(end - in->at) > left) return 0;
    if (*at++ != 0) return 0;
    *delta = unzigzag(short_varint(&at, &longer));
    if (unzigzag(short_varint(&at, &longer)) != (int64_t)index) return 0;
    at = skip_field(at, end, &longer);
    if (!at || in->end - at < REST_BYTES) return 0;
    at = skip_field(at, end, &longer);
    if (!at || end - at != 1 || *at != 0 || longer) return 0;
    *total = (uint64_t)(end - in->at);
    in->at = end;
    return 1;
}

const char *mp_check_records(const uint8_t *data, const struct mp_span *span, uint32_t spans,
                             uint32_t records, struct mp_walk *walk) {
    static const uint8_t nothing = 0;
    struct reader in = {data, span, span + spans, &nothing, &nothing, &nothing, 0, 0};
    uint64_t left = walk->bytes, largest = 0;
    int64_t max_delta = 0;
    for (uint32_t i = 0; i < records; i++) {
        uint64_t total = 0;
        int64_t delta = 0;
        if (!is_flat(&in, i, left, &total, &delta)) {
            const char *wrong = check_record(&in, i, left, &total, &delta);
            if (wrong) return wrong;
        }
        left -= total;
        while (in.at > in.summed) {
            const size_t rest = (size_t)(in.end - in.summed);
            const size_t bytes = rest < CRC_BYTES ? rest : CRC_BYTES;
            in.crc = mp_crc32c(in.crc, in.summed, bytes);
            in.summed += bytes;
        }
        if (total > largest) largest = total;
        if (delta > max_delta) max_delta = delta;
    }
    if (left != 0) return "the batch has bytes behind its last record";
    walk->crc = mp_crc32c(in.crc, in.summed, (size_t)(in.end - in.summed));
    walk->largest = (uint32_t)largest;
    if (__builtin_add_overflow(walk->base_timestamp, max_delta, &walk->max_timestamp))
        return "a record's timestamp is out of range";
    return NULL;
}

/* Collects `bytes` of payload from a chain; neighbours in memory become one span. */
static const char *gather(const struct mp_region *region, uint32_t slot, uint32_t bytes,
                          uint64_t batch_id, uint32_t pos, int head, struct mp_walk *walk) {
    walk->spans = 0;
    for (uint32_t left = bytes; left > 0; pos++) {
        if (slot >= region->slots) return "a chain leaves the pool";
        const struct mp_slot *header = &region->slot[slot];
        const uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
        if (!head) {
            if (!(word & MP_LIVE) || !mp_is_extension(word) ||
                atomic_load_explicit(&header->batch_id, RELAXED) != batch_id ||
                atomic_load_explicit(&header->pos, RELAXED) != pos)
                return "a chain holds a slot of another batch";
        }
        head = 0;
        const uint32_t part = left < MP_SLOT_BYTES ? left : MP_SLOT_BYTES;
        const uint64_t offset = (uint64_t)slot * MP_SLOT_BYTES;
        struct mp_span *last = walk->spans ? &walk->span[walk->spans - 1] : NULL;
        if (last && last->offset + last->bytes == offset)
            last->bytes += part;
        else
            walk->span[walk->spans++] = (struct mp_span){offset, part};
        left -= part;
        slot = atomic_load_explicit(&header->next, RELAXED);
    }
    return NULL;
}

const char *mp_walk(struct mp_sender *sender, uint32_t slot, struct mp_walk *walk) {
    const struct mp_region *region = &sender->region;
    const struct mp_slot *header = &region->slot[slot];
    const uint64_t word = atomic_load_explicit(&header->word, ACQUIRE);
    if (!(word & MP_SEAL) || mp_is_extension(word)) return "the batch is not sealed";
    if (mp_bytes(word) != sender->committed[slot]) return "the batch changed after its seal";
    walk->records = mp_records(word);
    walk->bytes = mp_bytes(word);
    walk->base_timestamp = atomic_load_explicit(&header->base_timestamp, RELAXED);
    const char *wrong =
        gather(region, slot, walk->bytes, atomic_load_explicit(&header->batch_id, RELAXED), 0, 1,
               walk);
    if (wrong) return wrong;
    return mp_check_records(region->data, walk->span, walk->spans, walk->records, walk);
}

const char *mp_output_spans(struct mp_sender *sender, uint32_t slot, uint32_t first,
                            uint32_t bytes, struct mp_walk *walk) {
    const struct mp_region *region = &sender->region;
    const uint64_t batch_id =
        atomic_load_explicit(&region->slot[slot].batch_id, RELAXED);
    return gather(region, first, bytes, batch_id, MP_POS_COMPRESSED, 0, walk);
}
