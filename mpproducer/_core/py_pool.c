/* Pool: the sender's side of the segments, one thread only. */
#include "py_wire.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "collect.h"

#define MOST_EVENTS 1024 /* of one wait; the rest comes with the next */

typedef struct {
    PyObject_HEAD
    struct mp_sender sender;
    struct mp_collector collector;
    struct mp_span *spans; /* scratch for walks */
    uint64_t sleeps;
    int open;
    Py_ssize_t exports;
} Pool;

PyObject *mp_corrupt_error;

static int pool_init(Pool *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ctl_fd",     "pool_fd",  "slots",     "max_partitions",
                            "max_topics", "batch_size", "max_request_size", "linger_us",
                            "generation", "ignore_keys", "compress", NULL};
    int ctl_fd, pool_fd, ignore_keys = 0, compress = 0;
    struct mp_geometry g = {0};
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a pool is initialised once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiIII|$IIIIpp", names, &ctl_fd, &pool_fd,
                                     &g.slots, &g.max_partitions, &g.max_topics, &g.batch_size,
                                     &g.max_request_size, &g.linger_us, &g.generation,
                                     &ignore_keys, &compress))
        return -1;
    g.ignore_keys = (uint32_t)ignore_keys;
    g.compress = (uint32_t)compress;
    const char *wrong = mp_sender_open(&self->sender, ctl_fd, pool_fd, &g);
    if (wrong) {
        PyErr_Format(PyExc_OSError, "%s (errno %d)", wrong, errno);
        return -1;
    }
    self->open = 1;
    self->spans = PyMem_Calloc(g.slots + 1, sizeof *self->spans);
    if (mp_collector_open(&self->collector, &self->sender) < 0 || !self->spans) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void shut(Pool *self) {
    if (self->open) mp_sender_close(&self->sender);
    self->open = 0;
}

static void pool_dealloc(Pool *self) {
    shut(self);
    mp_collector_close(&self->collector);
    PyMem_Free(self->spans);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *pool_close(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (self->exports > 0) {
        PyErr_SetString(PyExc_BufferError, "views of the pool are still in use");
        return NULL;
    }
    shut(self);
    Py_RETURN_NONE;
}

static int check_open(const Pool *self) {
    if (self->open) return 1;
    PyErr_SetString(PyExc_ValueError, "the pool is closed");
    return 0;
}

/* An argument below `limit`, or -1 with an exception. */
static int64_t index_argument(const Pool *self, PyObject *arg, uint32_t limit, const char *what) {
    if (!check_open(self)) return -1;
    const unsigned long value = PyLong_AsUnsignedLong(arg);
    if (value == (unsigned long)-1 && PyErr_Occurred()) return -1;
    if (value >= limit) {
        PyErr_Format(PyExc_IndexError, "%s %lu is not below %u", what, value, limit);
        return -1;
    }
    return (int64_t)value;
}

static int64_t slot_argument(const Pool *self, PyObject *arg) {
    return index_argument(self, arg, self->sender.region.slots, "slot");
}

static PyObject *corrupt(const char *why) {
    PyErr_SetString(mp_corrupt_error, why);
    return NULL;
}

/* A tuple of new references, which it takes; NULL with an exception when one of them is NULL. What
 * is made per turn or per batch is made with it: Py_BuildValue costs three times as much. */
static PyObject *tuple_of(Py_ssize_t count, PyObject *const *items) {
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!items[i]) Py_CLEAR(tuple);
        if (tuple) PyTuple_SET_ITEM(tuple, i, Py_NewRef(items[i]));
    }
    for (Py_ssize_t i = 0; i < count; i++) Py_XDECREF(items[i]);
    return tuple;
}

static int append_long(PyObject *list, unsigned long value) {
    PyObject *number = PyLong_FromUnsignedLong(value);
    const int bad = !number || PyList_Append(list, number) < 0;
    Py_XDECREF(number);
    return bad ? -1 : 0;
}

/* (what was found, batches that have no record yet, looks since the last of them was first seen); of
 * what was found (partition index, batch_seq or 0, head slot, full, opened_ns). */
