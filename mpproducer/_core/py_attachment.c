/* Attachment: one process's side of the segments, its pending batches and their completions. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "structmember.h"

uint64_t attachment_random(Attachment *a) {
    a->random ^= a->random << 13;
    a->random ^= a->random >> 7;
    a->random ^= a->random << 17;
    return a->random;
}

/* --- topics */

TopicRef *attachment_find_topic(Attachment *a, PyObject *name) {
    PyObject *known = PyDict_GetItemWithError(a->topics, name);
    if (known && PyUnicode_CheckExact(name)) { /* a subclass may hash and compare as it likes */
        Py_XSETREF(a->last_name, Py_NewRef(name));
        a->last_topic = (TopicRef *)known;
    }
    if (known || PyErr_Occurred()) return (TopicRef *)known;
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    if (!text) {
        /* No name that is in the directory: _want_topic() says what is wrong with it. */
        if (PyErr_ExceptionMatches(PyExc_UnicodeError)) PyErr_Clear();
        return NULL;
    }
    const uint32_t index = mp_topic_find(&a->writer.region, text, (size_t)length);
    if (index == MP_NONE) return NULL;
    const struct mp_topic *topic = &a->writer.region.topics[index];
    if (atomic_load_explicit(&topic->state, memory_order_acquire) != MP_T_READY) return NULL;
    TopicRef *ref = PyObject_New(TopicRef, &TopicRef_Type);
    if (!ref) return NULL;
    ref->topic = topic;
    ref->index = index;
    ref->own = ref->entered = ref->turns = ref->lost = 0;
    const int failed = PyDict_SetItem(a->topics, name, (PyObject *)ref);
    Py_DECREF((PyObject *)ref);
    return failed ? NULL : ref; /* the dict holds it */
}

PyTypeObject TopicRef_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.TopicRef",
    .tp_basicsize = sizeof(TopicRef),
    .tp_dealloc = (destructor)PyObject_Free,
    .tp_flags = Py_TPFLAGS_DEFAULT,
};

/* --- compression of the batches that this process filled */

static PyObject *pieces_of(Attachment *a, uint32_t slot, uint32_t bytes) {
    struct mp_region *region = &a->writer.region;
    PyObject *pieces = PyList_New(0);
    while (pieces && bytes > 0) {
        const uint32_t part = bytes < MP_SLOT_BYTES ? bytes : MP_SLOT_BYTES;
        PyObject *view =
            PyMemoryView_FromMemory((char *)mp_payload(region, slot), part, PyBUF_READ);
        if (!view || PyList_Append(pieces, view) < 0) Py_CLEAR(pieces);
        Py_XDECREF(view);
        bytes -= part;
        slot = atomic_load_explicit(&region->slot[slot].next, memory_order_relaxed);
    }
    return pieces;
}

void attachment_compress(Attachment *a, const struct mp_place *place) {
    const int can = a->compressor && a->compressor != Py_None;
    /* The compressor lets other threads run: one of them may close the attachment. */
    for (uint32_t i = 0; i < place->sealed_count && attachment_usable(a); i++) {
        const struct mp_sealed batch = place->sealed[i];
        if (!batch.ours) continue;
        if (!can) {
            mp_compress_abandon(&a->writer, batch);
            continue;
        }
        a->users++; /* the compressor releases the GIL */
        a->acting++;
        Py_INCREF((PyObject *)a);
        const uint32_t bytes = mp_bytes(atomic_load_explicit(
            &a->writer.region.slot[batch.slot].word, memory_order_acquire));
        PyObject *pieces = pieces_of(a, batch.slot, bytes);
        PyObject *output =
            pieces ? PyObject_CallFunction(a->compressor, "OI", pieces, bytes) : NULL;
        Py_XDECREF(pieces);
        char *data;
        Py_ssize_t length;
        if (output && PyBytes_AsStringAndSize(output, &data, &length) == 0 && length > 0 &&
            (size_t)length <= MP_MAX_BYTES) {
            if (mp_compress_end(&a->writer, batch, (const uint8_t *)data, (uint32_t)length))
                a->compressed++;
        } else {
            /* The sender compresses it instead; the record is safe. */
            if (PyErr_Occurred()) report_unraisable(a->compressor);
            mp_compress_abandon(&a->writer, batch);
            a->compress_failed++;
        }
        a->acting--;
        Py_XDECREF(output);
        attachment_leave(a);
    }
}

