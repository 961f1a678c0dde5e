/* Metrics: counted in by the sender's one thread, a call per batch or request; and read by all. */
#include "native.h"
#include "orders.h"

#define NODE_BIAS (INT64_C(1) << 32)
#define SAMPLE_TRIES 100

typedef struct {
    PyObject_HEAD
    PyObject *pool;        /* that maps the memory, or NULL: it is `own` */
    const int *open;       /* whether it still does */
    struct mp_region *region;
    struct mp_region own;
    struct mp_sample *live;
    uint32_t max_topics;
    uint32_t nodes;        /* rows in use */
} Metrics;

static const int always = 1;

static int take_memory(Metrics *self, uint32_t max_topics) {
    self->own.metrics = PyMem_Calloc(1, mp_metrics_bytes(max_topics));
    if (!self->own.metrics) {
        PyErr_NoMemory();
        return -1;
    }
    self->own.max_topics = max_topics;
    self->region = &self->own;
    self->open = &always;
    self->max_topics = max_topics;
    self->live = mp_sample_at(self->own.metrics, max_topics, 0);
    return 0;
}

static int metrics_init(Metrics *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"max_topics", NULL};
    unsigned max_topics;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "I", names, &max_topics)) return -1;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "metrics are initialised once");
        return -1;
    }
    return take_memory(self, max_topics);
}

PyObject *metrics_of_pool(PyObject *pool, const int *open, struct mp_region *region) {
    Metrics *self = (Metrics *)Metrics_Type.tp_alloc(&Metrics_Type, 0);
    if (!self) return NULL;
    self->pool = Py_NewRef(pool);
    self->open = open;
    self->region = region;
    self->max_topics = region->max_topics;
    self->live = mp_sample_at(region->metrics, region->max_topics, 0);
    while (self->nodes < MP_NODES && atomic_load_explicit(&self->live->node[self->nodes].id, RELAXED))
        self->nodes++;
    return (PyObject *)self;
}

