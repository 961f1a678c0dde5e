/* Real processes, one of them killed or stopped at a chosen step of the protocol.
 *
 *   steps kill|stop|none STEP NTH SEED
 *
 * The parent is the sender: it collects, seals, walks, holds and releases batches, and serves
 * waiting writers. Three workers append records that say who they are. The first worker gets the
 * fault when it comes to STEP for the NTH time; a killed one is reaped and replaced, a stopped one
 * is woken after a while in which the others must get on. Every worker is delayed at random steps,
 * so that batches are sealed over writers and commits are lost.
 *
 * Checked: every record whose append returned comes out once, in order, byte for byte; one that was
 * being appended comes out whole or not at all; what the sender holds does not change under it; in
 * the end every slot is free. Prints one line of JSON; exit status 1 when a check fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "append.h"
#include "pool.h"

enum {
    WORKERS = 3,
    LIVES = WORKERS + 1, /* the victim has a second life */
    PARTITIONS = 3,
    RECORDS = 700, /* calls; every third is for several records */
    MAX_RUN = 12,
    MAX_VALUE = 20000,
    SLOTS = 20,
    BATCH_BYTES = 24 * 1024,
    STOP_MS = 60,
    STUCK_MS = 5000,
    DEADLINE_MS = 20000,
    SENDER_STEPS = 40, /* ids of MP_STEP from here on are the sender's */
    REAP_STEP = 42,
};

/* What the processes tell the parent. */
struct journal {
    _Atomic uint32_t begun[LIVES][PARTITIONS], done[LIVES][PARTITIONS];
    _Atomic uint32_t hits, steals, lost, waits, compressed, runs, value_runs;
};

struct key {
    uint32_t life, partition, number, bytes;
};

static struct journal *journal;
static int fault_signal, fault_step, fault_nth, is_victim, is_worker;
static uint64_t noise;
static pid_t pids[LIVES];

static uint32_t random_below(uint32_t limit) {
    noise ^= noise << 13;
    noise ^= noise >> 7;
    noise ^= noise << 17;
    return (uint32_t)(noise >> 33) % limit;
}

static void die(const char *what) {
    fprintf(stderr, "steps: %s\n", what);
    for (int i = 0; i < LIVES; i++)
        if (pids[i] > 0) kill(pids[i], SIGKILL);
    exit(1);
}

void mp_step(int id) {
    if (is_victim && id == fault_step && --fault_nth == 0) {
        atomic_fetch_add(&journal->hits, 1);
        kill(getpid(), fault_signal);
    }
    if (!is_worker && id == fault_step && id >= SENDER_STEPS && --fault_nth == 0) {
        atomic_fetch_add(&journal->hits, 1);
        usleep(STOP_MS * 1000); /* the sender itself is held up */
    }
    if (!is_worker && id == REAP_STEP) usleep(2000);
    if (random_below(300) == 0) usleep(1 + random_below(500));
}

static uint8_t fill(const struct key *key, uint32_t at) {
    return (uint8_t)(key->life * 31 + key->partition * 7 + key->number * 13 + at);
}

/* --- workers */

static void compress_sealed(struct mp_writer *writer, const struct mp_place *place) {
    static uint8_t output[9000];
    for (uint32_t i = 0; i < place->sealed_count; i++) {
        if (!place->sealed[i].ours) continue;
        memset(output, 0xc0, sizeof output);
        if (random_below(4) == 0)
            mp_compress_abandon(writer, place->sealed[i]);
        else if (mp_compress_end(writer, place->sealed[i], output, sizeof output))
            atomic_fetch_add(&journal->compressed, 1);
    }
}

/* Appends some of the records, or of the values where they are nothing else; at least one. */
static uint32_t append(struct mp_writer *writer, uint32_t partition,
                       const struct mp_record *const *records, const struct mp_value *values,
                       uint32_t count) {
    struct mp_place place;
    for (;;) {
        const enum mp_status status =
            values ? mp_append_values(writer, partition, values, count,
                                      records[0]->timestamp_ms, 0, &place)
                   : mp_append_run(writer, partition, records, count, 0, &place);
        if (status == MP_DONE) break;
        if (status == MP_CLOSED) exit(9);
        compress_sealed(writer, &place);
        atomic_fetch_add(&journal->waits, 1);
        mp_wait_begin(writer, place.units);
        for (int slices = random_below(8) ? 2000 : 0; slices > 0 && !mp_wait_over(writer); slices--)
            mp_wait_slice(writer, 5000000);
        mp_wait_end(writer); /* now and then the wait is given up at once, granted or not */
    }
    if (place.count == 0 || place.count > count) die("a run of another length");
    if (place.count > 1) atomic_fetch_add(values ? &journal->value_runs : &journal->runs, 1);
    compress_sealed(writer, &place);
    return place.count;
}

