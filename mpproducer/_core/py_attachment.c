/* Attachment: one process's side of the segments, its pending batches and their completions. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <unistd.h>

#include "structmember.h"

#define READ_CHUNK (64u * 1024u)
#define SLICE_NS (INT64_C(250) * 1000000)

/* --- pending batches */

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

static Pending *table_find(const Attachment *a, uint64_t key) {
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

static void run_callbacks(PyObject *ready) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(ready); i++) {
        PyObject *entry = PyList_GET_ITEM(ready, i);
        PyObject *result = PyObject_CallOneArg(PyTuple_GET_ITEM(entry, 1),
                                               PyTuple_GET_ITEM(entry, 0));
        if (!result) report_unraisable(PyTuple_GET_ITEM(entry, 1));
        Py_XDECREF(result);
    }
    Py_DECREF(ready);
}

/* Fails every pending batch; callbacks go to `ready`. Without the garbage collector, for which
 * read_pipe says why. */
static uint32_t fail_all(Attachment *a, uint32_t kind, uint32_t reason, const char *message,
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
    Pending *batch = table_find(a, u64(frame + 8));
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
        if (size < MP_FRAME_BYTES || size % 8 || size > READ_CHUNK) return -1;
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

/* Reads what is there, without blocking; the caller holds `reader`. Frames read; sets sender_dead
 * at EOF. Callbacks that became due are put into `ready`, for the time after `reader`.
 *
 * No list made in here may start the garbage collector: a finalizer that waits for a future would
 * wait for `reader`, which its own thread holds, and one that closes would take batches away. */
static int read_pipe(Attachment *a, PyObject **ready) {
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
            fail_all(a, MP_FATE_UNKNOWN, MP_REASON_SENDER_DIED,
                     got == 0 ? "the host's sender process ended before it told the outcome"
                              : "the sender's completion stream is damaged",
                     ready);
            break;
        }
        total += frames;
        if ((size_t)got < READ_CHUNK / 2) break;
    }
    if (collects) PyGC_Enable();
    return total;
}

/* Reads the pipe unless another thread is about to: taking the frames from under a thread that
 * polls for them would leave it asleep with its outcome told. */
static int drain_into(Attachment *a, PyObject **ready) {
    if (!PyThread_acquire_lock(a->reader, NOWAIT_LOCK)) return 0;
    const int total = read_pipe(a, ready);
    PyThread_release_lock(a->reader);
    return total;
}

int attachment_drain(Attachment *a) {
    PyObject *ready = NULL;
    const int total = drain_into(a, &ready);
    if (ready) run_callbacks(ready);
    return total;
}

/* --- waiting */

int timeout_to_deadline(PyObject *timeout, int64_t *deadline_ns) {
    if (timeout == Py_None) {
        *deadline_ns = INT64_MAX;
        return 0;
    }
    const double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) return -1;
    const int64_t now = mp_now_ns();
    if (isnan(seconds)) {
        PyErr_SetString(PyExc_ValueError, "timeout must be a number of seconds or None, got nan");
        return -1;
    }
    *deadline_ns = seconds <= 0 ? now : seconds > 1e9 ? INT64_MAX : now + (int64_t)(seconds * 1e9);
    return 0;
}

static void end_use(Attachment *a);

/* Timed, interruptible acquire. 1 got it, 0 not within the time, -1 a signal handler raised. Handlers
 * may wait for futures themselves, so *held is let go of for them: then it is NULL, and the result 0. */
static int acquire(PyThread_type_lock lock, int64_t deadline_ns, PyThread_type_lock *held) {
    for (;;) {
        if (PyThread_acquire_lock(lock, NOWAIT_LOCK)) return 1;
        int64_t left = deadline_ns == INT64_MAX ? SLICE_NS * 4 : deadline_ns - mp_now_ns();
        if (left <= 0) return 0;
        if (left > SLICE_NS * 4) left = SLICE_NS * 4;
        PyLockStatus status;
        Py_BEGIN_ALLOW_THREADS
        status = PyThread_acquire_lock_timed(lock, left / 1000 + 1, 1);
        Py_END_ALLOW_THREADS
        if (status == PY_LOCK_ACQUIRED) return 1;
        if (status != PY_LOCK_INTR) continue;
        if (held) {
            PyThread_release_lock(*held);
            *held = NULL;
        }
        if (PyErr_CheckSignals() < 0) return -1;
        if (held) return 0;
    }
}

