/* ProducerBase, and its send(): no Python frame on the way to shared memory. */
#include "py_producer.h"

#include "structmember.h"

static PyObject *send_names[6];

int parse_any_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                        PyObject **slots, PyObject **names, const char *method) {
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

int is_not_written(void) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject *errors = PyImport_ImportModule("mpproducer.errors");
    PyObject *family = errors ? PyObject_GetAttrString(errors, "NotWritten") : NULL;
    const int ours = family && type ? PyErr_GivenExceptionMatches(type, family) : 0;
    Py_XDECREF(errors);
    Py_XDECREF(family);
    PyErr_Restore(type, value, trace);
    return ours;
}

void count_failed(PyObject *attachment, uint64_t records) {
    static const struct { const char *name; enum mp_tally_word word; } causes[] = {
        {"BufferFull", MP_TALLY_BUFFER_FULL},        {"MetadataTimeout", MP_TALLY_NO_METADATA},
        {"RecordTooLarge", MP_TALLY_TOO_LARGE},      {"InvalidTopic", MP_TALLY_INVALID_TOPIC},
        {"AuthorizationFailed", MP_TALLY_AUTHORIZATION},
    };
    if (!attachment || Py_TYPE(attachment) != &Attachment_Type) return;
    const Attachment *a = (const Attachment *)attachment;
    if (!attachment_usable(a)) return; /* and with it, the row of this process */
    PyObject *type = PyErr_Occurred();
    const char *name = type && PyType_Check(type) ? ((PyTypeObject *)type)->tp_name : "";
    enum mp_tally_word word = MP_TALLY_NOT_SENT;
    for (size_t i = 0; i < sizeof causes / sizeof *causes; i++)
        if (strcmp(name, causes[i].name) == 0) word = causes[i].word;
    mp_tally(&a->writer, word, records);
}

/* If the set exception is an outcome of the record, turns it into a failed future (as Java's
 * producer does with its ApiException family); otherwise leaves it set and returns NULL. */