/* --- life */

static void unmap(Attachment *a) {
    /* In a child the pool is not mapped (MADV_DONTFORK): something else may lie there by now. */
    if (a->fork_generation != mp_fork_generation) a->writer.region.pool = NULL;
    if (a->mapped) mp_region_unmap(&a->writer.region);
    a->mapped = 0;
    if (a->completion_fd >= 0) close(a->completion_fd);
    if (a->wake_fd >= 0) close(a->wake_fd);
    a->completion_fd = a->wake_fd = -1;
}

void attachment_leave(Attachment *a) {
    if (--a->users == 0 && a->closed) unmap(a);
    Py_DECREF((PyObject *)a);
}

/* The attachment owns the four descriptors once this has succeeded, and none of them before. */
static int attachment_init(Attachment *a, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ctl_fd",  "pool_fd", "wake_fd",        "completion_fd", "owner",
                            "slots", "max_partitions", "max_topics", NULL};
    int ctl_fd, pool_fd, wake_fd, completion_fd;
    unsigned owner, slots, max_partitions, max_topics;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiiiIIII", names, &ctl_fd, &pool_fd, &wake_fd,
                                     &completion_fd, &owner, &slots, &max_partitions, &max_topics))
        return -1;
    if (a->mapped || a->closed) {
        PyErr_SetString(PyExc_RuntimeError, "an attachment is initialised once");
        return -1;
    }
    if (owner == 0 || owner > MP_MAX_OWNERS) {
        PyErr_Format(PyExc_ValueError, "owner id %u is not in 1..%u", owner, MP_MAX_OWNERS);
        return -1;
    }
    const int flags = fcntl(completion_fd, F_GETFL);
    if (flags < 0 || fcntl(completion_fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    const char *failed = mp_region_map(&a->writer.region, ctl_fd, pool_fd, slots, max_partitions,
                                       max_topics, 0);
    if (failed) {
        const int why = errno;
        PyErr_Format(PyExc_OSError, "%s: %s", failed, strerror(why));
        return -1;
    }
    a->mapped = 1; /* dealloc unmaps from here on */
    if ((failed = mp_region_check(&a->writer.region))) {
        PyErr_SetString(PyExc_ValueError, failed);
        return -1;
    }
    a->by_slot = PyMem_Calloc(slots, sizeof *a->by_slot);
    a->frames_room = 2 * MP_READ_CHUNK;
    a->frames = PyMem_Malloc(a->frames_room);
    if (!a->by_slot || !a->frames) {
        PyErr_NoMemory();
        return -1;
    }
    if (attachment_reserve(a) < 0) return -1;
    close(ctl_fd);
    close(pool_fd);
    a->completion_fd = completion_fd;
    a->wake_fd = a->writer.wake_fd = wake_fd;
    a->writer.owner = owner;
    a->writer.stash = MP_NONE;
    a->random = ((uint64_t)mp_now_ns() * 2654435761u ^ (uint64_t)getpid() << 32) | 1u;
    return 0;
}

static PyObject *attachment_tp_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                                   PyObject *Py_UNUSED(kwargs)) {
    Attachment *a = (Attachment *)type->tp_alloc(type, 0);
    if (!a) return NULL;
    a->completion_fd = a->wake_fd = -1;
    a->fork_generation = mp_fork_generation;
    a->topics = PyDict_New();
    a->turnstile = PyThread_allocate_lock();
    a->reader = PyThread_allocate_lock();
    a->memory = PyThread_allocate_lock();
    if (!a->topics || !a->turnstile || !a->reader || !a->memory) {
        if (!PyErr_Occurred()) PyErr_NoMemory();
        Py_CLEAR(a);
    }
    return (PyObject *)a;
}

