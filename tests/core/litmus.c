/* Two threads, two words, millions of rounds: what an order of the core is for, on the hardware that
 * is there. The racing halves are the core's own functions, and a round is lost when both missed the
 * other.
 *
 *   litmus announce|wait|giveback|publish SECONDS SEED
 *
 *   announce   mp_announce against mp_sleep_begin: dirty bit and sleep word (store buffering)
 *   wait       mp_wait_begin against mp_sleep_begin: waiting bit and sleep word (store buffering)
 *   giveback   mp_drop_stash against mp_sleep_begin with a waiter: free slot and sleep word, over the
 *              waiting bit that both read (store buffering)
 *   publish    mp_append against mp_new_batches, mp_seal, mp_walk: payload and count (message passing)
 *
 * Store buffering is visible on x86: with a plain store in place of one read-modify-write rounds are
 * lost, within a second. Message passing is not: x86 keeps the order of stores and of loads, so there
 * the mutant changes the order of the code, and ThreadSanitizer judges the orders (threads.c).
 * Prints one line of JSON; the caller judges it.
 */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "append.h"
#include "pool.h"

enum { SLOTS = 4, OWNER = 1, WAITER = 2, HOLDER = 3, VALUE_BYTES = 8000, SPINS = 4000,
       MAX_BIAS = 20000, BALLAST = 40, LINE = 128 };

static struct mp_sender sender;
static struct mp_writer worker, waiter;
static int wake_fd;
static uint64_t rounds, lost, slept;
static _Alignas(128) _Atomic uint64_t worker_at;
static _Alignas(128) _Atomic uint64_t sender_at;
static _Atomic int stop;
static uint64_t seed;
static uint8_t pattern; /* of the round, written by the sender's thread before it */

static void die(const char *what) {
    fprintf(stderr, "litmus: %s\n", what);
    _exit(1);
}

/* Both sides leave it within a few nanoseconds of each other, when both have a CPU. */
static void meet(_Atomic uint64_t *mine, const _Atomic uint64_t *other, uint64_t at) {
    atomic_store_explicit(mine, at, memory_order_release);
    for (uint32_t spins = 0; atomic_load_explicit(other, memory_order_acquire) < at; spins++) {
        if (spins % SPINS == SPINS - 1) sched_yield();
    }
}

/* One side's head start over the other, tuned to where the outcome turns: there the race is close. */
static _Atomic int32_t bias;

static void linger(uint64_t *state, int32_t turns) {
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    turns = (turns > 0 ? turns : 0) + (int32_t)(*state >> 58);
    while (turns-- > 0) atomic_signal_fence(memory_order_seq_cst);
}

/* Stores to lines that the other side's CPU holds keep a store buffer busy, and what is stored after
 * them waits; the read-modify-writes of the core do not mind. */
static _Alignas(LINE) _Atomic uint8_t ballast[BALLAST * LINE];

static void load_ballast(void) {
    for (int i = 0; i < BALLAST; i++)
        atomic_store_explicit(&ballast[i * LINE], 1, memory_order_relaxed);
}

/* Each thread on a CPU of its own, where there are two. */
static void pin(int which) {
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) || CPU_COUNT(&all) < 2) return;
    CPU_ZERO(&one);
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && seen++ == which) CPU_SET(cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
}

static void tune(int sender_was_first) {
    const int32_t now = atomic_load_explicit(&bias, memory_order_relaxed);
    const int32_t next = now + (sender_was_first ? 8 : -8);
    if (next > -MAX_BIAS && next < MAX_BIAS)
        atomic_store_explicit(&bias, next, memory_order_relaxed);
}

static int was_woken(void) {
    uint64_t count;
    return read(wake_fd, &count, sizeof count) == sizeof count;
}

static int sleep_begin(void) {
    return mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + 1000000);
}

/* --- the worker's half, and the sender's, of a round; and what comes between rounds */

static void announce(void) { mp_announce(&worker, 0, 1); }

static void wait_begin(void) { mp_wait_begin(&worker, 1); }

static void give_back(void) { mp_drop_stash(&worker); }

static void append(void) {
    static uint8_t value[VALUE_BYTES];
    memset(value, pattern, sizeof value);
    const struct mp_record record = {
        .value = value, .value_bytes = sizeof value, .key_bytes = -1, .timestamp_ms = 1000};
    struct mp_place place;
    if (mp_append(&worker, 0, &record, 0, &place) != MP_DONE) die("an append found no memory");
}

static int sleeps; /* the outcome of the sender's half */
static int torn;

static void go_to_sleep(void) { sleeps = sleep_begin(); }

static void collect(void) {
    static struct mp_span spans[SLOTS];
    torn = 0;
    for (uint32_t got = 0; got == 0;) {
        uint32_t found[SLOTS];
        uint64_t seq;
        const int64_t count = mp_new_batches(&sender, 0, found, &seq);
        if (count < 0) die("the chain of batches is corrupt");
        for (int64_t i = count - 1; i >= 0; i--) {
            while (!mp_seal(&sender, found[i])) mp_pause();
            struct mp_walk walk = {.span = spans};
            if (mp_walk(&sender, found[i], &walk)) {
                torn = 1;
                got++;
            } else if (walk.records > 0) {
                got += walk.records;
                const uint8_t *at = sender.region.data + spans[0].offset + walk.bytes - 2;
                for (int b = 0; b < VALUE_BYTES; b++) torn |= at[-b] != pattern;
            }
            if (!mp_release(&sender, found[i])) mp_retry_quarantine(&sender);
        }
    }
}