static PyObject *as_failed_future(const Producer *self, PyObject *topic) {
    if (!is_not_written()) return NULL;
    count_failed(self->attachment, 1);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyException_SetTraceback(value, Py_None); /* the future is not to keep frames alive */
    PyObject *future = future_failed(topic, value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return future;
}

static void raise_error(const char *error, PyObject *message) {
    PyObject *exception = message ? error_new(error, message) : NULL;
    Py_XDECREF(message);
    if (exception) PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
}

void raise_too_large(uint64_t bound, uint64_t limit, const char *key) {
    raise_error("RecordTooLarge",
          PyUnicode_FromFormat("the record takes up to %llu bytes, more than %s=%llu",
                               (unsigned long long)bound, key, (unsigned long long)limit));
}

void raise_closed(void) {
    raise_error("ClosedError", PyUnicode_FromString("this producer is closed; make a new one"));
}

static void start_clock(const Producer *self, int64_t *deadline) {
    if (*deadline) return;
    const int64_t now = mp_now_ns();
    *deadline = self->max_block_ns < INT64_MAX - now ? now + self->max_block_ns : INT64_MAX;
}

Attachment *producer_attach_anew(Producer *self, int64_t *deadline) {
    start_clock(self, deadline);
    for (;;) {
        PyObject *fresh =
            PyObject_CallMethod((PyObject *)self, "_attach", "L", (long long)*deadline);
        if (!fresh) return NULL;
        if (Py_TYPE(fresh) != &Attachment_Type) {
            Py_DECREF(fresh);
            PyErr_SetString(PyExc_TypeError, "_attach() must return an Attachment");
            return NULL;
        }
        PyObject *old = self->attachment;
        self->attachment = Py_NewRef(fresh);
        Py_XDECREF(old);
        if (attachment_usable((Attachment *)fresh)) return (Attachment *)fresh;
        /* Another thread detached it, or its sender died, on the way here: nothing of it may be
         * touched. */
        Py_DECREF(fresh);
        if (producer_check_open(self) < 0) return NULL;
        if (mp_now_ns() >= *deadline) {
            raise_error("SenderStartFailed",
                        PyUnicode_FromString("each attachment to the host's sender ended at once"));
            return NULL;
        }
    }
}

TopicRef *producer_find_topic(Producer *self, Attachment *a, PyObject *topic, int64_t partition,
                              int64_t *deadline) {
    for (;;) {
        TopicRef *ref = attachment_topic(a, topic);
        if (!ref && PyErr_Occurred()) return NULL;
        if (ref && partition < (int64_t)atomic_load_explicit(&ref->topic->partition_count,
                                                             memory_order_acquire))
            return ref;
        if (producer_check_open(self) < 0) return NULL; /* another thread ended the wait so */
        start_clock(self, deadline);
        PyObject *done = PyObject_CallMethod((PyObject *)self, "_want_topic", "OOLL",
                                             (PyObject *)a, topic, (long long)partition,
                                             (long long)*deadline);
        if (!done) return NULL;
        Py_DECREF(done);
        if (!attachment_usable(a)) return NULL; /* without an exception: attach again */
    }
}

/* KIP-794: where unkeyed records go next. Each partition that takes them is drawn by how much less
 * waits there than where most waits; all alike where none takes them. */
static uint32_t next_sticky(Attachment *a, const TopicRef *ref, uint32_t count, uint32_t current) {
    const mp_a8 *room = a->writer.region.available;
    uint64_t most = 0, able = 0, sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t load = atomic_load_explicit(&room[mp_topic_index(ref->topic, i)],
                                                   memory_order_relaxed);
        if (load == 0 || i == current) continue;
        able++;
        sum += load;
        if (load > most) most = load;
    }
    const uint64_t drawn = attachment_random(a) >> 33;
    if (able == 0) {
        if (current < count &&
            atomic_load_explicit(&room[mp_topic_index(ref->topic, current)], memory_order_relaxed))
            return current;
        return (uint32_t)(drawn % count);
    }
    uint64_t left = drawn % (able * (most + 1) - sum);
    uint32_t last = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t load = atomic_load_explicit(&room[mp_topic_index(ref->topic, i)],
                                                   memory_order_relaxed);
        if (load == 0 || i == current) continue;
        last = i;
        const uint64_t weight = load < most ? most + 1 - load : 1; /* it may have grown meanwhile */
        if (left < weight) return i;
        left -= weight;
    }
    return last;
}

uint32_t sticky_partition(Attachment *a, const TopicRef *ref, uint32_t count) {
    if (ref->own) return ref->own - 1;
    mp_a64 *word = &a->writer.region.sticky[ref->index].partition;
    uint64_t shown = atomic_load_explicit(word, memory_order_relaxed);
    if (shown != 0 && shown <= count) return (uint32_t)shown - 1;
    const uint32_t pick = next_sticky(a, ref, count, UINT32_MAX);
    if (atomic_compare_exchange_strong_explicit(word, &shown, pick + 1, memory_order_relaxed,
                                                memory_order_relaxed))
        return pick;
    return shown != 0 && shown <= count ? (uint32_t)shown - 1 : pick;
}

/* Partition of a record without an explicit one: key hash, or the host's sticky partition. */
static uint32_t choose(Attachment *a, const TopicRef *ref, const struct mp_record *record,
                       uint32_t count, int *sticky) {
    if (record->key_bytes >= 0 && !a->writer.region.ctl->ignore_keys)
        return (mp_murmur2(record->key, (size_t)record->key_bytes) & 0x7fffffffu) % count;
    *sticky = 1;
    return sticky_partition(a, ref, count);
}

/* The first partition from `from` on that has a leader, round the topic. */
static uint32_t available_from(const Attachment *a, const TopicRef *ref, uint32_t count,
                               uint32_t from) {
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t index = mp_topic_index(ref->topic, (from + i) % count);
        if (atomic_load_explicit(&a->writer.region.available[index], memory_order_relaxed))
            return (from + i) % count;
    }
    return from % count;
}

/* Of CONTENTION_TURNS appends. Who loses so many races is one of several that append millions a
 * second: batches fill within a few ms then, whoever else adds to them. */
#define CONTENDED 8u