/* A run of records that say who they are, in their key or, where a value is all there is, at its
 * beginning; in one partition; most are alone. */
static void append_some(struct mp_writer *writer, int life, uint32_t number) {
    static uint8_t bytes[MAX_RUN][sizeof(struct key) + MAX_VALUE];
    static struct key keys[MAX_RUN];
    struct mp_record records[MAX_RUN];
    struct mp_value values[MAX_RUN];
    const struct mp_record *run[MAX_RUN];
    const uint32_t partition = random_below(PARTITIONS);
    const uint32_t count = random_below(3) ? 1 : 1 + random_below(MAX_RUN);
    const int plain = random_below(2) == 0;
    for (uint32_t i = 0; i < count; i++) {
        keys[i] = (struct key){(uint32_t)life, partition, 0, 0};
        keys[i].bytes = random_below(10) ? random_below(600) : random_below(MAX_VALUE);
        keys[i].number = atomic_fetch_add(&journal->begun[life][partition], 1);
        for (uint32_t at = 0; at < keys[i].bytes; at++) bytes[i][sizeof keys[i] + at] = fill(&keys[i], at);
        memcpy(bytes[i], &keys[i], sizeof keys[i]);
        values[i] = (struct mp_value){bytes[i], (int32_t)(sizeof keys[i] + keys[i].bytes)};
        records[i] = (struct mp_record){.key = (const uint8_t *)&keys[i],
                                        .key_bytes = sizeof keys[i],
                                        .value = bytes[i] + sizeof keys[i],
                                        .value_bytes = (int32_t)keys[i].bytes,
                                        .timestamp_ms = 1000 + number};
        run[i] = &records[i];
    }
    for (uint32_t done = 0; done < count;) {
        const uint32_t more = append(writer, partition, run + done, plain ? values + done : NULL,
                                     count - done);
        atomic_fetch_add(&journal->done[life][partition], more);
        done += more;
    }
}

static void work(int life, int ctl_fd, int pool_fd, int wake_fd, uint64_t seed) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct mp_writer writer = {.owner = (uint32_t)life + 1, .stash = MP_NONE, .wake_fd = wake_fd};
    if (mp_region_map(&writer.region, ctl_fd, pool_fd, SLOTS, PARTITIONS, 1, 0)) _exit(8);
    noise = seed * 977 + (uint64_t)life * 7919 + 1;
    is_worker = 1;
    is_victim = life == 0;
    for (uint32_t i = 0; i < RECORDS; i++) {
        append_some(&writer, life, i);
        if (random_below(30) == 0) usleep(random_below(800));
    }
    mp_drop_stash(&writer);
    atomic_fetch_add(&journal->steals, (uint32_t)writer.steals);
    atomic_fetch_add(&journal->lost, (uint32_t)writer.lost_commits);
    _exit(0);
}

/* --- the sender */

struct batch {
    uint32_t slot, records, bytes;
    int64_t seen_ms, hold_until_ms;
    uint8_t *copy;
};

static struct mp_sender sender;
static struct batch queue[PARTITIONS][SLOTS], held[SLOTS];
static uint32_t queued[PARTITIONS], holding, next_number[LIVES][PARTITIONS];
static struct mp_span spans[SLOTS * 2];
static uint32_t sent, empty, reaped;

static int64_t now_ms(void) { return mp_now_ns() / 1000000; }

static uint64_t read_varint(const uint8_t **at, const uint8_t *end) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        if (*at == end || shift > 63) die("a varint runs over its batch");
        const uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return value;
    }
}

