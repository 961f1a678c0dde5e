/* What send() and send_many() share. */
#ifndef MP_PY_PRODUCER_H
#define MP_PY_PRODUCER_H

#include "py_record.h"

typedef struct {
    PyObject_HEAD
    PyObject *attachment; /* Attachment or None */
    PyObject *partitioner; /* the user's own, or None */
    long long max_block_ns;
    int closed;
} Producer;

PyObject *producer_send_many(Producer *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames);

/* Positional and keyword arguments into slots[6]; missing ones are None. slots[0], the topic, is a
 * new reference to an exact str: a subclass may hash and compare in Python. */
int parse_any_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                        PyObject **slots, PyObject **names, const char *method);
static inline int parse_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                                  PyObject **slots, PyObject **names, const char *method) {
    if (kwnames || nargs < 1 || nargs > 3 || !PyUnicode_CheckExact(args[0]))
        return parse_any_arguments(args, nargs, kwnames, slots, names, method);
    slots[0] = Py_NewRef(args[0]);
    slots[1] = nargs > 1 ? args[1] : Py_None;
    slots[2] = nargs > 2 ? args[2] : Py_None;
    slots[3] = slots[4] = slots[5] = Py_None;
    return 0;
}

void raise_closed(void);
/* 0, or -1 with ClosedError. */
static inline int producer_check_open(const Producer *self) {
    if (self->closed) raise_closed();
    return self->closed ? -1 : 0;
}
/* A usable attachment (new reference); attaches, within the deadline, where there is none. */
Attachment *producer_attach_anew(Producer *self, int64_t *deadline);
static inline Attachment *producer_attach(Producer *self, int64_t *deadline) {
    PyObject *current = self->attachment;
    if (current && Py_TYPE(current) == &Attachment_Type && attachment_usable((Attachment *)current))
        return (Attachment *)Py_NewRef(current);
    return producer_attach_anew(self, deadline);
}
/* The topic's entry with the wanted partition known, borrowed. NULL with an exception, or without
 * one: the attachment has ended, attach again. */
TopicRef *producer_find_topic(Producer *self, Attachment *a, PyObject *topic, int64_t partition,
                              int64_t *deadline);
static inline TopicRef *producer_topic(Producer *self, Attachment *a, PyObject *topic,
                                       int64_t partition, int64_t *deadline) {
    TopicRef *ref = a->last_topic;
    if (topic == a->last_name &&
        partition < (int64_t)atomic_load_explicit(&ref->topic->partition_count,
                                                  memory_order_acquire))
        return ref;
    return producer_find_topic(self, a, topic, partition, deadline);
}
/* The partition that this process' unkeyed records go to, and moves it on when its batch is full. */
uint32_t sticky_partition(Attachment *a, const TopicRef *ref, uint32_t count);
void move_sticky(Attachment *a, TopicRef *ref, uint32_t count, uint32_t partition);
/* After each append of unkeyed records: whether they go on to another partition. */
#define CONTENTION_TURNS 64u
void follow_contention(Attachment *a, TopicRef *ref, uint32_t count, const struct mp_place *place);
static inline void sticky_appended(Attachment *a, TopicRef *ref, uint32_t count, uint32_t partition,
                                   const struct mp_place *place) {
    ref->lost += place->lost;
    if (mp_filled_batch(place))
        move_sticky(a, ref, count, partition);
    else if (++ref->turns == CONTENTION_TURNS || ref->own)
        follow_contention(a, ref, count, place);
}

/* What a partitioner of the user is shown of a topic: lists of all its partitions, and of those that
 * take records now. */
struct choice {
    PyObject *all, *available;
    uint32_t count;
};
/* 0, or -1 with an exception; undone by choice_end. */
int choice_begin(struct choice *choice, Attachment *a, const TopicRef *ref);
void choice_end(struct choice *choice);
/* Where it puts a record; -1 with its exception, or with one that says what it returned. It may do
 * anything: the attachment may have ended afterwards. */
int64_t choice_ask(const struct choice *choice, Producer *self, PyObject *topic,
                   const struct mp_record *record);

/* The batch of records just appended; attachment_reserve() was called before. */
static inline Pending *batch_of(Attachment *a, PyObject *topic, uint32_t partition,
                                const struct mp_place *place) {
    Pending *batch = a->by_slot[place->slot];
    if (batch && batch->batch_id == place->batch_id) return batch;
    return attachment_track(a, place->batch_id, place->slot, topic, (int32_t)partition);
}
/* After an append that was not done: 0: try again, -1: an exception says why not. */
int producer_wait(Producer *self, Attachment *a, const struct mp_record *record,
                  enum mp_status status, uint32_t units, int64_t *deadline);

/* The bytes of a request with this one record, at most. */
static inline uint64_t request_bound(const struct mp_record *record) {
    return mp_record_bound(record) + 61;
}
void raise_too_large(uint64_t bound, uint64_t limit, const char *key);
/* Whether the exception that is set says of a record that it is not written: an outcome of it. */
int is_not_written(void);
/* Counts records whose outcome is the exception that is set, where this process is attached. */
void count_failed(PyObject *attachment, uint64_t records);

static inline int64_t wall_clock_ms(void) {
    struct timespec now; /* coarse: a few ms behind at most, and a tenth of the cost */
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

#endif