/* A worker that keeps losing races for the batch of the shared partition goes to one of its own,
 * another one for each worker as far as there are, and goes round the topic from there, batch by
 * batch. Two that meet on the way part with the batch, because only the one that filled it moves
 * on. When a batch of its own was sealed before it was full, the rate has fallen, and the worker
 * comes back, so that all fill the same batch again. */
void follow_contention(Attachment *a, TopicRef *ref, uint32_t count, const struct mp_place *place) {
    if (!ref->own) {
        if (ref->lost >= CONTENDED && count > 1) {
            ref->own = available_from(a, ref, count, a->writer.owner) + 1;
            ref->entered = 0;
            a->spreads++;
        }
        ref->turns = ref->lost = 0;
        return;
    }
    if (ref->entered && place->index == 0 && place->sealed_count == 0 && !place->found_full) {
        ref->own = ref->turns = ref->lost = 0;
        a->returns++;
    }
    ref->entered = 1;
}

/* KIP-794: unkeyed records move on when the sticky partition's batch is full, all workers at once. */
void move_sticky(Attachment *a, TopicRef *ref, uint32_t count, uint32_t partition) {
    if (ref->own) {
        ref->own = available_from(a, ref, count, ref->own) + 1;
        ref->entered = 0;
        return;
    }
    uint64_t shown = partition + 1u;
    atomic_compare_exchange_strong_explicit(&a->writer.region.sticky[ref->index].partition, &shown,
                                            next_sticky(a, ref, count, partition) + 1u,
                                            memory_order_relaxed, memory_order_relaxed);
}

int producer_wait(Producer *self, Attachment *a, const struct mp_record *record,
                  enum mp_status status, uint32_t units, int64_t *deadline) {
    /* The compressor, called after the append, let other threads run: one may have detached. */
    if (!attachment_usable(a)) return 0;
    if (status == MP_FULL) {
        if (self->closed) mp_drop_stash(&a->writer); /* the caller appends no more */
        return 0;
    }
    const uint64_t memory = (uint64_t)a->writer.region.slots * MP_SLOT_BYTES;
    if (status == MP_NO_MEMORY && units > a->writer.region.slots) {
        raise_too_large(mp_record_bound(record), memory, "buffer_memory");
        return -1;
    }
    start_clock(self, deadline);
    if (status == MP_NO_MEMORY) {
        const int got = attachment_wait_memory(a, units, *deadline, &self->closed);
        if (got == 1 && self->closed && attachment_usable(a))
            mp_drop_stash(&a->writer); /* the caller appends no more */
        if (got != 0) return got < 0 ? -1 : 0; /* 2: the attachment ended, the caller attaches */
        a->buffer_full++;
        raise_error("BufferFull",
              PyUnicode_FromFormat("no room for the record within max_block_ms=%lld: "
                                   "buffer_memory=%llu is taken by undelivered records",
                                   self->max_block_ns / 1000000, (unsigned long long)memory));
        return -1;
    }
    /* The sender has closed its region and ends: the next one is waited for, like memory. */
    const int ended = attachment_wait_end(a, *deadline);
    if (ended != 0) return ended < 0 ? -1 : 0;
    raise_error("NotSent", PyUnicode_FromFormat("the host's sender is shutting down, and did not end "
                                          "within max_block_ms=%lld",
                                          self->max_block_ns / 1000000));
    return -1;
}

/* The whole of one send after its arguments were checked. Returns a future, or NULL. The future is
 * made before the record is committed, so that nothing can fail after it; *spare keeps one that was
 * not used. */