static void attachment_dealloc(Attachment *a) {
    unmap(a);
    Py_XDECREF(a->last_name);
    Py_XDECREF(a->topics);
    Py_XDECREF(a->compressor);
    if (a->spare) pending_drop(a->spare);
    PyMem_Free(a->by_slot);
    PyMem_Free(a->table);
    PyMem_Free(a->frames);
    if (a->turnstile) PyThread_free_lock(a->turnstile);
    if (a->reader) PyThread_free_lock(a->reader);
    if (a->memory) PyThread_free_lock(a->memory);
    Py_TYPE(a)->tp_free((PyObject *)a);
}

static PyObject *method_close(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    if (a->closed) Py_RETURN_NONE;
    PyObject *ready = NULL;
    Py_INCREF((PyObject *)a);
    a->closed = 1;
    pending_fail_all(a, MP_FATE_UNKNOWN, MP_REASON_CLOSED,
             "this process detached before the outcome was told; the sender goes on delivering",
             &ready);
    if (a->users == 0) unmap(a);
    if (ready) run_callbacks(ready);
    Py_DECREF((PyObject *)a);
    Py_RETURN_NONE;
}

/* In a forked child. Locks may have been held by threads that are not in this process, so they are
 * replaced, and leaked. */
static PyObject *method_forget(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    if (a->closed) Py_RETURN_NONE;
    PyObject *ready = NULL;
    Py_INCREF((PyObject *)a);
    a->users = 0;
    a->turnstile = PyThread_allocate_lock();
    a->reader = PyThread_allocate_lock();
    a->memory = PyThread_allocate_lock();
    a->waiter = 0;
    pending_fail_all(a, MP_FATE_UNKNOWN, MP_REASON_WRONG_PROCESS,
             "the future belongs to the process that called send(), not to its forked child",
             &ready);
    Py_XDECREF(ready); /* callbacks of the parent do not run here */
    a->closed = 1;
    a->writer.region.pool = NULL; /* also where forget() is called without a fork */
    unmap(a);
    Py_DECREF((PyObject *)a);
    Py_RETURN_NONE;
}

static int check_usable(const Attachment *a) {
    if (a->mapped && !a->closed && a->fork_generation == mp_fork_generation) return 1;
    PyErr_SetString(PyExc_ValueError, "this attachment is closed");
    return 0;
}

static PyObject *method_topic(Attachment *a, PyObject *name) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    if (!text || !check_usable(a)) return NULL;
    const uint32_t index = mp_topic_find(&a->writer.region, text, (size_t)length);
    if (index == MP_NONE) return Py_BuildValue("iiis", -1, 0, 0, "");
    const struct mp_topic *topic = &a->writer.region.topics[index];
    char message[MP_TOPIC_MESSAGE];
    uint32_t before, after, state, code, tries = 0;
    do { /* seqlock; bounded, because the sender may have been killed inside it */
        before = atomic_load_explicit(&topic->lock, memory_order_acquire);
        state = atomic_load_explicit(&topic->state, memory_order_acquire);
        code = atomic_load_explicit(&topic->error_code, memory_order_acquire);
        for (uint32_t i = 0; i < MP_TOPIC_MESSAGE / 8; i++) {
            const uint64_t word =
                atomic_load_explicit(&topic->message[i], memory_order_acquire);
            memcpy(message + i * 8, &word, 8);
        }
        after = atomic_load_explicit(&topic->lock, memory_order_relaxed);
    } while ((before != after || before & 1) && ++tries < 10000);
    message[sizeof message - 1] = '\0';
    if (before != after || before & 1) { /* half written: no error is told rather than a mixture */
        message[0] = '\0';
        code = 0;
    }
    const uint32_t count = atomic_load_explicit(&topic->partition_count, memory_order_acquire);
    return Py_BuildValue("IIiN", state, count, (int)(int16_t)code,
                         PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "replace"));
}

