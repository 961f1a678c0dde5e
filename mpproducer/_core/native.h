/* What the binding files share. Everything here runs under the GIL unless it says otherwise. */
#ifndef MP_NATIVE_H
#define MP_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pythread.h>

#include "append.h"

/* Completion frame kinds and layout: mpproducer/shm/frames.py is the other half. */
enum mp_kind { MP_ACKED = 1, MP_NOT_WRITTEN = 2, MP_FATE_UNKNOWN = 3, MP_KIND_MASK = 0xff };
#define MP_MORE_FRAMES 0x100u
#define MP_FRAME_BYTES 48u
#define MP_REASON_SENDER_DIED 5u
#define MP_REASON_CLOSED 4u
#define MP_REASON_WRONG_PROCESS 11u

struct mp_outcome {
    uint32_t first, count, kind, reason;
    int32_t code;
    int64_t base_offset;
    int64_t append_time_ms;
    PyObject *message;
};

typedef struct Attachment Attachment;

typedef struct {
    PyObject_HEAD
    const struct mp_topic *topic;
    uint32_t index;
    /* where the unkeyed records of this process go */
    uint32_t own;         /* partition + 1; 0: to the partition that all workers share */
    uint32_t entered;     /* a record of ours is in a batch of `own` */
    uint32_t turns, lost; /* appends since contention was last looked at; races lost in them */
} TopicRef;

/* One batch in which this process has records: everything its futures need, once per batch. */
typedef struct Pending {
    Py_ssize_t refs;
    uint64_t batch_id;
    Attachment *attachment; /* strong while pending */
    PyObject *topic;
    PyObject *error;     /* of a future that failed before anything was appended */
    PyObject *callbacks; /* list of (future, fn), or NULL */
    struct mp_outcome one;
    struct mp_outcome *more; /* outcomes of further index ranges: split batch, per-record errors */
    uint32_t more_count;
    uint32_t slot; /* head slot, while pending */
    int32_t partition;
    int done;
} Pending;

typedef struct {
    PyObject_HEAD
    Pending *batch;
    int64_t timestamp_ms;
    uint32_t index;
} Future;

struct Attachment {
    PyObject_HEAD
    struct mp_writer writer;
    PyObject *topics; /* str -> TopicRef */
    PyObject *last_name;   /* of the latest look-up: most sends of a process name one topic */
    TopicRef *last_topic;  /* borrowed from `topics`, which keeps what it holds */
    PyObject *compressor;
    Pending *spare;    /* for the next batch, so that nothing can fail after a commit */
    Pending **by_slot; /* last batch seen in each slot; borrowed from `table` */
    struct { uint64_t key; Pending *value; } *table; /* open addressing; key 0 = empty */
    uint32_t table_size, table_used, pending;
    uint32_t users;  /* threads that are inside without the GIL */
    uint32_t acting; /* those of them that act under the owner id: compress, wait for memory */
    uint32_t callbacks;
    uint32_t fork_generation;
    int completion_fd, wake_fd;
    int sender_dead, closed, mapped;
    PyThread_type_lock turnstile, reader, memory;
    unsigned long waiter; /* the thread that holds `memory`; 0: none does */
    uint8_t *frames; /* bytes read and not parsed yet */
    size_t frames_used, frames_room;
    uint64_t records, bytes, spreads, returns, waits, wait_ns, buffer_full, compressed;
    uint64_t compress_failed, drained;
    int64_t looked_ns; /* when attachment_look() last read the pipe */
    uint64_t random;
};

extern PyTypeObject Metrics_Type, Pool_Type, Attachment_Type, Future_Type, Producer_Type, TopicRef_Type;
extern PyObject *mp_corrupt_error;
extern uint32_t mp_fork_generation;

/* Set by configure(). */
extern PyObject *mp_make_metadata, *mp_make_error, *mp_make_await, *mp_watch, *mp_make_batch_future;

Pending *pending_new(PyObject *topic);
static inline Pending *pending_keep(Pending *batch) {
    batch->refs++;
    return batch;
}
void pending_drop(Pending *batch);
const struct mp_outcome *pending_outcome(const Pending *batch, uint32_t index);
/* 1: the record is told, with index UINT32_MAX all of its batch; 0: deadline passed; -1: exception. */
int pending_wait(Pending *batch, uint32_t index, int64_t deadline_ns);
/* The error of a record that is told, or NULL: without an exception set it was acknowledged. */
PyObject *pending_error(const Pending *batch, uint32_t index);

