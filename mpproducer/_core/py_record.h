/* One record as send() got it. */
#ifndef MP_PY_RECORD_H
#define MP_PY_RECORD_H

#include "native.h"

#define MAX_HEADERS_STACK 512

/* The arguments of one send, decoded; `views` are released by release_record. */
struct request {
    PyObject *topic, *partition;
    struct mp_record record;
    Py_buffer views[2];
    int view_count;
    int has_timestamp;
    uint8_t *headers;
    uint8_t headers_stack[MAX_HEADERS_STACK];
    size_t too_large; /* bytes, when a length does not fit the encoding at all */
};

/* Each returns 0, or -1 with an exception that names what is wrong. None means absent. */
int take_headers(struct request *r, PyObject *object);
int take_timestamp(struct request *r, PyObject *object);
int take_partition(PyObject *object, int64_t *partition);

#endif