static PyObject *method_topic_version(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    if (!check_usable(a)) return NULL;
    return PyLong_FromUnsignedLong(
        atomic_load_explicit(&a->writer.region.ctl->topic_version, memory_order_acquire));
}

static PyObject *method_wait_topics(Attachment *a, PyObject *args) {
    unsigned version;
    long long timeout_ns;
    if (!PyArg_ParseTuple(args, "IL", &version, &timeout_ns) || !check_usable(a)) return NULL;
    const mp_a32 *word = &a->writer.region.ctl->topic_version;
    const int64_t deadline = mp_now_ns() + (timeout_ns > 0 ? timeout_ns : 0);
    Py_INCREF((PyObject *)a);
    a->users++;
    int failed = 0;
    while (atomic_load_explicit(word, memory_order_acquire) == version) {
        const int64_t left = deadline - mp_now_ns();
        if (left <= 0 || a->closed) break;
        Py_BEGIN_ALLOW_THREADS
        mp_futex_wait(word, version, left < MP_SLICE_NS ? left : MP_SLICE_NS);
        Py_END_ALLOW_THREADS
        if ((failed = PyErr_CheckSignals()) < 0) break;
        if (!a->closed) attachment_drain(a);
        if (a->sender_dead) break;
    }
    const int changed = atomic_load_explicit(word, memory_order_acquire) != version;
    attachment_leave(a);
    return failed < 0 ? NULL : PyBool_FromLong(changed);
}

static PyObject *method_drain(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    if (a->fork_generation != mp_fork_generation) return PyLong_FromLong(0);
    return PyLong_FromLong(attachment_drain(a));
}

static PyObject *method_wait(Attachment *a, PyObject *arg) {
    const long long timeout_ns = PyLong_AsLongLong(arg);
    if (timeout_ns == -1 && PyErr_Occurred()) return NULL;
    if (!check_usable(a)) return NULL;
    const uint64_t before = a->drained;
    const int64_t deadline = mp_now_ns() + (timeout_ns > 0 ? timeout_ns : 0);
    Py_INCREF((PyObject *)a);
    a->users++;
    int result = 1;
    while (a->drained == before && !a->sender_dead && !a->closed) {
        result = attachment_lead(a, before, deadline);
        if (result < 0 || mp_now_ns() >= deadline) break;
    }
    const int arrived = a->drained != before || a->sender_dead;
    attachment_leave(a);
    return result < 0 ? NULL : PyBool_FromLong(arrived);
}

static PyObject *method_pending(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromUnsignedLong(a->pending);
}

static PyObject *method_pending_ids(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < a->table_size; i++) {
        if (!a->table[i].key) continue;
        PyObject *id = PyLong_FromUnsignedLongLong(a->table[i].key);
        if (!id || PyList_Append(list, id) < 0) Py_CLEAR(list);
        Py_XDECREF(id);
    }
    return list;
}

/* How many of the ids are pending; -1 with an exception. */
static Py_ssize_t count_pending(const Attachment *a, PyObject *ids) {
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(ids); i++) {
        const unsigned long long id = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(ids, i));
        if (id == (unsigned long long)-1 && PyErr_Occurred()) return -1;
        count += id != 0 && pending_find(a, id) != NULL;
    }
    return count;
}

static PyObject *method_wait_for(Attachment *a, PyObject *args) {
    PyObject *ids;
    long long deadline;
    if (!PyArg_ParseTuple(args, "O!L", &PyList_Type, &ids, &deadline)) return NULL;
    if (!a->table) return PyLong_FromLong(0);
    Py_INCREF((PyObject *)a);
    a->users++;
    Py_ssize_t left;
    while ((left = count_pending(a, ids)) > 0) {
        const int got = attachment_lead(a, a->drained, deadline);
        if (got < 0) left = -1;
        if (got < 0 || mp_now_ns() >= deadline) break;
    }
    attachment_leave(a);
    return left < 0 ? NULL : PyLong_FromSsize_t(left);
}

static PyObject *method_fileno(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromLong(a->completion_fd);
}