static PyObject *pool_collect(Pool *self, PyObject *arg) {
    const int everything = PyObject_IsTrue(arg);
    if (everything < 0 || !check_open(self)) return NULL;
    struct mp_collector *collector = &self->collector;
    if (mp_collect(collector, &self->sender, everything) < 0)
        return corrupt("the chain of new batches is broken");
    PyObject *list = PyList_New(collector->count);
    for (uint32_t i = 0; list && i < collector->count; i++) {
        const struct mp_found *one = &collector->found[i];
        PyObject *const entry[] = {
            PyLong_FromUnsignedLong(one->partition), PyLong_FromUnsignedLongLong(one->seq),
            PyLong_FromUnsignedLong(one->slot),      PyBool_FromLong((long)one->full),
            PyLong_FromLongLong(one->opened_ns),
        };
        PyObject *told = tuple_of(5, entry);
        if (!told) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, told);
    }
    PyObject *const all[] = {list, PyLong_FromUnsignedLong(collector->unborn),
                             PyLong_FromUnsignedLong(collector->looks)};
    return tuple_of(3, all);
}

static PyObject *span_list(const struct mp_walk *walk) {
    PyObject *spans = PyList_New(walk->spans);
    for (uint32_t i = 0; spans && i < walk->spans; i++) {
        PyObject *const pair[] = {PyLong_FromUnsignedLongLong(walk->span[i].offset),
                                  PyLong_FromUnsignedLongLong(walk->span[i].bytes)};
        PyObject *span = tuple_of(2, pair);
        if (!span) Py_CLEAR(spans);
        else PyList_SET_ITEM(spans, i, span);
    }
    return spans;
}

static PyObject *participants(const struct mp_slot *header) {
    PyObject *owners = PyList_New(0);
    for (uint32_t i = 0; owners && i < MP_OWNER_WORDS; i++) {
        uint64_t bits = atomic_load_explicit(&header->participants[i], memory_order_relaxed);
        for (; owners && bits; bits &= bits - 1)
            if (append_long(owners, i * 64ul + (unsigned long)__builtin_ctzll(bits)) < 0)
                Py_CLEAR(owners);
    }
    if (!owners) return NULL;
    PyObject *tuple = PyList_AsTuple(owners);
    Py_DECREF(owners);
    return tuple;
}

/* None: no record yet, and its owner is alive. (why, records): corrupt. Else what the walk found. */
static PyObject *freeze_one(Pool *self, uint32_t slot, uint64_t *bytes) {
    if (!mp_seal(&self->sender, slot)) Py_RETURN_NONE;
    mp_collect_sealed(&self->collector, slot);
    const struct mp_slot *header = &self->sender.region.slot[slot];
    struct mp_walk walk = {.span = self->spans};
    const char *wrong = mp_walk(&self->sender, slot, &walk);
    if (wrong)
        return Py_BuildValue("sI", wrong,
                             mp_records(atomic_load_explicit(&header->word, memory_order_relaxed)));
    *bytes += walk.bytes;
    mp_peak(&self->sender.region.metrics->peak[MP_PEAK_RECORD_BYTES], walk.largest);
    PyObject *const frozen[] = {
        PyLong_FromUnsignedLong(walk.records),    PyLong_FromUnsignedLong(walk.bytes),
        PyLong_FromLongLong(walk.base_timestamp), PyLong_FromLongLong(walk.max_timestamp),
        participants(header),                     body_of_walk((PyObject *)self, &walk),
    };
    return tuple_of(6, frozen);
}

static PyObject *pool_freeze(Pool *self, PyObject *args) {
    PyObject *slots;
    unsigned long long room;
    if (!PyArg_ParseTuple(args, "O!K", &PyList_Type, &slots, &room)) return NULL;
    PyObject *found = PyList_New(0);
    uint64_t bytes = 0;
    for (Py_ssize_t i = 0; found && i < PyList_GET_SIZE(slots) && (i == 0 || bytes < room); i++) {
        const int64_t slot = slot_argument(self, PyList_GET_ITEM(slots, i));
        PyObject *one = slot < 0 ? NULL : freeze_one(self, (uint32_t)slot, &bytes);
        if (!one || PyList_Append(found, one) < 0) Py_CLEAR(found);
        Py_XDECREF(one);
    }
    return found;
}

