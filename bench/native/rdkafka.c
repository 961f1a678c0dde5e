/* librdkafka from C as a peer: the same job as main.go, the same words on stdin and stdout.
 *
 *   rdkafka MODE BOOTSTRAP TOPIC RECORDS SIZE KEYED LINGER_MS CODEC BATCH_BYTES
 *
 * MODE is "burst" or "single". The values are in the file named by BENCH_VALUES. Says "ready" when
 * warm, starts at "go", prints one JSON line, and stays until stdin ends. */
#include <librdkafka/rdkafka.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KEYS = 5000, POLL_EVERY = 1000, WAIT_MS = 60000 };

static int64_t acked, requests, wire_bytes, stats_seen;
static char keys[KEYS][16];

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void told(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque) {
    (void)rk;
    (void)opaque;
    if (!message->err) acked++;
}

/* Adds up every number behind `name` before the part on topics, which repeats the names. */
static int64_t sum_of(const char *json, const char *name) {
    int64_t sum = 0;
    const char *end = strstr(json, "\"topics\":");
    for (const char *at = json; (at = strstr(at, name)) && (!end || at < end); at += strlen(name))
        sum += strtoll(at + strlen(name), NULL, 10);
    return sum;
}

static int statistics(rd_kafka_t *rk, char *json, size_t length, void *opaque) {
    (void)rk;
    (void)length;
    (void)opaque;
    requests = sum_of(json, "\"Produce\":");
    wire_bytes = sum_of(json, "\"txbytes\":");
    stats_seen++;
    return 0;
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value) {
    char why[256];
    if (rd_kafka_conf_set(conf, name, value, why, sizeof why) != RD_KAFKA_CONF_OK) fail(name, why);
}

static rd_kafka_t *client(char **args) {
    char why[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    set(conf, "bootstrap.servers", args[1]);
    set(conf, "acks", "all");
    set(conf, "enable.idempotence", "true");
    set(conf, "linger.ms", args[6]);
    set(conf, "compression.type", args[7]);
    if (strcmp(args[8], "0") != 0) set(conf, "batch.size", args[8]);
    set(conf, "queue.buffering.max.messages", "1000000");
    set(conf, "queue.buffering.max.kbytes", "262144");
    set(conf, "partitioner", "murmur2_random");
    set(conf, "statistics.interval.ms", "1000");
    set(conf, "log_level", "0");
    rd_kafka_conf_set_dr_msg_cb(conf, told);
    rd_kafka_conf_set_stats_cb(conf, statistics);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    if (!rk) fail("rd_kafka_new", why);
    return rk;
}

static void produce(rd_kafka_t *rk, rd_kafka_topic_t *topic, void *value, size_t size,
                    const char *key) {
    while (rd_kafka_produce(topic, RD_KAFKA_PARTITION_UA, RD_KAFKA_MSG_F_COPY, value, size, key,
                            key ? strlen(key) : 0, NULL) != 0) {
        if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
            fail("rd_kafka_produce", rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_poll(rk, 10);
    }
}

static void wait_acked(rd_kafka_t *rk, int64_t wanted) {
    for (int waited = 0; acked < wanted && waited < WAIT_MS / 100; waited++) {
        int64_t before = acked;
        rd_kafka_poll(rk, 100);
        if (acked != before) waited = 0;
    }
    if (acked < wanted) fail("produce", "no acknowledgement");
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void fresh_statistics(rd_kafka_t *rk) {
    int64_t seen = stats_seen;
    for (int i = 0; i < 40 && stats_seen == seen; i++) rd_kafka_poll(rk, 100);
}

static char *read_values(size_t size, size_t *distinct) {
    const char *name = getenv("BENCH_VALUES");
    FILE *file = name ? fopen(name, "rb") : NULL;
    if (!file) fail("BENCH_VALUES", "no such file");
    fseek(file, 0, SEEK_END);
    size_t length = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(length);
    if (!data || fread(data, 1, length, file) != length) fail(name, "cannot be read");
    fclose(file);
    *distinct = length / size;
    return data;
}

int main(int argc, char **argv) {
    if (argc != 10) fail("rdkafka", "nine arguments are needed");
    char **args = argv + 1, line[64];
    int64_t records = atoll(args[3]);
    size_t size = (size_t)atoll(args[4]), distinct;
    int keyed = args[5][0] == '1', single = strcmp(args[0], "single") == 0;
    char *data = read_values(size, &distinct);
    for (int i = 0; i < KEYS; i++) snprintf(keys[i], sizeof keys[i], "user-%05d", i * 7919 % KEYS);
    rd_kafka_t *rk = client(args);
    rd_kafka_topic_t *topic = rd_kafka_topic_new(rk, args[2], NULL);
    produce(rk, topic, data, size, NULL);
    wait_acked(rk, 1);
    fresh_statistics(rk);
    int64_t requests_before = requests, bytes_before = wire_bytes, acked_before = acked;
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;
    int64_t *taken = calloc((size_t)records, sizeof *taken);
    int64_t started = now_ns();
    for (int64_t i = 0; i < records; i++) {
        char *value = data + (size_t)i % distinct * size;
        int64_t began = single ? now_ns() : 0;
        produce(rk, topic, value, size, keyed ? keys[i % KEYS] : NULL);
        if (single) {
            wait_acked(rk, acked_before + i + 1);
            taken[i] = now_ns() - began;
        } else if (i % POLL_EVERY == 0) {
            rd_kafka_poll(rk, 0);
        }
    }
    wait_acked(rk, acked_before + records);
    double seconds = (double)(now_ns() - started) / 1e9;
    /* The parent reads the CPU clock at this line, before the statistics are waited for. */
    puts("done");
    fflush(stdout);
    fresh_statistics(rk);
    printf("{\"acked\": %lld, \"seconds\": %.6f, \"requests\": %lld, \"wire_bytes\": %lld, "
           "\"taken_ns\": [",
           (long long)(acked - acked_before), seconds, (long long)(requests - requests_before),
           (long long)(wire_bytes - bytes_before));
    for (int64_t i = 0; single && i < records; i++)
        printf("%s%lld", i ? ", " : "", (long long)taken[i]);
    puts("]}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) continue;
    rd_kafka_topic_destroy(topic);
    rd_kafka_destroy(rk);
    return 0;
}