static void metrics_dealloc(Metrics *self) {
    PyMem_Free(self->own.metrics);
    Py_XDECREF(self->pool);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* --- counting in */

/* `count` integers of a call; -1 with an exception. */
static int take(const Metrics *self, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t count,
                int64_t *values) {
    if (nargs != count) {
        PyErr_Format(PyExc_TypeError, "takes %zd arguments, got %zd", count, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        values[i] = PyLong_AsLongLong(args[i]);
        if (values[i] == -1 && PyErr_Occurred()) return -1;
    }
    if (self->open && *self->open) return 0;
    PyErr_SetString(PyExc_ValueError, "the pool of these metrics is closed");
    return -1;
}

static uint64_t us_of(int64_t ns) { return ns > 0 ? (uint64_t)ns / 1000 : 0; }

static struct mp_topic_metrics *topic_row(const Metrics *self, int64_t topic) {
    return topic >= 0 && topic < (int64_t)self->max_topics ? &self->live->topic[topic] : NULL;
}

static struct mp_node_metrics *node_row(const Metrics *self, int64_t row) {
    return row >= 0 && row < (int64_t)MP_NODES ? &self->live->node[row] : NULL;
}

/* drained(topic, records, wire_bytes, uncompressed_bytes, queue_ns): a batch goes into a request;
 * queue_ns < 0: again. */
static PyObject *metrics_drained(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[5];
    if (take(self, args, nargs, 5, v) < 0) return NULL;
    mp_m64 *counter = self->live->counter;
    mp_count(&counter[MP_RECORDS_SENT], (uint64_t)v[1]);
    mp_count(&counter[MP_BYTES_SENT], (uint64_t)v[2]);
    mp_count(&counter[MP_BATCHES_SENT], 1);
    mp_count(&counter[MP_UNCOMPRESSED_SENT], (uint64_t)v[3]);
    struct mp_topic_metrics *topic = topic_row(self, v[0]);
    if (topic) {
        mp_count(&topic->records, (uint64_t)v[1]);
        mp_count(&topic->bytes, (uint64_t)v[2]);
        mp_count(&topic->uncompressed, (uint64_t)v[3]);
        mp_count(&topic->batches, 1);
    }
    mp_peak(&self->region->metrics->peak[MP_PEAK_BATCH_BYTES], (uint64_t)v[2]);
    if (v[4] >= 0) mp_measure(&self->live->distribution[MP_QUEUE_TIME], us_of(v[4]));
    Py_RETURN_NONE;
}

static PyObject *metrics_acked(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t ns;
    if (take(self, args, nargs, 1, &ns) < 0) return NULL;
    mp_measure(&self->live->distribution[MP_SEND_TO_ACK], us_of(ns));
    Py_RETURN_NONE;
}

static PyObject *metrics_retried(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[2];
    if (take(self, args, nargs, 2, v) < 0) return NULL;
    struct mp_topic_metrics *topic = topic_row(self, v[0]);
    if (topic) mp_count(&topic->retried, (uint64_t)v[1]);
    Py_RETURN_NONE;
}

static PyObject *metrics_failed(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[2];
    if (take(self, args, nargs, 2, v) < 0) return NULL;
    struct mp_topic_metrics *topic = topic_row(self, v[0]);
    if (topic) mp_count(&topic->failed, (uint64_t)v[1]);
    Py_RETURN_NONE;
}

/* node(id) -> its row, or -1 when all are taken. */
static PyObject *metrics_node(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t id;
    if (take(self, args, nargs, 1, &id) < 0) return NULL;
    const uint64_t wanted = (uint64_t)(id + NODE_BIAS);
    for (uint32_t row = 0; row < self->nodes; row++)
        if (atomic_load_explicit(&self->live->node[row].id, RELAXED) == wanted)
            return PyLong_FromUnsignedLong(row);
    if (self->nodes == MP_NODES) return PyLong_FromLong(-1);
    atomic_store_explicit(&self->live->node[self->nodes].id, wanted, RELAXED);
    return PyLong_FromUnsignedLong(self->nodes++);
}

/* responded(row, ns): the answer to a Produce request. */
static PyObject *metrics_responded(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[2];
    if (take(self, args, nargs, 2, v) < 0) return NULL;
    const uint64_t us = us_of(v[1]);
    mp_measure(&self->live->distribution[MP_REQUEST_LATENCY], us);
    struct mp_node_metrics *node = node_row(self, v[0]);
    if (node) mp_measure(&node->latency, us);
    Py_RETURN_NONE;
}

static PyObject *metrics_sent(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[2];
    if (take(self, args, nargs, 2, v) < 0) return NULL;
    struct mp_node_metrics *node = node_row(self, v[0]);
    if (node) {
        mp_count(&node->requests, 1);
        mp_count(&node->bytes_out, (uint64_t)v[1]);
        mp_peak(&node->request_bytes, (uint64_t)v[1]);
    }
    Py_RETURN_NONE;
}

/* received(row, bytes, responses) */
static PyObject *metrics_received(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[3];
    if (take(self, args, nargs, 3, v) < 0) return NULL;
    struct mp_node_metrics *node = node_row(self, v[0]);
    if (node) {
        mp_count(&node->bytes_in, (uint64_t)v[1]);
        mp_count(&node->responses, (uint64_t)v[2]);
    }
    Py_RETURN_NONE;
}

static PyObject *metrics_in_flight(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t v[2];
    if (take(self, args, nargs, 2, v) < 0) return NULL;
    struct mp_node_metrics *node = node_row(self, v[0]);
    if (node) atomic_store_explicit(&node->in_flight, (uint64_t)v[1], RELAXED);
    Py_RETURN_NONE;
}

static PyObject *metrics_throttled(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t ms;
    if (take(self, args, nargs, 1, &ms) < 0) return NULL;
    mp_peak(&self->region->metrics->peak[MP_PEAK_THROTTLE_MS], (uint64_t)(ms > 0 ? ms : 0));
    Py_RETURN_NONE;
}

/* publish(first, values): counters from place `first` on. */
static PyObject *metrics_publish(Metrics *self, PyObject *args) {
    unsigned first;
    PyObject *values;
    if (!PyArg_ParseTuple(args, "IO!", &first, &PyList_Type, &values)) return NULL;
    const Py_ssize_t count = PyList_GET_SIZE(values);
    if (first > MP_COUNTERS || count > (Py_ssize_t)(MP_COUNTERS - first)) {
        PyErr_Format(PyExc_IndexError, "%zd counters from place %u on", count, first);
        return NULL;
    }
    if (take(self, NULL, 0, 0, NULL) < 0) return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        const long long value = PyLong_AsLongLong(PyList_GET_ITEM(values, i));
        if (value == -1 && PyErr_Occurred()) return NULL;
        atomic_store_explicit(&self->live->counter[first + i], (uint64_t)value, RELAXED);
    }
    if (self->region->pool) {
        uint64_t sums[MP_TALLY_WORDS];
        mp_sum_tallies(self->region, sums);
        for (uint32_t i = 0; i < MP_TALLY_WORDS; i++)
            atomic_store_explicit(&self->live->counter[MP_TALLY_FIRST + i], sums[i], RELAXED);
    }
    Py_RETURN_NONE;
}

/* --- samples */

static void turn_peak(struct mp_peak *peak) {
    atomic_store_explicit(&peak->before, atomic_load_explicit(&peak->now, RELAXED), RELAXED);
    atomic_store_explicit(&peak->now, 0, RELAXED);
}

static void copy_words(mp_m64 *to, const mp_m64 *from, size_t bytes) {
    for (size_t i = 0; i < bytes / 8; i++)
        atomic_store_explicit(&to[i], atomic_load_explicit(&from[i], RELAXED),
                              memory_order_release);
}

/* sample(now_ns): what rates and averages of the next 30 to 60 s are counted from. */
static PyObject *metrics_sample(Metrics *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t now_ns;
    if (take(self, args, nargs, 1, &now_ns) < 0) return NULL;
    struct mp_metrics *metrics = self->region->metrics;
    const uint64_t sequence = atomic_load_explicit(&metrics->sequence, RELAXED);
    const uint32_t place = 1 + (uint32_t)(sequence / 2 % MP_SAMPLES);
    struct mp_sample *to = mp_sample_at(metrics, self->max_topics, place);
    atomic_store_explicit(&metrics->sequence, sequence + 1, RELAXED);
    atomic_store_explicit(&self->live->taken_ns, (uint64_t)now_ns, RELAXED);
    copy_words((mp_m64 *)to, (const mp_m64 *)self->live,
               offsetof(struct mp_sample, node) + self->nodes * sizeof *to->node);
    copy_words((mp_m64 *)to->topic, (const mp_m64 *)self->live->topic,
               self->max_topics * sizeof *to->topic);
    atomic_store_explicit(&metrics->sequence, sequence + 2, memory_order_release);
    for (uint32_t i = 0; i < MP_PEAKS; i++) turn_peak(&metrics->peak[i]);
    for (uint32_t i = 0; i < MP_DISTRIBUTIONS; i++) turn_peak(&self->live->distribution[i].peak_us);
    for (uint32_t i = 0; i < self->nodes; i++) {
        turn_peak(&self->live->node[i].request_bytes);
        turn_peak(&self->live->node[i].latency.peak_us);
    }
    Py_RETURN_NONE;
}

/* --- reading */

static uint64_t get(const mp_m64 *word) { return atomic_load_explicit(word, memory_order_acquire); }

static uint64_t highest(const struct mp_peak *peak) {
    const uint64_t now = get(&peak->now), before = get(&peak->before);
    return now > before ? now : before;
}

static PyObject *words(const mp_m64 *from, size_t count) {
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(get(&from[i]));
        if (!value) Py_CLEAR(list);
        else PyList_SET_ITEM(list, (Py_ssize_t)i, value);
    }
    return list;
}