static PyObject *method_set_compressor(Attachment *a, PyObject *fn) {
    PyObject *old = a->compressor;
    a->compressor = Py_NewRef(fn);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

static PyObject *method_metrics(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    if (!check_usable(a)) return NULL;
    Py_INCREF((PyObject *)a);
    a->users++; /* what is made of it may run finalizers, which may close */
    PyObject *found = metrics_read(&a->writer.region);
    attachment_leave(a);
    return found;
}

static PyObject *method_waited(Attachment *a, PyObject *args) {
    int flush;
    unsigned long long ns;
    if (!PyArg_ParseTuple(args, "pK", &flush, &ns)) return NULL;
    if (a->mapped && attachment_usable(a))
        mp_tally(&a->writer, flush ? MP_TALLY_FLUSH_NS : MP_TALLY_METADATA_WAIT_NS, ns);
    Py_RETURN_NONE;
}

static PyObject *method_stats(Attachment *a, PyObject *Py_UNUSED(ignored)) {
    return Py_BuildValue(
        "{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:I,s:I}", "records", a->records, "bytes",
        a->bytes, "batches_opened", a->writer.opened, "lost_races", a->writer.lost_races,
        "lost_commits", a->writer.lost_commits, "spreads", a->spreads, "returns", a->returns,
        "steals", a->writer.steals, "stale_acquires", a->writer.stale, "memory_waits", a->waits,
        "memory_wait_time_ns", a->wait_ns, "buffer_exhausted", a->buffer_full,
        "batches_compressed", a->compressed, "completion_frames", a->drained, "batches_pending",
        a->pending, "callbacks_pending", a->callbacks);
}

static PyObject *get_owner(Attachment *a, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(a->writer.owner);
}
static PyObject *get_sender_dead(Attachment *a, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(a->sender_dead);
}
static PyObject *get_closed(Attachment *a, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(a->closed);
}
static PyObject *get_busy(Attachment *a, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(a->acting > 0);
}
static PyObject *get_callbacks(Attachment *a, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(a->callbacks);
}

static PyMethodDef attachment_methods[] = {
    {"topic", (PyCFunction)method_topic, METH_O, NULL},
    {"topic_version", (PyCFunction)method_topic_version, METH_NOARGS, NULL},
    {"wait_topics", (PyCFunction)method_wait_topics, METH_VARARGS, NULL},
    {"drain", (PyCFunction)method_drain, METH_NOARGS, NULL},
    {"wait", (PyCFunction)method_wait, METH_O, NULL},
    {"pending", (PyCFunction)method_pending, METH_NOARGS, NULL},
    {"pending_ids", (PyCFunction)method_pending_ids, METH_NOARGS, NULL},
    {"wait_for", (PyCFunction)method_wait_for, METH_VARARGS, NULL},
    {"fileno", (PyCFunction)method_fileno, METH_NOARGS, NULL},
    {"set_compressor", (PyCFunction)method_set_compressor, METH_O, NULL},
    {"metrics", (PyCFunction)method_metrics, METH_NOARGS, NULL},
    {"waited", (PyCFunction)method_waited, METH_VARARGS, NULL},
    {"stats", (PyCFunction)method_stats, METH_NOARGS, NULL},
    {"forget", (PyCFunction)method_forget, METH_NOARGS, NULL},
    {"close", (PyCFunction)method_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attachment_getset[] = {
    {"owner", (getter)get_owner, NULL, NULL, NULL},
    {"sender_dead", (getter)get_sender_dead, NULL, NULL, NULL},
    {"closed", (getter)get_closed, NULL, NULL, NULL},
    {"busy", (getter)get_busy, NULL, NULL, NULL},
    {"callbacks", (getter)get_callbacks, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject Attachment_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.Attachment",
    .tp_basicsize = sizeof(Attachment),
    .tp_new = attachment_tp_new,
    .tp_init = (initproc)attachment_init,
    .tp_dealloc = (destructor)attachment_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = attachment_methods,
    .tp_getset = attachment_getset,
};