static PyObject *pool_release(Pool *self, PyObject *arg) {
    const int64_t slot = slot_argument(self, arg);
    if (slot < 0) return NULL;
    if (self->sender.known[slot] != MP_REPORTED) {
        PyErr_Format(PyExc_ValueError, "slot %lld heads no batch that could be released",
                     (long long)slot);
        return NULL;
    }
    return PyBool_FromLong(mp_release(&self->sender, (uint32_t)slot));
}

static PyObject *pool_retry_quarantine(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (!check_open(self)) return NULL;
    return PyLong_FromUnsignedLong(mp_retry_quarantine(&self->sender));
}

static PyObject *pool_compressed(Pool *self, PyObject *arg) {
    const int64_t slot = slot_argument(self, arg);
    if (slot < 0) return NULL;
    uint32_t owner = 0, first = 0, bytes = 0;
    struct mp_walk walk = {.span = self->spans};
    switch (mp_compressed(&self->sender, (uint32_t)slot, &owner, &first, &bytes)) {
    case MP_C_NONE:
        return Py_BuildValue("sI[]", "none", 0);
    case MP_C_BUSY:
        return Py_BuildValue("sI[]", "busy", owner);
    case MP_C_DONE: {
        const char *wrong =
            mp_output_spans(&self->sender, (uint32_t)slot, first, bytes, &walk);
        if (wrong) return corrupt(wrong);
        return Py_BuildValue("sIN", "done", bytes, span_list(&walk));
    }
    default:
        return Py_BuildValue("sI[]", "taken", 0);
    }
}

static PyObject *pool_take_compression(Pool *self, PyObject *arg) {
    const int64_t slot = slot_argument(self, arg);
    if (slot < 0) return NULL;
    return PyBool_FromLong(mp_take_compression(&self->sender, (uint32_t)slot));
}

static PyObject *pool_owner_alive(Pool *self, PyObject *args) {
    unsigned owner;
    int alive;
    if (!PyArg_ParseTuple(args, "Ip", &owner, &alive) || !check_open(self)) return NULL;
    if (owner == 0 || owner > MP_MAX_OWNERS) {
        PyErr_Format(PyExc_ValueError, "owner id %u is not in 1..%u", owner, MP_MAX_OWNERS);
        return NULL;
    }
    self->sender.alive[owner] = (uint8_t)alive;
    struct mp_metrics *metrics = self->sender.region.metrics;
    if (owner > atomic_load_explicit(&metrics->owners, memory_order_relaxed))
        atomic_store_explicit(&metrics->owners, owner, memory_order_relaxed);
    Py_RETURN_NONE;
}

static int64_t owner_argument(const Pool *self, PyObject *arg) {
    return index_argument(self, arg, MP_MAX_OWNERS + 1, "owner id");
}

static PyObject *pool_reap(Pool *self, PyObject *arg) {
    const int64_t owner = owner_argument(self, arg);
    if (owner < 0) return NULL;
    if (owner == 0 || self->sender.alive[owner]) {
        PyErr_SetString(PyExc_ValueError, "only an owner that is known dead can be reaped");
        return NULL;
    }
    return PyLong_FromUnsignedLong(mp_reap(&self->sender, (uint32_t)owner));
}

static PyObject *pool_owner_reusable(Pool *self, PyObject *arg) {
    const int64_t owner = owner_argument(self, arg);
    if (owner < 0) return NULL;
    return PyBool_FromLong(mp_owner_reusable(&self->sender, (uint32_t)owner));
}

static PyObject *pool_waiters(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (!check_open(self)) return NULL;
    return PyLong_FromUnsignedLong(mp_waiters(&self->sender));
}

static PyObject *pool_grant(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (!check_open(self)) return NULL;
    return PyLong_FromUnsignedLong(mp_grant(&self->sender));
}

static PyObject *pool_free_slots(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (!check_open(self)) return NULL;
    return PyLong_FromUnsignedLong(mp_free_slots(&self->sender));
}

/* epoll_wait to the nanosecond where the kernel has it, and no container's filter keeps it from us
 * (older ones answer a call they do not know with EPERM); else rounded up, so that no wait is a busy
 * loop. Without the GIL. */