static PyObject *read_histogram(const struct mp_histogram *h) {
    PyObject *buckets = words(h->bucket, MP_BUCKETS);
    return buckets ? Py_BuildValue("KKN", (unsigned long long)get(&h->sum_us),
                                   (unsigned long long)highest(&h->peak_us), buckets)
                   : NULL;
}

/* Appends what may be NULL with an exception. */
static int add(PyObject *list, PyObject *item) {
    const int bad = !item || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return bad ? -1 : 0;
}

static int read_nodes(PyObject *list, const struct mp_sample *s) {
    for (uint32_t i = 0; i < MP_NODES && get(&s->node[i].id); i++) {
        const struct mp_node_metrics *n = &s->node[i];
        PyObject *latency = read_histogram(&n->latency);
        if (!latency ||
            add(list, Py_BuildValue("LKKKKKKN", (long long)get(&n->id) - NODE_BIAS,
                                    (unsigned long long)get(&n->requests),
                                    (unsigned long long)get(&n->responses),
                                    (unsigned long long)get(&n->bytes_out),
                                    (unsigned long long)get(&n->bytes_in),
                                    (unsigned long long)get(&n->in_flight),
                                    (unsigned long long)highest(&n->request_bytes), latency)) < 0)
            return -1;
    }
    return 0;
}

/* (taken_ns, counters, distributions, nodes, topics) of one sample. */
static PyObject *read_sample(const struct mp_sample *s, uint32_t topics) {
    PyObject *distributions = PyList_New(0), *nodes = PyList_New(0), *rows = PyList_New(0);
    PyObject *counters = words(s->counter, MP_COUNTERS);
    if (!distributions || !nodes || !rows || !counters) goto failed;
    for (uint32_t i = 0; i < MP_DISTRIBUTIONS; i++)
        if (add(distributions, read_histogram(&s->distribution[i])) < 0) goto failed;
    if (read_nodes(nodes, s) < 0) goto failed;
    for (uint32_t i = 0; i < topics; i++)
        if (add(rows, words(&s->topic[i].records, 6)) < 0) goto failed;
    return Py_BuildValue("KNNNN", (unsigned long long)get(&s->taken_ns), counters, distributions,
                         nodes, rows);
failed:
    Py_XDECREF(distributions);
    Py_XDECREF(nodes);
    Py_XDECREF(rows);
    Py_XDECREF(counters);
    return NULL;
}