static int is_told(const Pending *batch, uint32_t index) {
    return batch && (batch->done || pending_outcome(batch, index));
}

/* One thread reads the pipe, for all: the leader polls, the others queue for its place. The
 * turnstile makes the queue fair: a leader whose own batch is still open goes to its end, so that
 * whoever was served by its read is let through to see it.
 *
 * `seen` is a->drained from when the caller last looked at what it waits for. Frames that came
 * since, while it queued, may be the ones: it looks again before it polls for more. */
static int lead(Attachment *a, uint64_t seen, int64_t deadline_ns) {
    int got = acquire(a->turnstile, deadline_ns, NULL);
    if (got <= 0) return got;
    PyThread_type_lock turnstile = a->turnstile;
    got = acquire(a->reader, deadline_ns, &turnstile);
    if (turnstile) PyThread_release_lock(turnstile);
    if (got <= 0) return got;
    int result = 1, interrupted = 0;
    PyObject *due = NULL;
    if (a->drained == seen && a->completion_fd >= 0 && !a->sender_dead) {
        struct pollfd fd = {a->completion_fd, POLLIN, 0};
        const int64_t left = deadline_ns == INT64_MAX ? INT64_MAX : deadline_ns - mp_now_ns();
        struct timespec slice = {1, 0};
        if (left < 1000000000) {
            slice.tv_sec = 0;
            slice.tv_nsec = left > 0 ? left : 0;
        }
        int ready;
        Py_BEGIN_ALLOW_THREADS
        ready = ppoll(&fd, 1, &slice, NULL);
        Py_END_ALLOW_THREADS
        if (ready > 0) read_pipe(a, &due);
        interrupted = ready < 0 && errno == EINTR;
    }
    PyThread_release_lock(a->reader);
    if (interrupted && PyErr_CheckSignals() < 0) result = -1; /* handlers may wait, too */
    if (due) run_callbacks(due); /* they may wait for other futures: not under `reader` */
    return result;
}

int attachment_wait(Attachment *a, const Pending *batch, uint32_t index, int64_t deadline_ns) {
    Py_INCREF((PyObject *)a);
    a->users++;
    int result = 0;
    while (!(result = is_told(batch, index))) {
        result = lead(a, a->drained, deadline_ns);
        if (result < 0 || is_told(batch, index)) break;
        result = 0;
        if (mp_now_ns() >= deadline_ns) break;
    }
    if (result == 0) result = is_told(batch, index);
    end_use(a);
    return result < 0 ? -1 : is_told(batch, index);
}

