/* libFuzzer target of the record walk. Whatever bytes lie in shared memory, in whatever spans: the
 * walk reads nothing outside them, and what it accepts is a batch. Cut into single bytes, which only
 * the general reader takes, the same records give the same answer.
 *
 * Input: record count, span boundary, base timestamp, then the records. */
#include <stdlib.h>

#include "pool.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

static void compare(const uint8_t *records, uint32_t bytes, uint32_t count, const char *wrong,
                    const struct mp_walk *whole) {
    struct mp_span *single = malloc((bytes + 1) * sizeof *single);
    for (uint32_t i = 0; i < bytes; i++) single[i] = (struct mp_span){i, 1};
    struct mp_walk walk = {.bytes = bytes, .base_timestamp = whole->base_timestamp};
    const char *also = mp_check_records(records, single, bytes, count, &walk);
    free(single);
    if ((wrong == NULL) != (also == NULL) || (wrong && strcmp(wrong, also) != 0)) abort();
    if (!wrong && (walk.crc != whole->crc || walk.largest != whole->largest ||
                   walk.max_timestamp != whole->max_timestamp))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    if (size < 12 || size > 1 << 16) return 0;
    uint16_t records, cut;
    int64_t base;
    memcpy(&records, input, 2);
    memcpy(&cut, input + 2, 2);
    memcpy(&base, input + 4, 8);
    const uint32_t bytes = (uint32_t)size - 12;
    /* Its own allocation, so that one byte too far is seen. Two spans, swapped in memory. */
    uint8_t *data = malloc(bytes + 1);
    const uint32_t first = bytes ? cut % bytes : 0;
    struct mp_span span[2];
    uint32_t spans = 0;
    memcpy(data + (bytes - first), input + 12, first);
    memcpy(data, input + 12 + first, bytes - first);
    if (first) span[spans++] = (struct mp_span){bytes - first, first};
    if (bytes - first) span[spans++] = (struct mp_span){0, bytes - first};
    uint8_t *exact = malloc(bytes ? bytes : 1);
    memcpy(exact, data, bytes);
    free(data);
    struct mp_walk walk = {.bytes = bytes, .base_timestamp = base};
    const char *wrong = mp_check_records(exact, span, spans, records, &walk);
    if (!wrong && (walk.max_timestamp < base || (uint64_t)records * 7 > bytes)) abort();
    compare(input + 12, bytes, records, wrong, &walk);
    free(exact);
    return 0;
}
