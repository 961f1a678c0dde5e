/* libFuzzer target of a worker's way into the segments: geometry as it was told, sizes as the files
 * have them, a header that may say anything. What mp_region_map and mp_region_check let pass can be
 * used: a topic looked up, a record appended, at the ends of every array.
 *
 * Input: geometry told (slots, partitions, topics), size of either file, whether the header is the
 * sender's with one field changed or the bytes that follow, then those. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "append.h"
#include "pool.h"

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

struct told {
    uint32_t slots, partitions, topics;
    int32_t ctl_more, pool_more; /* bytes by which the files differ from what was told */
    uint32_t field, value;
};

static void use(struct mp_region *region) {
    struct mp_writer writer = {.region = *region, .owner = MP_MAX_OWNERS, .stash = MP_NONE, .wake_fd = -1};
    mp_topic_find(region, "topic", 5);
    atomic_store(&region->sticky[region->max_topics ? region->max_topics - 1 : 0].partition, 1);
    for (uint32_t i = 0; i < region->slots; i++) mp_show_free(region, i); /* as the sender does */
    const uint32_t claimed = mp_claim(region, MP_MAX_OWNERS, 1);
    if (claimed >= region->slots) abort();
    mp_payload(region, region->slots - 1)[MP_SLOT_BYTES - 1] = 1;
    mp_unclaim(region, claimed, MP_MAX_OWNERS);
    static const uint8_t value[30000];
    const struct mp_record record = {
        .value = value, .value_bytes = sizeof value, .key_bytes = -1, .timestamp_ms = 1};
    struct mp_place place;
    const enum mp_status status = mp_append(&writer, region->max_partitions - 1, &record, 0, &place);
    if (status == MP_NO_MEMORY && region->slots >= 2) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    struct told told;
    if (size < sizeof told) return 0;
    memcpy(&told, input, sizeof told);
    const int whole = told.field % 2 == 0;
    size_t ctl_bytes, pool_bytes;
    /* Sparse files: what counts is whether they are as long as what is mapped. */
    mp_segment_sizes(told.slots, told.partitions, told.topics, &ctl_bytes, &pool_bytes);
    const int64_t ctl_size = (int64_t)ctl_bytes + told.ctl_more;
    const int64_t pool_size = (int64_t)pool_bytes + told.pool_more;
    if (ctl_size < 0 || pool_size < 0) return 0;
    const int ctl = memfd_create("ctl", 0), pool = memfd_create("pool", 0);
    struct mp_region region;
    if (ftruncate(ctl, ctl_size) || ftruncate(pool, pool_size)) goto done;
    struct mp_ctl header;
    memset(&header, 0, sizeof header);
    if (whole) {
        header.magic = MP_MAGIC;
        header.layout_hash = mp_layout_hash();
        header.version = MP_LAYOUT_VERSION;
        header.slots = told.slots;
        header.max_partitions = told.partitions;
        header.max_topics = told.topics;
        header.batch_size = 16384;
        header.max_request_size = 1 << 20;
        const size_t at = told.field / 2 % 14 * 4; /* the words before `closed`, or none */
        if (at < offsetof(struct mp_ctl, closed)) memcpy((uint8_t *)&header + at, &told.value, 4);
    } else {
        const size_t rest = size - sizeof told;
        memcpy(&header, input + sizeof told, rest < sizeof header ? rest : sizeof header);
    }
    if (pwrite(ctl, &header, sizeof header, 0) != (ssize_t)sizeof header) abort();
    if (ctl_size < (int64_t)sizeof header && ftruncate(ctl, ctl_size)) abort();
    if (!mp_region_map(&region, ctl, pool, told.slots, told.partitions, told.topics, 0)) {
        if (told.ctl_more < 0 || told.pool_more < 0) abort(); /* it would be a SIGBUS later */
        if (!mp_region_check(&region) && !atomic_load(&region.ctl->closed)) use(&region);
        mp_region_unmap(&region);
    }
done:
    close(ctl);
    close(pool);
    return 0;
}
