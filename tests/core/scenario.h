/* What scenarios need: a sender and writers in one process, each with its own mapping, and a step of
 * the core at which somebody else acts. */
#ifndef SCENARIO_H
#define SCENARIO_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "append.h"
#include "pool.h"

enum { WRITERS = 4, PARTITIONS = 3, GENERATIONS = 1 << 14 };

static struct mp_sender sender;
static struct mp_writer writer[WRITERS];
static struct mp_span spans[80];
static int wake_fd;
static int at_step;
static void (*meanwhile)(void);

#define CHECK(what)                                                                              \
    do {                                                                                         \
        if (!(what)) {                                                                           \
            fprintf(stderr, "%s: line %d: %s\n", __FILE__, __LINE__, #what);                        \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

void mp_step(int id) {
    if (id != at_step) return;
    at_step = 0;
    meanwhile();
}

static inline void stop_at(int step, void (*then)(void)) {
    at_step = step;
    meanwhile = then;
}

static inline void open_pool(uint32_t slots, uint32_t batch_size) {
    size_t ctl_bytes, pool_bytes;
    mp_segment_sizes(slots, PARTITIONS, 1, &ctl_bytes, &pool_bytes);
    const int ctl = memfd_create("ctl", 0), pool = memfd_create("pool", 0);
    CHECK(ftruncate(ctl, (off_t)ctl_bytes) == 0 && ftruncate(pool, (off_t)pool_bytes) == 0);
    wake_fd = eventfd(0, EFD_NONBLOCK);
    const struct mp_geometry geometry = {.slots = slots, .max_partitions = PARTITIONS,
                                         .max_topics = 1, .batch_size = batch_size,
                                         .max_request_size = 1 << 20, .linger_us = 1000,
                                         .generation = 1};
    CHECK(mp_sender_open(&sender, ctl, pool, &geometry) == NULL);
    sender.next_index = PARTITIONS;
    for (uint32_t i = 0; i < WRITERS; i++) {
        writer[i] = (struct mp_writer){.owner = i + 1, .stash = MP_NONE, .wake_fd = wake_fd};
        CHECK(!mp_region_map(&writer[i].region, ctl, pool, slots, PARTITIONS, 1, 0));
        sender.alive[i + 1] = 1;
    }
}

static inline int was_woken(void) {
    uint64_t count;
    return read(wake_fd, &count, sizeof count) == sizeof count;
}

static inline void fall_asleep(uint64_t for_us) {
    while (was_woken()) {
    }
    CHECK(mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + for_us));
}

static inline enum mp_status put(int who, uint32_t partition, int32_t bytes, struct mp_place *place) {
    static uint8_t value[200000];
    const struct mp_record record = {.value = value, .value_bytes = bytes, .key_bytes = -1,
                                     .timestamp_ms = 1000};
    return mp_append(&writer[who], partition, &record, 0, place);
}

/* Seals and walks the oldest batch of the partition; its records, and its slot in *slot. */
static inline uint32_t take(uint32_t partition, uint32_t *slot) {
    uint32_t found[80];
    uint64_t seq;
    CHECK(mp_new_batches(&sender, partition, found, &seq) == 1);
    CHECK(mp_seal(&sender, found[0]));
    struct mp_walk walk = {.span = spans};
    CHECK(mp_walk(&sender, found[0], &walk) == NULL);
    if (slot) *slot = found[0];
    return walk.records;
}

static uint32_t cycle_slot;

static inline void cycle(uint32_t partition) {
    struct mp_place place;
    CHECK(put(1, partition, 10, &place) == MP_DONE);
    CHECK(take(partition, &cycle_slot) == 1);
    CHECK(mp_release(&sender, cycle_slot));
}

static inline void check_all_free(uint32_t slots) {
    CHECK(mp_retry_quarantine(&sender) == 0);
    CHECK(mp_waiters(&sender) == 0);
    CHECK(mp_free_slots(&sender) == slots);
}

struct scenario {
    const char *name;
    void (*run)(void);
};
#define SCENARIO(name) {#name, name}

static inline int run_scenario(const struct scenario *scenarios, size_t count, int argc, char **argv) {
    for (size_t i = 0; argc == 2 && i < count; i++) {
        if (strcmp(argv[1], scenarios[i].name)) continue;
        scenarios[i].run();
        return 0;
    }
    fprintf(stderr, "usage: %s NAME\n", argv[0]);
    return 2;
}

#endif