Future *future_new(void);
PyObject *future_failed(PyObject *topic, PyObject *error);
/* The error of errors.`name`(message), or NULL with an exception set. */
PyObject *error_new(const char *name, PyObject *message);

static inline int attachment_usable(const Attachment *a) {
    return !a->closed && !a->sender_dead && a->fork_generation == mp_fork_generation;
}
/* 0, or -1 with MemoryError: called before mp_append, makes sure that track cannot fail. */
int attachment_make_room(Attachment *a);
static inline int attachment_reserve(Attachment *a) {
    if (a->spare && (a->table_used + 1) * 2 <= a->table_size) return 0;
    return attachment_make_room(a);
}
Pending *attachment_track(Attachment *a, uint64_t batch_id, uint32_t slot, PyObject *topic,
                          int32_t partition);
/* The pending batch of this id, borrowed; NULL when it is told or was never ours. */
Pending *pending_find(const Attachment *a, uint64_t batch_id);
/* Reads what is in the pipe, without blocking; the caller holds `reader`. Returns frames read; sets
 * sender_dead at its end. Callbacks that became due are put into `ready`, for run_callbacks() once
 * `reader` is given back. */
int pending_read(Attachment *a, PyObject **ready);
/* Fails every pending batch and returns how many; callbacks go to `ready`. */
uint32_t pending_fail_all(Attachment *a, uint32_t kind, uint32_t reason, const char *message,
                          PyObject **ready);
void run_callbacks(PyObject *ready); /* takes the reference */
#define MP_READ_CHUNK (64u * 1024u) /* of the pipe; half of what `frames` holds */

/* Gives back a thread's use of the attachment, and its reference: the last one of a closed attachment
 * unmaps the segments. */
void attachment_leave(Attachment *a);

#define MP_SLICE_NS (INT64_C(250) * 1000000) /* longest sleep without a look around */
int attachment_drain(Attachment *a);
/* With a new batch pending, in a process that may never look at a future: drains now and then (D13). */
void attachment_look(Attachment *a);
/* Reads the pipe for all once there is something; returns at once when more than `seen` frames have
 * been read already. -1: exception set. */
int attachment_lead(Attachment *a, uint64_t seen, int64_t deadline_ns);
/* 1: the record's batch has its outcome; 0: deadline passed; -1: exception set. */
int attachment_wait(Attachment *a, const Pending *batch, uint32_t index, int64_t deadline_ns);
/* 1: granted; 0: deadline passed; 2: the attachment ended; -1: exception set. */
int attachment_wait_memory(Attachment *a, uint32_t units, int64_t deadline_ns, const int *closed);
/* Of a sender that takes no more records: 1: it is gone; 0: deadline passed; -1: exception set. */
int attachment_wait_end(Attachment *a, int64_t deadline_ns);
/* The entry of a topic that is ready, borrowed; NULL without an exception: not ready. */
TopicRef *attachment_find_topic(Attachment *a, PyObject *name);
static inline TopicRef *attachment_topic(Attachment *a, PyObject *name) {
    return name == a->last_name ? a->last_topic : attachment_find_topic(a, name);
}
void attachment_compress(Attachment *a, const struct mp_place *place);
uint64_t attachment_random(Attachment *a);

/* (now, 30 to 60 s ago, topic names, peaks): see Reading in native.pyi; NULL with an exception. */
PyObject *metrics_read(const struct mp_region *region);
/* The Metrics of a pool; `open` is the pool's word for "the memory is mapped". */
PyObject *metrics_of_pool(PyObject *pool, const int *open, struct mp_region *region);

/* py_response.c, for the module's table. */
PyObject *produce_decode(PyObject *module, PyObject *args);

/* Reports what a callback raised, and drops it; an interrupt is passed on to the main thread. */
void report_unraisable(PyObject *where);
int timeout_to_deadline(PyObject *timeout, int64_t *deadline_ns); /* None: INT64_MAX */

#endif
