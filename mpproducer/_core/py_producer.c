/* ProducerBase: send() and send_many() without a Python frame on the way to shared memory. */
#include "py_record.h"

#include "structmember.h"

typedef struct {
    PyObject_HEAD
    PyObject *attachment; /* Attachment or None */
    long long max_block_ns;
    int closed;
} Producer;

static void release_record(struct request *r) {
    for (int i = 0; i < r->view_count; i++) PyBuffer_Release(&r->views[i]);
    if (r->headers && r->headers != r->headers_stack) PyMem_Free(r->headers);
    r->view_count = 0;
    r->headers = NULL;
}

static int take_bytes(struct request *r, PyObject *object, const char *what, const uint8_t **data,
                      int32_t *length) {
    Py_ssize_t size;
    if (PyBytes_Check(object)) {
        *data = (const uint8_t *)PyBytes_AS_STRING(object);
        size = PyBytes_GET_SIZE(object);
    } else if (object == Py_None) {
        *data = NULL;
        *length = -1;
        return 0;
    } else if (PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError,
                     "%s must be bytes-like or None, got str; encode it first: %s.encode()", what,
                     what);
        return -1;
    } else {
        Py_buffer *view = &r->views[r->view_count];
        if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_BufferError))
                PyErr_Format(PyExc_TypeError, "%s must be bytes-like or None, got %.100s", what,
                             Py_TYPE(object)->tp_name);
            else
                PyErr_Format(PyExc_TypeError,
                             "%s must be a contiguous buffer; copy it first: bytes(%s)", what, what);
            return -1;
        }
        r->view_count++;
        *data = view->buf;
        size = view->len;
    }
    if (size > INT32_MAX / 2) {
        r->too_large = (size_t)size;
        size = 0;
    }
    *length = (int32_t)size;
    return 0;
}

static PyObject *send_names[6];

/* Positional and keyword arguments into slots[6]; missing ones stay None. slots[0], the topic, is a
 * new reference to an exact str: a subclass may hash and compare in Python. */
static int parse(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject **slots,
                 PyObject **names, const char *method) {
    if (nargs > 6) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most 6 arguments", method);
        return -1;
    }
    for (Py_ssize_t i = 0; i < 6; i++) slots[i] = i < nargs ? args[i] : Py_None;
    unsigned given = (1u << nargs) - 1; /* one bit per argument */
    const Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        int at = 0;
        while (at < 6 && name != names[at]) at++;
        if (at == 6)
            for (at = 0; at < 6 && PyUnicode_Compare(name, names[at]) != 0;) at++;
        if (at == 6 || given >> at & 1) {
            PyErr_Format(PyExc_TypeError,
                         at == 6 ? "%s() got an unexpected keyword argument '%U'"
                                 : "%s() got multiple values for argument '%U'",
                         method, name);
            return -1;
        }
        slots[at] = args[nargs + i];
        given |= 1u << at;
    }
    if (!PyUnicode_Check(slots[0])) {
        PyErr_Format(PyExc_TypeError, "%s(): topic must be a str%s%.100s", method,
                     given & 1 ? ", got " : " and is required",
                     given & 1 ? Py_TYPE(slots[0])->tp_name : "");
        return -1;
    }
    slots[0] = PyUnicode_CheckExact(slots[0]) ? Py_NewRef(slots[0])
                                              : PyUnicode_FromObject(slots[0]);
    return slots[0] ? 0 : -1;
}

/* If the set exception is of the NotWritten family, turns it into a failed future (as Java's
 * producer does with its ApiException family); otherwise leaves it set and returns NULL. */
static PyObject *as_failed_future(PyObject *topic) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *errors = PyImport_ImportModule("mpproducer.errors");
    PyObject *family = errors ? PyObject_GetAttrString(errors, "NotWritten") : NULL;
    const int ours = family ? PyErr_GivenExceptionMatches(type, family) : 0;
    Py_XDECREF(errors);
    Py_XDECREF(family);
    PyErr_Clear();
    if (!ours) {
        PyErr_Restore(type, value, trace);
        return NULL;
    }
    PyException_SetTraceback(value, Py_None); /* the future is not to keep frames alive */
    PyObject *future = future_failed(topic, value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return future;
}

