/* One record as send() got it. */
#ifndef MP_PY_RECORD_H
#define MP_PY_RECORD_H

#include "native.h"

#define MAX_HEADERS_STACK 512
#define MAX_FIELD (INT32_MAX / 2) /* bytes of a key or value; what is longer is too large anyway */

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

static inline int32_t take_size(struct request *r, Py_ssize_t size) {
    if (size <= MAX_FIELD) return (int32_t)size;
    r->too_large = (size_t)size;
    return 0;
}

/* Each returns 0, or -1 with an exception that names what is wrong. None means absent. */
int take_buffer(struct request *r, PyObject *object, const char *what, const uint8_t **data,
                int32_t *length);
int take_headers(struct request *r, PyObject *object);
int take_timestamp(struct request *r, PyObject *object);
int take_partition(PyObject *object, int64_t *partition);

static inline int take_bytes(struct request *r, PyObject *object, const char *what,
                             const uint8_t **data, int32_t *length) {
    if (PyBytes_Check(object)) {
        *data = (const uint8_t *)PyBytes_AS_STRING(object);
        *length = take_size(r, PyBytes_GET_SIZE(object));
        return 0;
    }
    if (object != Py_None) return take_buffer(r, object, what, data, length);
    *data = NULL;
    *length = -1;
    return 0;
}

static inline void release_record(struct request *r) {
    for (int i = 0; i < r->view_count; i++) PyBuffer_Release(&r->views[i]);
    if (r->headers && r->headers != r->headers_stack) PyMem_Free(r->headers);
    r->view_count = 0;
    r->headers = NULL;
}

/* All but topic and partition; undone by release_record when it has succeeded. */
static inline int take_record(struct request *r, PyObject *value, PyObject *key, PyObject *headers,
                              PyObject *timestamp) {
    r->record.headers = NULL;
    r->record.headers_bytes = 0;
    r->headers = NULL;
    r->view_count = 0;
    r->too_large = 0;
    r->has_timestamp = 0;
    if (take_bytes(r, value, "value", &r->record.value, &r->record.value_bytes) == 0 &&
        take_bytes(r, key, "key", &r->record.key, &r->record.key_bytes) == 0 &&
        (headers == Py_None || take_headers(r, headers) == 0) &&
        (timestamp == Py_None || take_timestamp(r, timestamp) == 0))
        return 0;
    release_record(r);
    return -1;
}

#endif
