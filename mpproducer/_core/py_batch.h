/* Runs: where the records of one send_many went. The C half of BatchFuture. */
#ifndef MP_PY_BATCH_H
#define MP_PY_BATCH_H

#include "native.h"

/* Records that follow each other in one batch, or that failed with one error. */
struct run {
    Pending *batch;
    uint32_t index, count; /* in the batch */
};

typedef struct {
    PyObject_HEAD
    struct run *run;
    Py_ssize_t used, room;
    Py_ssize_t count;    /* records that have a run */
    Py_ssize_t records;  /* of the call */
    uint32_t *order;     /* record at each place of the runs, or NULL: in order */
    int64_t *timestamps; /* per record, or NULL: all have timestamp_ms */
    int64_t timestamp_ms;
} Runs;

extern PyTypeObject Runs_Type;

Runs *runs_new(Py_ssize_t records);
/* 0, or -1 with MemoryError: makes sure that the next runs_add cannot fail. */
int runs_reserve(Runs *runs);
void runs_add(Runs *runs, Pending *batch, uint32_t index, uint32_t count);
/* The next `count` records failed with the exception that is set, which is cleared. 0, or -1. */
int runs_fail(Runs *runs, PyObject *topic, Py_ssize_t count);

#endif