static PyObject *failed(PyObject *topic, const char *error, PyObject *message) {
    if (!message) return NULL;
    PyObject *exception = error_new(error, message);
    Py_DECREF(message);
    if (!exception) return NULL;
    PyObject *future = future_failed(topic, exception);
    Py_DECREF(exception);
    return future;
}

static PyObject *too_large(const struct request *r, uint64_t bound, uint64_t limit,
                           const char *key) {
    return failed(r->topic, "RecordTooLarge",
                  PyUnicode_FromFormat("the record takes up to %llu bytes, more than %s=%llu",
                                       (unsigned long long)bound, key, (unsigned long long)limit));
}

static void start_clock(const Producer *self, int64_t *deadline) {
    if (*deadline) return;
    const int64_t now = mp_now_ns();
    *deadline = self->max_block_ns < INT64_MAX - now ? now + self->max_block_ns : INT64_MAX;
}

/* A usable attachment (new reference); attaches, within the deadline, where there is none. */
static Attachment *attach(Producer *self, int64_t *deadline) {
    PyObject *current = self->attachment;
    if (current && Py_TYPE(current) == &Attachment_Type && attachment_usable((Attachment *)current))
        return (Attachment *)Py_NewRef(current);
    start_clock(self, deadline);
    PyObject *fresh = PyObject_CallMethod((PyObject *)self, "_attach", "L", (long long)*deadline);
    if (!fresh) return NULL;
    if (Py_TYPE(fresh) != &Attachment_Type) {
        Py_DECREF(fresh);
        PyErr_SetString(PyExc_TypeError, "_attach() must return an Attachment");
        return NULL;
    }
    PyObject *old = self->attachment;
    self->attachment = Py_NewRef(fresh);
    Py_XDECREF(old);
    return (Attachment *)fresh;
}

/* The topic's entry with the wanted partition known; NULL with an exception set. Borrowed. */
static TopicRef *ready_topic(Producer *self, Attachment *a, PyObject *topic, int64_t partition,
                             int64_t *deadline) {
    for (;;) {
        TopicRef *ref = attachment_topic(a, topic);
        if (!ref && PyErr_Occurred()) return NULL;
        if (ref && partition < (int64_t)atomic_load_explicit(&ref->topic->partition_count,
                                                             memory_order_acquire))
            return ref;
        start_clock(self, deadline);
        PyObject *done = PyObject_CallMethod((PyObject *)self, "_want_topic", "OOLL",
                                             (PyObject *)a, topic, (long long)partition,
                                             (long long)*deadline);
        if (!done) return NULL;
        Py_DECREF(done);
        if (!attachment_usable(a)) return NULL; /* without an exception: attach again */
    }
}

static uint32_t next_sticky(Attachment *a, const TopicRef *ref, uint32_t count, uint32_t current) {
    if (count == 1) return 0;
    for (int tries = 0; tries < 8; tries++) {
        const uint32_t pick = (uint32_t)(attachment_random(a) >> 33) % count;
        const uint32_t index = mp_topic_index(ref->topic, pick);
        if (pick != current &&
            atomic_load_explicit(&a->writer.region.available[index], memory_order_relaxed))
            return pick;
    }
    return (uint32_t)(attachment_random(a) >> 33) % count;
}