int attachment_wait_memory(Attachment *a, uint32_t units, int64_t deadline_ns, const int *closed) {
    const int64_t start = mp_now_ns();
    Py_INCREF((PyObject *)a);
    a->users++; /* before the lock: whoever closes meanwhile must not unmap under us */
    /* A signal handler that sends in the midst of a wait of its own thread takes that wait over: it
     * would wait for itself. The interrupted one draws a new ticket afterwards. */
    const int nested = a->waiter == PyThread_get_thread_ident();
    const int got = nested ? 1 : acquire(a->memory, deadline_ns, NULL);
    if (got <= 0 || !attachment_usable(a)) {
        const int ended = !attachment_usable(a);
        if (got > 0 && !nested) PyThread_release_lock(a->memory);
        end_use(a);
        return got < 0 ? -1 : ended ? 2 : 0;
    }
    if (nested && mp_wait_end(&a->writer)) mp_drop_stash(&a->writer);
    a->waiter = PyThread_get_thread_ident();
    const uint64_t wait = ++a->waits;
    a->acting++;
    int result = 0;
    PyObject *due = NULL;
    mp_wait_begin(&a->writer, units);
    for (;;) {
        const int64_t left = deadline_ns - mp_now_ns();
        if (mp_wait_over(&a->writer) || left <= 0) break;
        Py_BEGIN_ALLOW_THREADS
        mp_wait_slice(&a->writer, left < SLICE_NS ? left : SLICE_NS);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) {
            result = -1;
            break;
        }
        if (a->waits != wait) break;
        if (a->closed || a->sender_dead || *closed) break;
        drain_into(a, &due); /* notices the sender's death, and lets completions free the pipe */
        if (a->sender_dead || due) break;
    }
    const int over = a->waits != wait; /* by a handler's wait, which has ended */
    const int granted = !over && mp_wait_end(&a->writer);
    /* What nobody will append with is not kept, and nothing is kept while callbacks run: one that
     * sends may need it, and so may one that closes. */
    if (granted && (result < 0 || due || !attachment_usable(a))) mp_drop_stash(&a->writer);
    const int again = granted || due || over || *closed ||
                      atomic_load_explicit(&a->writer.region.ctl->closed, memory_order_relaxed);
    if (result == 0) result = !attachment_usable(a) ? 2 : again;
    const uint64_t waited_ns = (uint64_t)(mp_now_ns() - start);
    a->wait_ns += waited_ns;
    if (a->fork_generation == mp_fork_generation) {
        mp_tally(&a->writer, MP_TALLY_MEMORY_WAIT_NS, waited_ns);
        mp_tally(&a->writer, MP_TALLY_MEMORY_WAITS, 1);
    }
    a->acting--;
    if (!nested) {
        a->waiter = 0;
        PyThread_release_lock(a->memory);
    }
    end_use(a);
    if (due) run_callbacks(due); /* they may send, and wait for memory themselves */
    return result;
}

int attachment_wait_end(Attachment *a, int64_t deadline_ns) {
    int result = 1;
    Py_INCREF((PyObject *)a);
    a->users++;
    while (attachment_usable(a) && (result = lead(a, a->drained, deadline_ns)) >= 0)
        if (mp_now_ns() >= deadline_ns) break;
    const int ended = !attachment_usable(a);
    end_use(a);
    return result < 0 ? -1 : ended;
}

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
        end_use(a);
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

static void end_use(Attachment *a) {
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
    a->frames_room = 2 * READ_CHUNK;
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
    fail_all(a, MP_FATE_UNKNOWN, MP_REASON_CLOSED,
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
    fail_all(a, MP_FATE_UNKNOWN, MP_REASON_WRONG_PROCESS,
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
        mp_futex_wait(word, version, left < SLICE_NS ? left : SLICE_NS);
        Py_END_ALLOW_THREADS
        if ((failed = PyErr_CheckSignals()) < 0) break;
        if (!a->closed) attachment_drain(a);
        if (a->sender_dead) break;
    }
    const int changed = atomic_load_explicit(word, memory_order_acquire) != version;
    end_use(a);
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
        result = lead(a, before, deadline);
        if (result < 0 || mp_now_ns() >= deadline) break;
    }
    const int arrived = a->drained != before || a->sender_dead;
    end_use(a);
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
        count += id != 0 && table_find(a, id) != NULL;
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
        const int got = lead(a, a->drained, deadline);
        if (got < 0) left = -1;
        if (got < 0 || mp_now_ns() >= deadline) break;
    }
    end_use(a);
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
    end_use(a);
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

static PyObject *method_fail_pending(Attachment *a, PyObject *args) {
    unsigned reason;
    int unknown;
    const char *message;
    if (!PyArg_ParseTuple(args, "Ips", &reason, &unknown, &message)) return NULL;
    PyObject *ready = NULL;
    const uint32_t failed = fail_all(a, unknown ? MP_FATE_UNKNOWN : MP_NOT_WRITTEN, reason,
                                     message, &ready);
    if (ready) run_callbacks(ready);
    return PyLong_FromUnsignedLong(failed);
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
    {"fail_pending", (PyCFunction)method_fail_pending, METH_VARARGS, NULL},
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
