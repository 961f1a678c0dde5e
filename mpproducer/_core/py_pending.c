/* What a process waits for: its pending batches, and the frames of its pipe that tell of them. */
#include "native.h"

#include <errno.h>
#include <unistd.h>

Pending *pending_new(PyObject *topic) {
    Pending *batch = PyMem_Calloc(1, sizeof *batch);
    if (!batch) {
        PyErr_NoMemory();
        return NULL;
    }
    batch->refs = 1;
    batch->topic = Py_XNewRef(topic);
    batch->partition = -1;
    return batch;
}

void pending_drop(Pending *batch) {
    if (--batch->refs > 0) return;
    Py_XDECREF((PyObject *)batch->attachment);
    Py_XDECREF(batch->topic);
    Py_XDECREF(batch->error);
    Py_XDECREF(batch->callbacks);
    Py_XDECREF(batch->one.message);
    for (uint32_t i = 0; i < batch->more_count; i++) Py_XDECREF(batch->more[i].message);
    PyMem_Free(batch->more);
    PyMem_Free(batch);
}

const struct mp_outcome *pending_outcome(const Pending *batch, uint32_t index) {
    if (batch->one.kind && index - batch->one.first < batch->one.count) return &batch->one;
    for (uint32_t i = 0; i < batch->more_count; i++)
        if (index - batch->more[i].first < batch->more[i].count) return &batch->more[i];
    return NULL;
}

static uint32_t home(const Attachment *a, uint64_t key) {
    return (uint32_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (a->table_size - 1);
}

static int table_grow(Attachment *a) {
    const uint32_t old_size = a->table_size;
    const uint32_t size = old_size ? old_size * 2 : 64;
    void *fresh = PyMem_Calloc(size, sizeof *a->table);
    if (!fresh) {
        PyErr_NoMemory();
        return -1;
    }
    __typeof__(a->table) old = a->table;
    a->table = fresh;
    a->table_size = size;
    for (uint32_t i = 0; i < old_size; i++) {
        if (!old[i].key) continue;
        uint32_t at = home(a, old[i].key);
        while (a->table[at].key) at = (at + 1) & (size - 1);
        a->table[at] = old[i];
    }
    PyMem_Free(old);
    return 0;
}

int attachment_make_room(Attachment *a) {
    if (!a->spare && !(a->spare = pending_new(NULL))) return -1;
    return (a->table_used + 1) * 2 > a->table_size ? table_grow(a) : 0;
}

Pending *attachment_track(Attachment *a, uint64_t batch_id, uint32_t slot, PyObject *topic,
                          int32_t partition) {
    Pending *batch = a->spare;
    a->spare = NULL;
    batch->attachment = (Attachment *)Py_NewRef((PyObject *)a);
    batch->topic = Py_NewRef(topic);
    batch->partition = partition;
    batch->batch_id = batch_id;
    batch->slot = slot;
    uint32_t at = home(a, batch_id);
    while (a->table[at].key) at = (at + 1) & (a->table_size - 1);
    a->table[at].key = batch_id;
    a->table[at].value = batch;
    a->table_used++;
    a->pending++;
    a->by_slot[slot] = batch;
    return batch;
}

Pending *pending_find(const Attachment *a, uint64_t key) {
    for (uint32_t at = home(a, key); a->table[at].key; at = (at + 1) & (a->table_size - 1))
        if (a->table[at].key == key) return a->table[at].value;
    return NULL;
}

/* Removes the entry and closes the gap (linear probing keeps no tombstones). */
static void table_remove(Attachment *a, uint64_t key) {
    const uint32_t mask = a->table_size - 1;
    uint32_t hole = home(a, key);
    while (a->table[hole].key != key) hole = (hole + 1) & mask;
    for (uint32_t at = (hole + 1) & mask; a->table[at].key; at = (at + 1) & mask) {
        const uint32_t want = home(a, a->table[at].key);
        if (((at - want) & mask) < ((at - hole) & mask)) continue;
        a->table[hole] = a->table[at];
        hole = at;
    }
    a->table[hole].key = 0;
    a->table[hole].value = NULL;
    a->table_used--;
    a->pending--;
}

/* The batch has all its outcomes: futures answer from it alone from here on. */
static void finish(Attachment *a, Pending *batch) {
    table_remove(a, batch->batch_id);
    /* The slot may show a later batch by now: this one's memory was free before it was told. */
    if (a->by_slot[batch->slot] == batch) a->by_slot[batch->slot] = NULL;
    batch->done = 1;
}

static int add_outcome(Pending *batch, const struct mp_outcome *outcome) {
    if (!batch->one.kind) {
        batch->one = *outcome;
        return 0;
    }
    void *more = PyMem_Realloc(batch->more, sizeof *batch->more * (batch->more_count + 1));
    if (!more) {
        PyErr_NoMemory();
        return -1;
    }
    batch->more = more;
    batch->more[batch->more_count++] = *outcome;
    return 0;
}

/* Moves the callbacks whose record is told by now to `ready`. */
static void collect_callbacks(Attachment *a, Pending *batch, PyObject **ready) {
    if (!batch->callbacks) return;
    PyObject *left = NULL;
    if (!*ready && !(*ready = PyList_New(0))) goto failed;
    if (!batch->done && !(left = PyList_New(0))) goto failed;
    PyObject *waiting = batch->callbacks;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(waiting); i++) {
        PyObject *entry = PyList_GET_ITEM(waiting, i);
        Future *future = (Future *)PyTuple_GET_ITEM(entry, 0);
        const int told = batch->done || pending_outcome(batch, future->index);
        if (told) a->callbacks--;
        if (PyList_Append(told ? *ready : left, entry) < 0) PyErr_WriteUnraisable(entry);
    }
    batch->callbacks = left;
    Py_DECREF(waiting);
    return;
failed:
    PyErr_WriteUnraisable(NULL);
}