/* Partition of a record without an explicit one: key hash, or the host's sticky partition. */
static uint32_t choose(Attachment *a, const TopicRef *ref, const struct mp_record *record,
                       uint32_t count, int *sticky) {
    if (record->key_bytes >= 0 && !a->writer.region.ctl->ignore_keys)
        return (mp_murmur2(record->key, (size_t)record->key_bytes) & 0x7fffffffu) % count;
    *sticky = 1;
    mp_a64 *word = &a->writer.region.sticky[ref->index].partition;
    uint64_t shown = atomic_load_explicit(word, memory_order_relaxed);
    if (shown != 0 && shown <= count) return (uint32_t)shown - 1;
    const uint32_t pick = next_sticky(a, ref, count, UINT32_MAX);
    if (atomic_compare_exchange_strong_explicit(word, &shown, pick + 1, memory_order_relaxed,
                                                memory_order_relaxed))
        return pick;
    return shown != 0 && shown <= count ? (uint32_t)shown - 1 : pick;
}

/* KIP-794: unkeyed records move on when the sticky partition's batch is full, all workers at once. */
static void move_sticky(Attachment *a, const TopicRef *ref, uint32_t count, uint32_t partition) {
    uint64_t shown = partition + 1u;
    atomic_compare_exchange_strong_explicit(&a->writer.region.sticky[ref->index].partition, &shown,
                                            next_sticky(a, ref, count, partition) + 1u,
                                            memory_order_relaxed, memory_order_relaxed);
}

static inline Pending *batch_of(Attachment *a, PyObject *topic, uint32_t partition,
                                const struct mp_place *place) {
    Pending *batch = a->by_slot[place->slot];
    if (batch && batch->batch_id == place->batch_id) return batch;
    return attachment_track(a, place->batch_id, place->slot, topic, (int32_t)partition);
}

static PyObject *no_memory(Producer *self, Attachment *a, const struct request *r, uint32_t units,
                           int64_t *deadline, int *again) {
    const uint32_t slots = a->writer.region.slots;
    *again = 0;
    if (units > slots)
        return too_large(r, mp_record_bound(&r->record), (uint64_t)slots * MP_SLOT_BYTES,
                         "buffer_memory");
    start_clock(self, deadline);
    const int got = attachment_wait_memory(a, units, *deadline);
    if (got < 0) return NULL;
    *again = got != 0; /* 2: the attachment ended; the loop attaches again */
    if (got != 0) return NULL;
    a->buffer_full++;
    return failed(r->topic, "BufferFull",
                  PyUnicode_FromFormat("no room for the record within max_block_ms=%lld: "
                                       "buffer_memory=%llu is taken by undelivered records",
                                       self->max_block_ns / 1000000,
                                       (unsigned long long)slots * MP_SLOT_BYTES));
}

/* The sender has closed its region and ends: the next one is waited for, like memory. */
static PyObject *no_sender(Producer *self, Attachment *a, const struct request *r,
                           int64_t *deadline, int *again) {
    start_clock(self, deadline);
    const int ended = attachment_wait_end(a, *deadline);
    *again = ended > 0;
    if (ended != 0) return NULL;
    return failed(r->topic, "NotSent",
                  PyUnicode_FromFormat("the host's sender is shutting down, and did not end within "
                                       "max_block_ms=%lld",
                                       self->max_block_ns / 1000000));
}

/* The whole of one send after its arguments were checked. Returns a future, or NULL. The future is
 * made before the record is committed, so that nothing can fail after it; *spare keeps one that was
 * not used. */
