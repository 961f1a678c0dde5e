/* How a thread waits: for a completion, for memory, for the end.
 * Every wait has a deadline, lets other threads run, and is interrupted by signals. */
#include "native.h"

#include <errno.h>
#include <math.h>
#include <poll.h>

/* Reads the pipe unless another thread is about to: taking the frames from under a thread that
 * polls for them would leave it asleep with its outcome told. */
static int drain_into(Attachment *a, PyObject **ready) {
    if (!PyThread_acquire_lock(a->reader, NOWAIT_LOCK)) return 0;
    const int total = pending_read(a, ready);
    PyThread_release_lock(a->reader);
    return total;
}

int attachment_drain(Attachment *a) {
    PyObject *ready = NULL;
    const int total = drain_into(a, &ready);
    if (ready) run_callbacks(ready);
    return total;
}

/* So many batches are pending anyhow; from so many on each further one looks; and how old a look may
 * be: a sender that died is noticed by the next one. */
#define FEW_BATCHES 8
#define MANY_BATCHES 64
#define LOOK_NS (INT64_C(50) * 1000000)

void attachment_look(Attachment *a) {
    if (a->pending <= FEW_BATCHES) return;
    const int64_t now = mp_now_ns();
    if (a->pending <= MANY_BATCHES && now - a->looked_ns < LOOK_NS) return;
    a->looked_ns = now;
    attachment_drain(a);
}

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

/* Timed, interruptible acquire. 1 got it, 0 not within the time, -1 a signal handler raised. Handlers
 * may wait for futures themselves, so *held is let go of for them: then it is NULL, and the result 0. */
static int acquire(PyThread_type_lock lock, int64_t deadline_ns, PyThread_type_lock *held) {
    for (;;) {
        if (PyThread_acquire_lock(lock, NOWAIT_LOCK)) return 1;
        int64_t left = deadline_ns == INT64_MAX ? MP_SLICE_NS * 4 : deadline_ns - mp_now_ns();
        if (left <= 0) return 0;
        if (left > MP_SLICE_NS * 4) left = MP_SLICE_NS * 4;
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
int attachment_lead(Attachment *a, uint64_t seen, int64_t deadline_ns) {
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
        if (ready > 0) pending_read(a, &due);
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
        result = attachment_lead(a, a->drained, deadline_ns);
        if (result < 0 || is_told(batch, index)) break;
        result = 0;
        if (mp_now_ns() >= deadline_ns) break;
    }
    if (result == 0) result = is_told(batch, index);
    attachment_leave(a);
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
        attachment_leave(a);
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
        mp_wait_slice(&a->writer, left < MP_SLICE_NS ? left : MP_SLICE_NS);
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
    attachment_leave(a);
    if (due) run_callbacks(due); /* they may send, and wait for memory themselves */
    return result;
}

int attachment_wait_end(Attachment *a, int64_t deadline_ns) {
    int result = 1;
    Py_INCREF((PyObject *)a);
    a->users++;
    while (attachment_usable(a) && (result = attachment_lead(a, a->drained, deadline_ns)) >= 0)
        if (mp_now_ns() >= deadline_ns) break;
    const int ended = !attachment_usable(a);
    attachment_leave(a);
    return result < 0 ? -1 : ended;
}