static void judge_sleep(int missed) {
    slept += sleeps;
    tune(sleeps);
    if (!sleeps) return;
    lost += !was_woken() && missed;
    mp_sleep_end(&sender);
}

static void after_announce(void) {
    judge_sleep(1);
    mp_take_dirty(&sender, 0);
}

static void after_wait(void) {
    judge_sleep(1);
    mp_wait_end(&worker);
    was_woken();
    mp_waiters(&sender);
}

/* Every slot is held, one of them by the worker, and somebody waits. */
static void prepare_giveback(void) {
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        for (uint32_t owner = OWNER; owner <= HOLDER; owner++)
            mp_unclaim(&sender.region, slot, owner);
    worker.stash = mp_claim(&sender.region, OWNER, 1);
    atomic_store(&sender.region.slot[worker.stash].next, MP_NONE);
    while (mp_claim(&sender.region, HOLDER, 1) != MP_NONE) {
    }
    mp_wait_begin(&waiter, 1);
    was_woken();
    if (mp_waiters(&sender) != 1) die("nobody waits");
}

static void after_giveback(void) {
    judge_sleep(!mp_wait_over(&waiter));
    mp_wait_end(&waiter);
    waiter.stash = MP_NONE;
    was_woken();
    mp_waiters(&sender);
    prepare_giveback();
}

static void after_publish(void) {
    lost += (uint64_t)torn;
    mp_retry_quarantine(&sender);
    mp_take_dirty(&sender, 0);
    pattern++;
}

static void hold_all(void) {
    while (mp_claim(&sender.region, HOLDER, 1) != MP_NONE) {
    }
}

static void nothing(void) {}

static const struct test {
    const char *name;
    void (*prepare)(void), (*theirs)(void), (*ours)(void), (*after)(void);
} tests[] = {
    {"announce", nothing, announce, go_to_sleep, after_announce},
    {"wait", hold_all, wait_begin, go_to_sleep, after_wait},
    {"giveback", prepare_giveback, give_back, go_to_sleep, after_giveback},
    {"publish", nothing, append, collect, after_publish},
};

static void *work(void *argument) {
    const struct test *test = argument;
    uint64_t state = seed * 3 + 1;
    pin(1);
    for (uint64_t at = 1;; at += 2) {
        meet(&worker_at, &sender_at, at);
        if (atomic_load_explicit(&stop, memory_order_relaxed)) return NULL;
        linger(&state, -atomic_load_explicit(&bias, memory_order_relaxed));
        load_ballast();
        test->theirs();
        meet(&worker_at, &sender_at, at + 1);
    }
}

int main(int argc, char **argv) {
    const struct test *test = NULL;
    for (size_t i = 0; argc == 4 && i < sizeof tests / sizeof *tests; i++)
        if (!strcmp(argv[1], tests[i].name)) test = &tests[i];
    if (!test) die("usage: litmus announce|wait|giveback|publish SECONDS SEED");
    seed = strtoull(argv[3], NULL, 10);
    size_t ctl_bytes, pool_bytes;
    mp_segment_sizes(SLOTS, 1, 1, &ctl_bytes, &pool_bytes);
    const int ctl = memfd_create("ctl", 0), pool = memfd_create("pool", 0);
    if (ftruncate(ctl, (off_t)ctl_bytes) || ftruncate(pool, (off_t)pool_bytes)) die("memfd");
    wake_fd = eventfd(0, EFD_NONBLOCK);
    const struct mp_geometry geometry = {.slots = SLOTS, .max_partitions = 1, .max_topics = 1,
                                         .batch_size = 12000, .max_request_size = 1 << 20,
                                         .linger_us = 1000, .generation = 1};
    const char *wrong = mp_sender_open(&sender, ctl, pool, &geometry);
    if (wrong) die(wrong);
    worker = waiter = (struct mp_writer){
        .region = sender.region, .owner = OWNER, .stash = MP_NONE, .wake_fd = wake_fd};
    waiter.owner = WAITER;
    sender.next_index = 1; /* as if a topic had the partition */
    for (uint32_t owner = OWNER; owner <= HOLDER; owner++) sender.alive[owner] = 1;
    test->prepare();
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, (void *)(uintptr_t)test)) die("thread");
    uint64_t state = seed * 5 + 2;
    pin(0);
    const int64_t until = mp_now_ns() + (int64_t)(atof(argv[2]) * 1e9);
    for (uint64_t at = 1;; at += 2) {
        if (rounds % 256 == 0 && mp_now_ns() >= until) atomic_store(&stop, 1);
        meet(&sender_at, &worker_at, at);
        if (atomic_load_explicit(&stop, memory_order_relaxed)) break;
        linger(&state, atomic_load_explicit(&bias, memory_order_relaxed));
        test->ours();
        meet(&sender_at, &worker_at, at + 1);
        test->after();
        load_ballast();
        rounds++;
    }
    pthread_join(thread, NULL);
    printf("{\"rounds\": %lu, \"slept\": %lu, \"lost\": %lu}\n", (unsigned long)rounds,
           (unsigned long)slept, (unsigned long)lost);
    return 0;
}