static int64_t read_signed(const uint8_t **at, const uint8_t *end) {
    const uint64_t value = read_varint(at, end);
    return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

static void check_record(uint32_t partition, const uint8_t **at, const uint8_t *end, uint32_t index) {
    const int64_t length = read_signed(at, end);
    if (length < 0 || length > end - *at) die("a record is longer than its batch");
    const uint8_t *stop = *at + length;
    if (*(*at)++ != 0) die("record attributes");
    read_signed(at, stop);
    if (read_signed(at, stop) != index) die("offset deltas are not dense");
    struct key key;
    const int64_t key_bytes = read_signed(at, stop);
    if (key_bytes != (int64_t)sizeof key && key_bytes != -1) die("key length");
    const int64_t before = key_bytes == -1 ? read_signed(at, stop) - (int64_t)sizeof key : 0;
    memcpy(&key, *at, sizeof key);
    *at += sizeof key;
    if (key.life >= LIVES || key.partition != partition) die("a record in a foreign partition");
    if ((key_bytes == -1 ? before : read_signed(at, stop)) != key.bytes ||
        stop - *at != (int64_t)key.bytes + 1)
        die("value length");
    for (uint32_t i = 0; i < key.bytes; i++)
        if ((*at)[i] != fill(&key, i)) die("a byte of a value is not what was sent");
    *at = stop;
    uint32_t *expected = &next_number[key.life][partition];
    if (key.number < *expected) die("a record came twice, or out of order");
    if (key.number > *expected) die("a record is missing");
    (*expected)++;
    sent++;
}

static void gather(const struct mp_walk *walk, uint8_t *out) {
    for (uint32_t i = 0; i < walk->spans; i++) {
        memcpy(out, sender.region.data + spans[i].offset, spans[i].bytes);
        out += spans[i].bytes;
    }
}

static void send_batch(uint32_t partition, struct batch batch) {
    struct mp_walk walk = {.span = spans};
    const char *wrong = mp_walk(&sender, batch.slot, &walk);
    if (wrong) die(wrong);
    batch.bytes = walk.bytes;
    batch.records = walk.records;
    batch.copy = malloc(walk.bytes + 1);
    gather(&walk, batch.copy);
    const uint8_t *at = batch.copy;
    for (uint32_t i = 0; i < walk.records; i++)
        check_record(partition, &at, batch.copy + walk.bytes, i);
    if (at != batch.copy + walk.bytes) die("bytes behind the last record");
    empty += walk.records == 0;
    uint32_t owner, first, bytes;
    if (mp_compressed(&sender, batch.slot, &owner, &first, &bytes) == MP_C_BUSY)
        mp_take_compression(&sender, batch.slot); /* a worker that is slow, or dead */
    batch.hold_until_ms = now_ms() + random_below(4);
    held[holding++] = batch;
}

static void release_due(int everything) {
    for (uint32_t i = 0; i < holding;) {
        if (!everything && held[i].hold_until_ms > now_ms()) {
            i++;
            continue;
        }
        struct mp_walk walk = {.span = spans};
        if (mp_walk(&sender, held[i].slot, &walk) || walk.bytes != held[i].bytes)
            die("a batch changed while it was held");
        uint8_t *again = malloc(walk.bytes + 1);
        gather(&walk, again);
        if (memcmp(again, held[i].copy, walk.bytes)) die("memory changed while it was lent");
        free(again);
        free(held[i].copy);
        mp_release(&sender, held[i].slot);
        held[i] = held[--holding];
    }
    mp_retry_quarantine(&sender);
}

static void collect(uint32_t partition) {
    uint32_t found[SLOTS];
    uint64_t first_seq;
    const int64_t count = mp_new_batches(&sender, partition, found, &first_seq);
    if (count < 0) die("the chain of batches is corrupt");
    for (int64_t i = count - 1; i >= 0; i--)
        queue[partition][queued[partition]++] =
            (struct batch){.slot = found[i], .seen_ms = now_ms()};
}

static void collect_all(void) {
    for (uint32_t i = 0; i < (PARTITIONS + 63) / 64; i++) mp_take_dirty(&sender, i);
    for (uint32_t partition = 0; partition < PARTITIONS; partition++) collect(partition);
}

static void drain(int everything) {
    for (uint32_t partition = 0; partition < PARTITIONS; partition++) {
        while (queued[partition]) {
            struct batch *oldest = &queue[partition][0];
            const uint64_t word = atomic_load(&sender.region.slot[oldest->slot].word);
            const int due = everything || now_ms() - oldest->seen_ms >= 2 || mp_waiters(&sender);
            if (!(word & MP_SEAL) && !due) break;
            if (!mp_seal(&sender, oldest->slot)) break; /* its owner lives and has no record yet */
            send_batch(partition, *oldest);
            memmove(oldest, oldest + 1, --queued[partition] * sizeof *oldest);
        }
    }
}

static void sleep_a_little(int wake_fd) {
    const uint64_t until_us = (uint64_t)mp_now_ns() / 1000 + 2000;
    if (!mp_sleep_begin(&sender, until_us)) return;
    struct pollfd ready = {.fd = wake_fd, .events = POLLIN};
    poll(&ready, 1, 2);
    mp_sleep_end(&sender);
    uint64_t count;
    if (read(wake_fd, &count, sizeof count) < 0 && errno != EAGAIN) die("eventfd");
}

static void bury(int life) {
    collect_all(); /* R4: what was linked before the death */
    sender.alive[life + 1] = 0;
    reaped += mp_reap(&sender, (uint32_t)life + 1);
}

static uint32_t done_by_others(void) {
    uint32_t total = 0;
    for (int life = 1; life < LIVES; life++)
        for (int partition = 0; partition < PARTITIONS; partition++)
            total += atomic_load(&journal->done[life][partition]);
    return total;
}

static void spawn(int life, int ctl_fd, int pool_fd, int wake_fd, uint64_t seed) {
    sender.alive[life + 1] = 1;
    pids[life] = fork();
    if (pids[life] < 0) die("fork");
    if (pids[life] == 0) work(life, ctl_fd, pool_fd, wake_fd, seed);
}

static void check_end(void) {
    collect_all();
    drain(1);
    for (uint32_t partition = 0; partition < PARTITIONS; partition++)
        if (queued[partition]) die("a batch cannot be sealed although all workers are gone");
    release_due(1);
    if (mp_retry_quarantine(&sender)) die("memory stays in quarantine");
    mp_grant(&sender);
    if (mp_free_slots(&sender) != SLOTS) die("slots are lost");
    for (int life = 0; life < LIVES; life++) {
        if (!mp_owner_reusable(&sender, (uint32_t)life + 1)) die("an owner id stays in use");
        for (int partition = 0; partition < PARTITIONS; partition++) {
            const uint32_t out = next_number[life][partition];
            if (out < atomic_load(&journal->done[life][partition])) die("an appended record is lost");
            if (out > atomic_load(&journal->begun[life][partition])) die("a record out of nothing");
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 5) die("usage: steps kill|stop|none STEP NTH SEED");
    fault_signal = argv[1][0] == 'k' ? SIGKILL : SIGSTOP;
    fault_step = argv[1][0] == 'n' ? -1 : atoi(argv[2]);
    fault_nth = atoi(argv[3]);
    const uint64_t seed = strtoull(argv[4], NULL, 10);
    noise = seed * 31337 + 17;
    journal = mmap(NULL, sizeof *journal, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    size_t ctl_bytes, pool_bytes;
    mp_segment_sizes(SLOTS, PARTITIONS, 1, &ctl_bytes, &pool_bytes);
    const int ctl_fd = memfd_create("ctl", 0), pool_fd = memfd_create("pool", 0);
    if (ftruncate(ctl_fd, (off_t)ctl_bytes) || ftruncate(pool_fd, (off_t)pool_bytes)) die("memfd");
    const int wake_fd = eventfd(0, EFD_NONBLOCK);
    const struct mp_geometry geometry = {.slots = SLOTS, .max_partitions = PARTITIONS,
                                         .max_topics = 1, .batch_size = BATCH_BYTES,
                                         .max_request_size = 1 << 20, .linger_us = 2000,
                                         .compress = 1, .generation = 1};
    const char *wrong = mp_sender_open(&sender, ctl_fd, pool_fd, &geometry);
    if (wrong) die(wrong);
    sender.next_index = PARTITIONS;
    for (int life = 0; life < WORKERS; life++) spawn(life, ctl_fd, pool_fd, wake_fd, seed);

    const int64_t until_ms = now_ms() + DEADLINE_MS;
    int64_t continue_ms = 0;
    uint32_t others_then = 0, others_moved = 0;
    int alive = WORKERS;
    while (alive) {
        if (now_ms() > until_ms) die("somebody hangs");
        collect_all();
        drain(0);
        release_due(0);
        mp_grant(&sender);
        sleep_a_little(wake_fd);
        if (continue_ms && now_ms() >= continue_ms) {
            others_moved = done_by_others() - others_then;
            if (others_moved > 0 || others_then >= RECORDS * (WORKERS - 1)) {
                continue_ms = 0;
                kill(pids[0], SIGCONT);
            } else if (now_ms() >= continue_ms + STUCK_MS) { /* on a busy machine all are slow */
                die("a stopped worker holds up the others");
            }
        }
        int status;
        const pid_t pid = waitpid(-1, &status, WNOHANG | WUNTRACED);
        if (pid <= 0) continue;
        int life = 0;
        while (life < LIVES - 1 && pids[life] != pid) life++;
        if (WIFSTOPPED(status)) {
            continue_ms = now_ms() + STOP_MS;
            others_then = done_by_others();
            continue;
        }
        alive--;
        pids[life] = 0;
        if (WIFEXITED(status) && WEXITSTATUS(status)) die("a worker failed");
        bury(life);
        if (WIFSIGNALED(status)) {
            if (life != 0 || WTERMSIG(status) != SIGKILL) die("a worker crashed");
            spawn(WORKERS, ctl_fd, pool_fd, wake_fd, seed);
            alive++;
        }
    }
    check_end();
    printf("{\"hits\": %u, \"sent\": %u, \"empty\": %u, \"reaped\": %u, \"steals\": %u, "
           "\"lost\": %u, \"waits\": %u, \"compressed\": %u, \"runs\": %u, \"value_runs\": %u, "
           "\"others_moved\": %u}\n",
           journal->hits, sent, empty, reaped, journal->steals, journal->lost, journal->waits,
           journal->compressed, journal->runs, journal->value_runs, others_moved);
    mp_sender_close(&sender);
    return 0;
}