void report_unraisable(PyObject *where) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_Clear();
        PyErr_SetInterrupt(); /* for the main thread, as soon as it is back in Python */
    } else {
        PyErr_WriteUnraisable(where);
    }
}

void run_callbacks(PyObject *ready) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(ready); i++) {
        PyObject *entry = PyList_GET_ITEM(ready, i);
        PyObject *result = PyObject_CallOneArg(PyTuple_GET_ITEM(entry, 1),
                                               PyTuple_GET_ITEM(entry, 0));
        if (!result) report_unraisable(PyTuple_GET_ITEM(entry, 1));
        Py_XDECREF(result);
    }
    Py_DECREF(ready);
}

/* Without the garbage collector, for which pending_read says why. */
uint32_t pending_fail_all(Attachment *a, uint32_t kind, uint32_t reason, const char *message,
                          PyObject **ready) {
    uint32_t failed = 0;
    const int collects = PyGC_Disable();
    for (uint32_t i = 0; i < a->table_size;) {
        Pending *batch = a->table[i].value;
        if (!batch) {
            i++;
            continue;
        }
        struct mp_outcome outcome = {0, UINT32_MAX, kind, reason, 0, -1, -1, NULL};
        outcome.message = PyUnicode_FromString(message);
        if (!outcome.message) PyErr_Clear();
        if (add_outcome(batch, &outcome) < 0) {
            Py_XDECREF(outcome.message);
            PyErr_Clear();
        }
        finish(a, batch); /* may move a later entry to place i: look there again */
        collect_callbacks(a, batch, ready);
        Attachment *owner = batch->attachment;
        batch->attachment = NULL;
        pending_drop(batch);
        Py_DECREF((PyObject *)owner); /* the caller holds another reference */
        failed++;
    }
    if (collects) PyGC_Enable();
    return failed;
}

/* --- completion pipe */

static uint32_t u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}
static uint64_t u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static void take_frame(Attachment *a, const uint8_t *frame, uint32_t size, PyObject **ready) {
    Pending *batch = pending_find(a, u64(frame + 8));
    if (!batch) return; /* of a predecessor under this owner id, or told already */
    struct mp_outcome outcome;
    const uint32_t kind = (uint32_t)frame[4] | (uint32_t)frame[5] << 8;
    int16_t code;
    memcpy(&code, frame + 6, 2);
    outcome.kind = kind & MP_KIND_MASK;
    outcome.code = code;
    outcome.first = u32(frame + 16);
    outcome.count = u32(frame + 20);
    outcome.base_offset = (int64_t)u64(frame + 24);
    outcome.append_time_ms = (int64_t)u64(frame + 32);
    outcome.reason = u32(frame + 40);
    outcome.message = NULL;
    if (outcome.kind != MP_ACKED) {
        uint32_t length = u32(frame + 44);
        if (length > size - MP_FRAME_BYTES) length = size - MP_FRAME_BYTES;
        outcome.message =
            PyUnicode_DecodeUTF8((const char *)frame + MP_FRAME_BYTES, length, "replace");
        if (!outcome.message) PyErr_Clear();
    }
    if (add_outcome(batch, &outcome) < 0) {
        Py_XDECREF(outcome.message);
        PyErr_Clear();
    }
    Attachment *owner = NULL;
    if (!(kind & MP_MORE_FRAMES)) {
        finish(a, batch);
        owner = batch->attachment;
        batch->attachment = NULL;
    }
    collect_callbacks(a, batch, ready);
    if (owner) {
        pending_drop(batch);
        Py_DECREF((PyObject *)owner); /* never the last: the caller of drain holds one */
    }
}

/* Parses whole frames; -1 when the stream makes no sense any more. */
static int take_frames(Attachment *a, PyObject **ready) {
    size_t at = 0;
    int count = 0;
    while (a->frames_used - at >= MP_FRAME_BYTES) {
        const uint32_t size = u32(a->frames + at);
        if (size < MP_FRAME_BYTES || size % 8 || size > MP_READ_CHUNK) return -1;
        if (a->frames_used - at < size) break;
        take_frame(a, a->frames + at, size, ready);
        at += size;
        count++;
    }
    memmove(a->frames, a->frames + at, a->frames_used - at);
    a->frames_used -= at;
    a->drained += (uint64_t)count;
    return count;
}

/* No list made in here may start the garbage collector: a finalizer that waits for a future would
 * wait for `reader`, which its own thread holds, and one that closes would take batches away. */
int pending_read(Attachment *a, PyObject **ready) {
    int total = 0;
    const int collects = PyGC_Disable();
    while (a->completion_fd >= 0 && !a->sender_dead) {
        const ssize_t got = read(a->completion_fd, a->frames + a->frames_used,
                                 a->frames_room - a->frames_used);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) break;
        int frames = -1;
        if (got > 0) {
            a->frames_used += (size_t)got;
            frames = take_frames(a, ready);
        }
        if (frames < 0) {
            a->sender_dead = 1;
            pending_fail_all(a, MP_FATE_UNKNOWN, MP_REASON_SENDER_DIED,
                             got == 0
                                 ? "the host's sender process ended before it told the outcome"
                                 : "the sender's completion stream is damaged",
                             ready);
            break;
        }
        total += frames;
        if ((size_t)got < MP_READ_CHUNK / 2) break;
    }
    if (collects) PyGC_Enable();
    return total;
}