static int wait_for_events(int epoll_fd, struct epoll_event *events, int most, int64_t until_ns) {
    int64_t left = until_ns - mp_now_ns();
    if (left < 0) left = 0;
#ifdef SYS_epoll_pwait2
    static int missing;
    if (!missing && left > 0) {
        const struct timespec timeout = {left / 1000000000, left % 1000000000};
        const int found = (int)syscall(SYS_epoll_pwait2, epoll_fd, events, most, &timeout, NULL, 0);
        if (found >= 0 || (errno != ENOSYS && errno != EPERM)) return found;
        missing = 1;
    }
#endif
    const int64_t ms = (left + 999999) / 1000000;
    return epoll_wait(epoll_fd, events, most, ms < INT_MAX ? (int)ms : INT_MAX);
}

static PyObject *pool_sleep(Pool *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "sleep() takes an epoll's descriptor and a time");
        return NULL;
    }
    const long epoll_fd = PyLong_AsLong(args[0]);
    const long long until_ns = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred() || !check_open(self)) return NULL;
    if (until_ns < 0 || until_ns / 1000 + 1 >= INT64_C(1) << 48) {
        PyErr_SetString(PyExc_ValueError, "a sleep's deadline must be finite");
        return NULL;
    }
    struct epoll_event events[MOST_EVENTS];
    int found;
    int64_t until = until_ns;
    const int begun =
        mp_now_ns() < until && mp_sleep_begin(&self->sender, (uint64_t)until / 1000 + 1);
    const int sleeps = begun && !mp_collect_changed(&self->collector, &self->sender);
    if (!sleeps) until = 0;
    self->sleeps += (uint64_t)sleeps;
    Py_BEGIN_ALLOW_THREADS
    found = wait_for_events((int)epoll_fd, events, MOST_EVENTS, until);
    Py_END_ALLOW_THREADS
    const int error = errno;
    if (begun) mp_sleep_end(&self->sender);
    if (found < 0) {
        errno = error;
        if (error != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_CheckSignals() < 0) return NULL;
        found = 0;
    }
    PyObject *list = PyList_New(found);
    for (int i = 0; list && i < found; i++) {
        PyObject *const pair[] = {PyLong_FromLong(events[i].data.fd),
                                  PyLong_FromUnsignedLong(events[i].events)};
        PyObject *event = tuple_of(2, pair);
        if (!event) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, event);
    }
    return list;
}

static PyObject *pool_topic_add(Pool *self, PyObject *name) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    if (!text || !check_open(self)) return NULL;
    const uint32_t topic = mp_topic_add(&self->sender, text, (size_t)length);
    if (topic == MP_NONE) {
        PyErr_Format(PyExc_OverflowError,
                     "the topic directory takes no name of %zd bytes, or is full at max_topics=%u",
                     length, self->sender.region.max_topics);
        return NULL;
    }
    return PyLong_FromUnsignedLong(topic);
}

static int64_t topic_argument(const Pool *self, unsigned topic) {
    if (!check_open(self)) return -1;
    if (topic < atomic_load_explicit(&self->sender.region.ctl->topic_count, memory_order_relaxed))
        return topic;
    PyErr_Format(PyExc_IndexError, "there is no topic %u in the directory", topic);
    return -1;
}

static PyObject *pool_topic_ready(Pool *self, PyObject *args) {
    unsigned topic, count;
    if (!PyArg_ParseTuple(args, "II", &topic, &count) || topic_argument(self, topic) < 0)
        return NULL;
    if (mp_topic_grow(&self->sender, topic, count) < 0) {
        PyErr_Format(PyExc_OverflowError,
                     "%u partitions do not fit the directory: raise max_partitions=%u", count,
                     self->sender.region.max_partitions);
        return NULL;
    }
    PyObject *list = PyList_New(0);
    const struct mp_topic *entry = &self->sender.region.topics[topic];
    for (uint32_t i = 0; list && i < count; i++)
        if (append_long(list, mp_topic_index(entry, i)) < 0) Py_CLEAR(list);
    return list;
}

static PyObject *pool_topic_error(Pool *self, PyObject *args) {
    unsigned topic;
    int code;
    const char *message;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "Iis#", &topic, &code, &message, &length) ||
        topic_argument(self, topic) < 0)
        return NULL;
    mp_topic_fail(&self->sender, topic, (uint32_t)code, message, (size_t)length);
    Py_RETURN_NONE;
}