static PyObject *send_record(Producer *self, struct request *r, int64_t explicit_partition,
                             Future **spare, int64_t *deadline) {
    for (;;) {
        if (self->closed) {
            PyObject *text = PyUnicode_FromString("this producer is closed; make a new one");
            PyObject *error = text ? error_new("ClosedError", text) : NULL;
            Py_XDECREF(text);
            if (error) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
            Py_XDECREF(error);
            return NULL;
        }
        Attachment *a = attach(self, deadline);
        if (!a) return as_failed_future(r->topic);
        const TopicRef *ref = ready_topic(self, a, r->topic, explicit_partition, deadline);
        if (!ref) {
            Py_DECREF((PyObject *)a);
            if (!PyErr_Occurred()) continue;
            return as_failed_future(r->topic);
        }
        const uint64_t bound = mp_record_bound(&r->record) + 61 + r->too_large;
        if (bound > a->writer.region.ctl->max_request_size) {
            PyObject *future =
                too_large(r, bound, a->writer.region.ctl->max_request_size, "max_request_size");
            Py_DECREF((PyObject *)a);
            return future;
        }
        const uint32_t count =
            atomic_load_explicit(&ref->topic->partition_count, memory_order_acquire);
        int sticky = 0;
        const uint32_t partition = explicit_partition >= 0
                                       ? (uint32_t)explicit_partition
                                       : choose(a, ref, &r->record, count, &sticky);
        if (attachment_reserve(a) < 0 || (!*spare && !(*spare = future_new()))) {
            Py_DECREF((PyObject *)a);
            return NULL;
        }
        struct mp_place place;
        const enum mp_status status =
            mp_append(&a->writer, mp_topic_index(ref->topic, partition), &r->record, &place);
        if (status == MP_DONE) {
            Future *future = *spare;
            *spare = NULL;
            const uint32_t before = a->pending;
            future->batch = pending_keep(batch_of(a, r->topic, partition, &place));
            future->index = place.index;
            future->timestamp_ms = r->record.timestamp_ms;
            a->records++;
            a->bytes += (uint64_t)bound - 61;
            if (place.sealed_count > 0) {
                if (sticky) move_sticky(a, ref, count, partition);
                attachment_compress(a, &place);
            }
            /* D13: a worker that never looks drains its pipe now and then, per batch. */
            if (a->pending != before && before >= 8) attachment_drain(a);
            Py_DECREF((PyObject *)a);
            return (PyObject *)future;
        }
        if (place.sealed_count > 0) attachment_compress(a, &place);
        int again = 0;
        PyObject *future = NULL;
        if (status == MP_NO_MEMORY) {
            future = no_memory(self, a, r, place.units, deadline, &again);
        } else {
            future = no_sender(self, a, r, deadline, &again);
        }
        Py_DECREF((PyObject *)a);
        if (!again) return future;
    }
}