/* The older sample, or None while there is none. Samples are counted from 0; when `begun` of them
 * have been begun, `begun - 2` is whole and the next one is written over it. */
static PyObject *read_older(const struct mp_region *region, uint32_t topics) {
    for (int tries = 0; tries < SAMPLE_TRIES; tries++) {
        const uint64_t sequence = get(&region->metrics->sequence), begun = (sequence + 1) / 2;
        if (sequence < 2) break;
        const uint64_t older = begun < MP_SAMPLES ? 0 : begun - MP_SAMPLES;
        const uint32_t place = 1 + (uint32_t)(older % MP_SAMPLES);
        PyObject *sample =
            read_sample(mp_sample_at(region->metrics, region->max_topics, place), topics);
        if (!sample || (get(&region->metrics->sequence) + 1) / 2 <= older + MP_SAMPLES)
            return sample;
        Py_DECREF(sample); /* written over meanwhile: half a minute has passed */
    }
    Py_RETURN_NONE;
}

static PyObject *topic_names(const struct mp_region *region, uint32_t topics) {
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < topics; i++) {
        const char *name = region->topics ? region->topics[i].name : "";
        if (add(list, region->topics
                          ? PyUnicode_DecodeUTF8(name, (Py_ssize_t)strnlen(name, MP_TOPIC_NAME),
                                                 "replace")
                          : PyUnicode_FromFormat("%u", i)) < 0)
            Py_CLEAR(list);
    }
    return list;
}

PyObject *metrics_read(const struct mp_region *region) {
    uint32_t topics = region->max_topics;
    if (region->ctl) {
        topics = atomic_load_explicit(&region->ctl->topic_count, memory_order_acquire);
        if (topics > region->max_topics) topics = region->max_topics;
    }
    PyObject *now = read_sample(mp_sample_at(region->metrics, region->max_topics, 0), topics);
    PyObject *then = now ? read_older(region, topics) : NULL;
    PyObject *names = then ? topic_names(region, topics) : NULL;
    PyObject *peaks = names ? PyList_New(0) : NULL;
    for (uint32_t i = 0; peaks && i < MP_PEAKS; i++)
        if (add(peaks, PyLong_FromUnsignedLongLong(highest(&region->metrics->peak[i]))) < 0)
            Py_CLEAR(peaks);
    if (!peaks) goto failed;
    if (region->pool) { /* the workers' own, of this moment */
        uint64_t sums[MP_TALLY_WORDS];
        mp_sum_tallies(region, sums);
        for (uint32_t i = 0; i < MP_TALLY_WORDS; i++) {
            PyObject *value = PyLong_FromUnsignedLongLong(sums[i]);
            if (!value) goto failed;
            PyObject *counters = PyTuple_GET_ITEM(now, 1); /* nobody else has it yet */
            Py_DECREF(PyList_GET_ITEM(counters, MP_TALLY_FIRST + i));
            PyList_SET_ITEM(counters, MP_TALLY_FIRST + i, value);
        }
    }
    return Py_BuildValue("NNNN", now, then, names, peaks);
failed:
    Py_XDECREF(now);
    Py_XDECREF(then);
    Py_XDECREF(names);
    Py_XDECREF(peaks);
    return NULL;
}

static PyObject *metrics_read_method(Metrics *self, PyObject *Py_UNUSED(ignored)) {
    if (take(self, NULL, 0, 0, NULL) < 0) return NULL;
    return metrics_read(self->region);
}

#define FAST(name, function) \
    {name, (PyCFunction)(void *)function, METH_FASTCALL, NULL}

static PyMethodDef metrics_methods[] = {
    FAST("drained", metrics_drained),
    FAST("acked", metrics_acked),
    FAST("retried", metrics_retried),
    FAST("failed", metrics_failed),
    FAST("node", metrics_node),
    FAST("responded", metrics_responded),
    FAST("sent", metrics_sent),
    FAST("received", metrics_received),
    FAST("in_flight", metrics_in_flight),
    FAST("throttled", metrics_throttled),
    FAST("sample", metrics_sample),
    {"publish", (PyCFunction)metrics_publish, METH_VARARGS, NULL},
    {"read", (PyCFunction)metrics_read_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject Metrics_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.Metrics",
    .tp_basicsize = sizeof(Metrics),
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)metrics_init,
    .tp_dealloc = (destructor)metrics_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = metrics_methods,
};