static PyObject *pool_partition_available(Pool *self, PyObject *args) {
    unsigned index, available;
    if (!PyArg_ParseTuple(args, "II", &index, &available) || !check_open(self)) return NULL;
    if (index >= self->sender.region.max_partitions) {
        PyErr_Format(PyExc_IndexError, "partition index %u is out of range", index);
        return NULL;
    }
    atomic_store_explicit(&self->sender.region.available[index],
                          (uint8_t)(available < 255 ? available : 255),
                          memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *pool_wake_topic_waiters(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (!check_open(self)) return NULL;
    mp_topic_notify(&self->sender);
    Py_RETURN_NONE;
}

static PyObject *pool_close_region(Pool *self, PyObject *Py_UNUSED(ignored)) {
    if (!check_open(self)) return NULL;
    atomic_store_explicit(&self->sender.region.ctl->closed, 1, memory_order_seq_cst);
    for (uint32_t owner = 1; owner <= MP_MAX_OWNERS; owner++) {
        struct mp_waiter *waiter = &self->sender.region.pool->waiters[owner];
        if (atomic_load_explicit(&waiter->state, memory_order_relaxed) != MP_W_IDLE)
            mp_futex_wake(&waiter->state, 1024);
    }
    mp_topic_notify(&self->sender);
    Py_RETURN_NONE;
}

static PyObject *pool_metrics(Pool *self, void *Py_UNUSED(closure)) {
    if (!check_open(self)) return NULL;
    return metrics_of_pool((PyObject *)self, &self->open, &self->sender.region);
}

static int pool_getbuffer(Pool *self, Py_buffer *view, int flags) {
    if (!check_open(self)) return -1;
    const Py_ssize_t size = (Py_ssize_t)self->sender.region.slots * MP_SLOT_BYTES;
    if (PyBuffer_FillInfo(view, (PyObject *)self, self->sender.region.data, size, 1, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void pool_releasebuffer(Pool *self, Py_buffer *Py_UNUSED(view)) { self->exports--; }

static PyBufferProcs pool_buffer = {(getbufferproc)pool_getbuffer,
                                    (releasebufferproc)pool_releasebuffer};

static PyMethodDef pool_methods[] = {
    {"close", (PyCFunction)pool_close, METH_NOARGS, NULL},
    {"collect", (PyCFunction)pool_collect, METH_O, NULL},
    {"freeze", (PyCFunction)pool_freeze, METH_VARARGS, NULL},
    {"release", (PyCFunction)pool_release, METH_O, NULL},
    {"retry_quarantine", (PyCFunction)pool_retry_quarantine, METH_NOARGS, NULL},
    {"compressed", (PyCFunction)pool_compressed, METH_O, NULL},
    {"take_compression", (PyCFunction)pool_take_compression, METH_O, NULL},
    {"owner_alive", (PyCFunction)pool_owner_alive, METH_VARARGS, NULL},
    {"reap", (PyCFunction)pool_reap, METH_O, NULL},
    {"owner_reusable", (PyCFunction)pool_owner_reusable, METH_O, NULL},
    {"waiters", (PyCFunction)pool_waiters, METH_NOARGS, NULL},
    {"grant", (PyCFunction)pool_grant, METH_NOARGS, NULL},
    {"free_slots", (PyCFunction)pool_free_slots, METH_NOARGS, NULL},
    {"sleep", (PyCFunction)(void *)pool_sleep, METH_FASTCALL, NULL},
    {"topic_add", (PyCFunction)pool_topic_add, METH_O, NULL},
    {"topic_ready", (PyCFunction)pool_topic_ready, METH_VARARGS, NULL},
    {"topic_error", (PyCFunction)pool_topic_error, METH_VARARGS, NULL},
    {"partition_available", (PyCFunction)pool_partition_available, METH_VARARGS, NULL},
    {"wake_topic_waiters", (PyCFunction)pool_wake_topic_waiters, METH_NOARGS, NULL},
    {"close_region", (PyCFunction)pool_close_region, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *pool_sleeps(Pool *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->sleeps);
}

static PyGetSetDef pool_getset[] = {
    {"metrics", (getter)pool_metrics, NULL, NULL, NULL},
    {"sleeps", (getter)pool_sleeps, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Pool_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.Pool",
    .tp_basicsize = sizeof(Pool),
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)pool_init,
    .tp_dealloc = (destructor)pool_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = pool_methods,
    .tp_getset = pool_getset,
    .tp_as_buffer = &pool_buffer,
};
