/* Writers and the sender as threads of one process, each with its own mapping of the segments, for
 * ThreadSanitizer.
 *
 *   threads SECONDS SEED
 *
 * The sanitizer follows addresses, and a second mapping would hide every race: so the mappings share
 * their pointers here. Payload is written by writers and read by the sender with plain accesses; the
 * orders of the words are all that separates them.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "append.h"
#include "pool.h"

enum { WRITERS = 3, PARTITIONS = 2, SLOTS = 12 };

static struct mp_sender sender;
static int wake_fd;
static _Atomic int stop;
static _Atomic uint64_t appended, lost, waits, seed;

static void die(const char *what) {
    fprintf(stderr, "threads: %s\n", what);
    _exit(1);
}

static uint32_t next_random(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void *write_records(void *argument) {
    const uint32_t owner = (uint32_t)(uintptr_t)argument;
    struct mp_writer writer = {
        .region = sender.region, .owner = owner, .stash = MP_NONE, .wake_fd = wake_fd};
    uint64_t state = atomic_load(&seed) * 31 + owner;
    static _Thread_local uint8_t value[20000];
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        const uint32_t bytes = next_random(&state) % 12 ? next_random(&state) % 300
                                                       : next_random(&state) % sizeof value;
        memset(value, (int)(bytes & 0xff), bytes);
        const struct mp_record record = {.value = value, .value_bytes = (int32_t)bytes,
                                         .key_bytes = -1, .timestamp_ms = 1000};
        struct mp_place place;
        while (mp_append(&writer, next_random(&state) % PARTITIONS, &record, 0, &place) ==
               MP_NO_MEMORY) {
            if (atomic_load_explicit(&stop, memory_order_relaxed)) return NULL;
            atomic_fetch_add_explicit(&waits, 1, memory_order_relaxed);
            mp_wait_begin(&writer, place.units);
            mp_wait_slice(&writer, 5000000);
            mp_wait_end(&writer);
        }
        atomic_fetch_add_explicit(&appended, 1, memory_order_relaxed);
    }
    mp_drop_stash(&writer);
    atomic_fetch_add_explicit(&lost, writer.lost_commits, memory_order_relaxed);
    return NULL;
}

static uint64_t collect(int everything) {
    static struct mp_span spans[SLOTS + 1];
    static uint32_t queue[PARTITIONS][SLOTS], queued[PARTITIONS];
    uint64_t records = 0;
    for (uint32_t p = 0; p < PARTITIONS; p++) {
        uint32_t found[SLOTS];
        uint64_t seq;
        const int64_t count = mp_new_batches(&sender, p, found, &seq);
        if (count < 0) die("the chain of batches is corrupt");
        for (int64_t i = count - 1; i >= 0; i--) queue[p][queued[p]++] = found[i];
        while (queued[p]) {
            const uint32_t slot = queue[p][0];
            if (!mp_seal(&sender, slot)) {
                if (everything) die("an empty batch stays");
                break;
            }
            struct mp_walk walk = {.span = spans};
            const char *wrong = mp_walk(&sender, slot, &walk);
            if (wrong) die(wrong);
            records += walk.records;
            mp_release(&sender, slot);
            for (uint32_t i = 1; i < queued[p]; i++) queue[p][i - 1] = queue[p][i];
            queued[p]--;
        }
    }
    mp_retry_quarantine(&sender);
    mp_grant(&sender);
    return records;
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage: threads SECONDS SEED");
    atomic_store(&seed, strtoull(argv[2], NULL, 10));
    size_t ctl_bytes, pool_bytes;
    mp_segment_sizes(SLOTS, PARTITIONS, 1, &ctl_bytes, &pool_bytes);
    const int ctl = memfd_create("ctl", 0), pool = memfd_create("pool", 0);
    if (ftruncate(ctl, (off_t)ctl_bytes) || ftruncate(pool, (off_t)pool_bytes)) die("memfd");
    wake_fd = eventfd(0, EFD_NONBLOCK);
    const struct mp_geometry geometry = {.slots = SLOTS, .max_partitions = PARTITIONS,
                                         .max_topics = 1, .batch_size = 24 * 1024,
                                         .max_request_size = 1 << 20, .linger_us = 500,
                                         .generation = 1};
    const char *wrong = mp_sender_open(&sender, ctl, pool, &geometry);
    if (wrong) die(wrong);
    sender.next_index = PARTITIONS;
    pthread_t thread[WRITERS];
    for (uint32_t i = 0; i < WRITERS; i++) {
        sender.alive[i + 1] = 1;
        if (pthread_create(&thread[i], NULL, write_records, (void *)(uintptr_t)(i + 1))) die("thread");
    }
    uint64_t sent = 0;
    const int64_t until = mp_now_ns() + (int64_t)(atof(argv[1]) * 1e9);
    while (mp_now_ns() < until) {
        mp_take_dirty(&sender, 0);
        sent += collect(0);
        if (!mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + 1000)) continue;
        struct pollfd ready = {.fd = wake_fd, .events = POLLIN};
        poll(&ready, 1, 1);
        mp_sleep_end(&sender);
        uint64_t count;
        if (read(wake_fd, &count, sizeof count) < 0) continue;
    }
    atomic_store(&stop, 1);
    for (uint32_t i = 0; i < WRITERS; i++) pthread_join(thread[i], NULL);
    for (uint32_t i = 0; i < WRITERS; i++) sender.alive[i + 1] = 0;
    for (uint32_t p = 0; p < 2; p++) sent += collect(1);
    for (uint32_t i = 0; i < WRITERS; i++) mp_reap(&sender, i + 1);
    mp_waiters(&sender);
    if (mp_retry_quarantine(&sender) || mp_free_slots(&sender) != SLOTS) die("slots are lost");
    if (sent != appended) die("not every appended record came out once");
    printf("{\"appended\": %lu, \"lost\": %lu, \"waits\": %lu}\n", (unsigned long)appended,
           (unsigned long)lost, (unsigned long)waits);
    return 0;
}