static inline int64_t wall_clock_ms(void) {
    struct timespec now; /* coarse: a few ms behind at most, and a tenth of the cost */
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int take_record(struct request *r, PyObject *value, PyObject *key, PyObject *headers,
                       PyObject *timestamp) {
    r->record.headers = NULL;
    r->record.headers_bytes = 0;
    r->headers = NULL;
    r->view_count = 0;
    r->too_large = 0;
    if (take_bytes(r, value, "value", &r->record.value, &r->record.value_bytes) < 0 ||
        take_bytes(r, key, "key", &r->record.key, &r->record.key_bytes) < 0 ||
        take_headers(r, headers) < 0 || take_timestamp(r, timestamp) < 0) {
        release_record(r);
        return -1;
    }
    return 0;
}

static PyObject *producer_send(Producer *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames) {
    PyObject *slot[6];
    struct request r;
    int64_t partition, deadline = 0;
    if (parse(args, nargs, kwnames, slot, send_names, "send") < 0) return NULL;
    r.topic = slot[0];
    PyObject *future = NULL;
    if (take_partition(slot[4], &partition) == 0 &&
        take_record(&r, slot[1], slot[2], slot[3], slot[5]) == 0) {
        if (!r.has_timestamp) r.record.timestamp_ms = wall_clock_ms();
        Future *spare = NULL;
        future = send_record(self, &r, partition, &spare, &deadline);
        release_record(&r);
        Py_XDECREF((PyObject *)spare);
    }
    Py_DECREF(r.topic);
    return future;
}

static PyObject *many_names[6];

/* A tuple of `count` items (any length when count < 0), or NULL for None. A tuple, because the GIL
 * may be given away while records are appended: what a list holds then may be gone afterwards. */
static int take_column(PyObject *object, const char *what, Py_ssize_t count, PyObject **column) {
    *column = NULL;
    if (object == Py_None) return 0;
    if (PyUnicode_Check(object) || PyBytes_Check(object) || PyAnySet_Check(object) ||
        PyDict_Check(object) || !(PySequence_Check(object) || Py_TYPE(object)->tp_iter)) {
        PyErr_Format(PyExc_TypeError, "%s must be a sequence of records' parts, got %.100s", what,
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    *column = PySequence_Tuple(object);
    if (!*column) return -1;
    const Py_ssize_t size = PyTuple_GET_SIZE(*column);
    if (count >= 0 && size != count) {
        PyErr_Format(PyExc_ValueError, "%s has %zd items, values has %zd", what, size, count);
        Py_CLEAR(*column);
        return -1;
    }
    return 0;
}

static inline PyObject *item(PyObject *column, Py_ssize_t i) {
    return column ? PyTuple_GET_ITEM(column, i) : Py_None;
}

/* A run is [future of its first record, count]: records that follow each other in one batch. */
static int add_run(PyObject *runs, PyObject *future, Py_ssize_t count) {
    PyObject *run = Py_BuildValue("(On)", future, count);
    const int bad = !run || PyList_Append(runs, run) < 0;
    Py_XDECREF(run);
    return bad ? -1 : 0;
}

struct columns {
    PyObject *values, *keys, *headers, *timestamps;
};

/* An error amid many records (closed, or no sender any more): those that are appended keep their
 * futures, so the error becomes the outcome of the rest. 0, or -1 with the exception still set. */
static int fail_rest(PyObject *runs, PyObject *topic, Py_ssize_t count) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject *future = future_failed(topic, value);
    const int bad = !future || add_run(runs, future, count) < 0;
    Py_XDECREF(future);
    if (bad) PyErr_Clear();
    if (bad) {
        PyErr_Restore(type, value, trace);
        return -1;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return 0;
}

static PyObject *send_columns(Producer *self, PyObject *topic, const struct columns *c,
                              int64_t partition) {
    const Py_ssize_t count = PyTuple_GET_SIZE(c->values);
    Future *spare = NULL;
    int64_t deadline = 0;
    const int64_t now = wall_clock_ms();
    PyObject *runs = PyList_New(0);
    Future *first = NULL;
    Py_ssize_t length = 0, failed_from = count;
    for (Py_ssize_t i = 0; runs && i < count; i++) {
        struct request r;
        if (take_record(&r, item(c->values, i), item(c->keys, i), item(c->headers, i),
                        item(c->timestamps, i)) < 0)
            goto failed;
        r.topic = topic;
        if (!r.has_timestamp) r.record.timestamp_ms = now;
        Future *future = (Future *)send_record(self, &r, partition, &spare, &deadline);
        release_record(&r);
        if (!future) {
            if (i == 0) goto failed;
            failed_from = i;
            break;
        }
        if (first && future->batch == first->batch &&
            future->index == first->index + (uint32_t)length && !future->batch->error) {
            length++;
            if (!spare && Py_REFCNT(future) == 1) {
                pending_drop(future->batch);
                future->batch = NULL;
                spare = future;
            } else {
                Py_DECREF((PyObject *)future);
            }
            continue;
        }
        if (first && add_run(runs, (PyObject *)first, length) < 0) {
            Py_DECREF((PyObject *)future);
            goto failed;
        }
        Py_XDECREF((PyObject *)first);
        first = future;
        length = 1;
    }
    if (!runs) goto failed;
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    if (first && add_run(runs, (PyObject *)first, length) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(trace);
        goto failed;
    }
    PyErr_Restore(type, error, trace);
    if (failed_from < count && fail_rest(runs, topic, count - failed_from) < 0) goto failed;
    Py_XDECREF((PyObject *)spare);
    Py_XDECREF((PyObject *)first);
    PyObject *result = PyObject_CallOneArg(mp_make_batch_future, runs);
    Py_DECREF(runs);
    return result;
failed:
    Py_XDECREF((PyObject *)spare);
    Py_XDECREF((PyObject *)first);
    Py_XDECREF(runs);
    return NULL;
}

/* Bad input is found before anything is appended. */
static int check_columns(const struct columns *c) {
    const Py_ssize_t count = PyTuple_GET_SIZE(c->values);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *value = item(c->values, i), *key = item(c->keys, i);
        if (PyBytes_CheckExact(value) && (key == Py_None || PyBytes_CheckExact(key)) &&
            !c->headers && !c->timestamps)
            continue;
        struct request r;
        if (take_record(&r, value, key, item(c->headers, i), item(c->timestamps, i)) < 0) {
            PyObject *type, *error, *trace;
            PyErr_Fetch(&type, &error, &trace);
            PyErr_Format(type, "record %zd: %S; nothing was sent", i, error);
            Py_XDECREF(type);
            Py_XDECREF(error);
            Py_XDECREF(trace);
            return -1;
        }
        release_record(&r);
    }
    return 0;
}

static PyObject *producer_send_many(Producer *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames) {
    PyObject *slot[6], *result = NULL;
    struct columns c = {NULL, NULL, NULL, NULL};
    int64_t partition;
    if (parse(args, nargs, kwnames, slot, many_names, "send_many") < 0) return NULL;
    if (slot[1] == Py_None)
        PyErr_SetString(PyExc_TypeError, "values must be a sequence of bytes-like objects");
    else if (take_partition(slot[4], &partition) == 0 &&
             take_column(slot[1], "values", -1, &c.values) == 0) {
        const Py_ssize_t count = PyTuple_GET_SIZE(c.values);
        if (take_column(slot[2], "keys", count, &c.keys) == 0 &&
            take_column(slot[3], "headers", count, &c.headers) == 0 &&
            take_column(slot[5], "timestamps_ms", count, &c.timestamps) == 0 &&
            check_columns(&c) == 0)
            result = send_columns(self, slot[0], &c, partition);
    }
    Py_XDECREF(c.values);
    Py_XDECREF(c.keys);
    Py_XDECREF(c.headers);
    Py_XDECREF(c.timestamps);
    Py_DECREF(slot[0]);
    return result;
}

static PyObject *producer_tp_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                                 PyObject *Py_UNUSED(kwargs)) {
    static const char *const names[] = {"topic",   "value",     "key",
                                        "headers", "partition", "timestamp_ms"};
    static const char *const many[] = {"topic",   "values",    "keys",
                                       "headers", "partition", "timestamps_ms"};
    for (int i = 0; i < 6; i++) {
        if (!send_names[i] && !(send_names[i] = PyUnicode_InternFromString(names[i]))) return NULL;
        if (!many_names[i] && !(many_names[i] = PyUnicode_InternFromString(many[i]))) return NULL;
    }
    Producer *self = (Producer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->attachment = Py_NewRef(Py_None);
    self->max_block_ns = INT64_C(60000000000);
    return (PyObject *)self;
}

static void producer_dealloc(Producer *self) {
    Py_XDECREF(self->attachment);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef producer_methods[] = {
    {"send", (PyCFunction)(void *)producer_send, METH_FASTCALL | METH_KEYWORDS,
     "send(topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None)\n--\n\n"
     "Append one record and return its DeliveryFuture."},
    {"send_many", (PyCFunction)(void *)producer_send_many, METH_FASTCALL | METH_KEYWORDS,
     "send_many(topic, values, keys=None, headers=None, partition=None, timestamps_ms=None)\n--\n\n"
     "Append many records and return one BatchFuture."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef producer_members[] = {
    {"_attachment", T_OBJECT, offsetof(Producer, attachment), 0, NULL},
    {"_max_block_ns", T_LONGLONG, offsetof(Producer, max_block_ns), 0, NULL},
    {"_closed", T_INT, offsetof(Producer, closed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject Producer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.ProducerBase",
    .tp_basicsize = sizeof(Producer),
    .tp_new = producer_tp_new,
    .tp_dealloc = (destructor)producer_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_methods = producer_methods,
    .tp_members = producer_members,
};