static PyObject *send_record(Producer *self, struct request *r, int64_t explicit_partition,
                             Future **spare, int64_t *deadline) {
    for (;;) {
        if (producer_check_open(self) < 0) return NULL;
        Attachment *a = producer_attach(self, deadline);
        if (!a) return as_failed_future(self, r->topic);
        TopicRef *ref = producer_topic(self, a, r->topic, explicit_partition, deadline);
        if (!ref) {
            Py_DECREF((PyObject *)a);
            if (!PyErr_Occurred()) continue;
            return as_failed_future(self, r->topic);
        }
        const uint64_t bound = request_bound(&r->record) + r->too_large;
        if (bound > a->writer.region.ctl->max_request_size) {
            raise_too_large(bound, a->writer.region.ctl->max_request_size, "max_request_size");
            Py_DECREF((PyObject *)a);
            return as_failed_future(self, r->topic);
        }
        const uint32_t count =
            atomic_load_explicit(&ref->topic->partition_count, memory_order_acquire);
        if (explicit_partition < 0 && self->partitioner != Py_None) {
            struct choice choice;
            if (choice_begin(&choice, a, ref) == 0) {
                explicit_partition = choice_ask(&choice, self, r->topic, &r->record);
                choice_end(&choice);
            }
            Py_DECREF((PyObject *)a);
            if (explicit_partition < 0) return NULL;
            continue;
        }
        int sticky = 0;
        const uint32_t partition = explicit_partition >= 0
                                       ? (uint32_t)explicit_partition
                                       : choose(a, ref, &r->record, count, &sticky);
        if (attachment_reserve(a) < 0 || (!*spare && !(*spare = future_new()))) {
            Py_DECREF((PyObject *)a);
            return NULL;
        }
        struct mp_place place;
        const enum mp_status status = mp_append(
            &a->writer, mp_topic_index(ref->topic, partition), &r->record, sticky, &place);
        if (status == MP_DONE) {
            Future *future = *spare;
            *spare = NULL;
            const uint32_t before = a->pending;
            future->batch = pending_keep(batch_of(a, r->topic, partition, &place));
            future->index = place.index;
            future->timestamp_ms = r->record.timestamp_ms;
            a->records++;
            a->bytes += place.bytes;
            if (sticky) sticky_appended(a, ref, count, partition, &place);
            if (place.sealed_count > 0) attachment_compress(a, &place);
            if (a->pending != before) attachment_look(a);
            Py_DECREF((PyObject *)a);
            return (PyObject *)future;
        }
        if (status == MP_FULL) move_sticky(a, ref, count, partition);
        if (place.sealed_count > 0) attachment_compress(a, &place);
        const int again = producer_wait(self, a, &r->record, status, place.units, deadline);
        Py_DECREF((PyObject *)a);
        if (again < 0) return as_failed_future(self, r->topic);
    }
}

static PyObject *producer_send(Producer *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames) {
    PyObject *slot[6];
    struct request r;
    int64_t partition, deadline = 0;
    if (parse_arguments(args, nargs, kwnames, slot, send_names, "send") < 0) return NULL;
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

static PyObject *producer_tp_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                                 PyObject *Py_UNUSED(kwargs)) {
    static const char *const names[] = {"topic",   "value",     "key",
                                        "headers", "partition", "timestamp_ms"};
    for (int i = 0; i < 6; i++)
        if (!send_names[i] && !(send_names[i] = PyUnicode_InternFromString(names[i]))) return NULL;
    Producer *self = (Producer *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->attachment = Py_NewRef(Py_None);
    self->partitioner = Py_NewRef(Py_None);
    self->max_block_ns = INT64_C(60000000000);
    return (PyObject *)self;
}

/* A partitioner may hold its producer: a method of the object that has both. */
static int producer_traverse(Producer *self, visitproc visit, void *arg) {
    Py_VISIT(self->partitioner);
    return 0;
}

static int producer_clear(Producer *self) {
    Py_XSETREF(self->partitioner, Py_NewRef(Py_None)); /* send() may still be called, and asks it */
    return 0;
}

static void producer_dealloc(Producer *self) {
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->attachment);
    Py_XDECREF(self->partitioner);
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
    {"_partitioner", T_OBJECT, offsetof(Producer, partitioner), 0, NULL},
    {"_max_block_ns", T_LONGLONG, offsetof(Producer, max_block_ns), 0, NULL},
    {"_closed", T_INT, offsetof(Producer, closed), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject Producer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.ProducerBase",
    .tp_basicsize = sizeof(Producer),
    .tp_new = producer_tp_new,
    .tp_dealloc = (destructor)producer_dealloc,
    .tp_traverse = (traverseproc)producer_traverse,
    .tp_clear = (inquiry)producer_clear,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_methods = producer_methods,
    .tp_members = producer_members,
};
