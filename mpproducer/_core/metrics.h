/* What is measured, in CTL: written by the sender only, read by anybody who has the segment.
 *
 * Every word is one that only grows, or a gauge; each has one writer, so the writer adds by a load
 * and a store, and a reader sees every word whole. It may see the count of an event whose sum is
 * not there yet: an average is off by what happened while it was read, and nothing else.
 *
 * Rates and averages over a window need what the words were: every 30 s the sender copies them into
 * one of two samples, in turn. The older one is 30 to 60 s old. `sequence` counts copies, and is odd
 * while one is made: a sequence lock with one writer, without fences, since the copy is made with
 * release stores and read with acquire loads.
 */
#ifndef MP_METRICS_H
#define MP_METRICS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef _Atomic uint64_t mp_m64;

#define MP_COUNTERS 256u
#define MP_NODES 64u
#define MP_SAMPLES 2u

/* Log-linear buckets of microseconds: exact below 16, then 16 to the octave, up to 2^32 (71 min).
 * A value differs from the middle of its bucket by less than 1/33 of it. */
#define MP_SUB_BITS 4
#define MP_BUCKETS 464u
static inline uint32_t mp_bucket(uint64_t us) {
    if (us >> 32) us = UINT32_MAX;
    if (us < 1u << MP_SUB_BITS) return (uint32_t)us;
    const uint32_t shift = 63u - (uint32_t)__builtin_clzll(us) - MP_SUB_BITS;
    return (shift << MP_SUB_BITS) + (uint32_t)(us >> shift);
}

/* The largest value since the last sample, and between the two before. */
struct mp_peak {
    mp_m64 now, before;
};

struct mp_histogram {
    mp_m64 sum_us;
    struct mp_peak peak_us;
    mp_m64 spare[5];
    mp_m64 bucket[MP_BUCKETS];
};

struct mp_node_metrics {
    mp_m64 id; /* node id + 2^32; 0: the row is free */
    mp_m64 requests, responses, bytes_out, bytes_in, in_flight;
    struct mp_peak request_bytes;
    struct mp_histogram latency;
};

struct mp_topic_metrics {
    mp_m64 records, bytes, uncompressed, batches, retried, failed, spare[2];
};
_Static_assert(sizeof(struct mp_topic_metrics) == 64, "a topic has one line");

/* The first counters are written event by event; then come the sums of what workers count (struct
 * mp_tally), and the rest is copied from the sender's private ones. Names: mpproducer/shm/counters.py. */
enum mp_counter {
    MP_RECORDS_SENT, MP_BYTES_SENT, MP_BATCHES_SENT, MP_UNCOMPRESSED_SENT, MP_TALLY_FIRST,
};

/* What workers count, each in a row of its own in POOL (struct mp_tally). */
enum mp_tally_word {
    MP_TALLY_MEMORY_WAIT_NS, MP_TALLY_MEMORY_WAITS, MP_TALLY_METADATA_WAIT_NS, MP_TALLY_FLUSH_NS,
    MP_TALLY_BUFFER_FULL, MP_TALLY_NO_METADATA, MP_TALLY_TOO_LARGE, MP_TALLY_INVALID_TOPIC,
    MP_TALLY_AUTHORIZATION, MP_TALLY_NOT_SENT, MP_TALLY_WORDS,
};

enum mp_distribution { MP_QUEUE_TIME, MP_REQUEST_LATENCY, MP_SEND_TO_ACK, MP_DISTRIBUTIONS };
enum mp_peak_of { MP_PEAK_BATCH_BYTES, MP_PEAK_RECORD_BYTES, MP_PEAK_THROTTLE_MS, MP_PEAKS };

struct mp_sample {
    mp_m64 taken_ns;
    mp_m64 spare[7];
    mp_m64 counter[MP_COUNTERS];
    struct mp_histogram distribution[MP_DISTRIBUTIONS];
    struct mp_node_metrics node[MP_NODES];
    struct mp_topic_metrics topic[]; /* max_topics of them */
};

struct mp_metrics {
    mp_m64 sequence; /* copies begun and ended */
    mp_m64 owners;   /* the highest owner id ever given */
    struct mp_peak peak[MP_PEAKS];
    mp_m64 spare[8];
    /* then: the sample of this moment, and MP_SAMPLES older ones, mp_sample_bytes() each */
};

static inline size_t mp_sample_bytes(uint32_t max_topics) {
    return sizeof(struct mp_sample) + (size_t)max_topics * sizeof(struct mp_topic_metrics);
}
static inline size_t mp_metrics_bytes(uint32_t max_topics) {
    return sizeof(struct mp_metrics) + (1 + MP_SAMPLES) * mp_sample_bytes(max_topics);
}
/* 0: the words that are counted in; 1 and 2: the samples. */
static inline struct mp_sample *mp_sample_at(struct mp_metrics *metrics, uint32_t max_topics,
                                             uint32_t place) {
    return (struct mp_sample *)((uint8_t *)(metrics + 1) + place * mp_sample_bytes(max_topics));
}

/* One writer: no read-modify-write. */
static inline void mp_count(mp_m64 *word, uint64_t by) {
    atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + by,
                          memory_order_relaxed);
}
static inline void mp_peak(struct mp_peak *peak, uint64_t value) {
    if (value > atomic_load_explicit(&peak->now, memory_order_relaxed))
        atomic_store_explicit(&peak->now, value, memory_order_relaxed);
}
static inline void mp_measure(struct mp_histogram *histogram, uint64_t us) {
    mp_count(&histogram->bucket[mp_bucket(us)], 1);
    mp_count(&histogram->sum_us, us);
    mp_peak(&histogram->peak_us, us);
}

#endif
