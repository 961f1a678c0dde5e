/* What goes to a broker: the bytes of batches where they are, and the glue around them. */
#ifndef MP_PY_WIRE_H
#define MP_PY_WIRE_H

#include "native.h"

#include <sys/uio.h>

#include "pool.h"

enum { MP_HEADER_BYTES = 61 };

static inline uint8_t *put_big(uint8_t *at, uint64_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; i--, value >>= 8) at[i] = (uint8_t)value;
    return at + bytes;
}

/* 0, or -1 with an exception: no int, or one that its field on the wire does not hold. */
int integer_of(PyObject *number, int64_t least, int64_t most, const char *what, int64_t *value);

/* The bytes of a sealed batch in the memory that holds them, and its header. */
typedef struct {
    PyObject_VAR_HEAD
    Py_buffer held; /* the memory stays mapped, and as long as it is, for as long as we are */
    int64_t base_timestamp, max_timestamp;
    uint32_t records, size, crc, attributes;
    int64_t producer_id;
    int32_t sequence;
    int16_t epoch;
    uint8_t stamped; /* the header is made, for the three before */
    uint8_t header[MP_HEADER_BYTES];
    struct iovec piece[];
} Body;

extern PyTypeObject Body_Type, Send_Type, FrameReader_Type;

/* The body of the records that a walk found in the memory of this pool; NULL with an exception. */
PyObject *body_of_walk(PyObject *pool, const struct mp_walk *walk);
/* Its header under this identity, made anew only when that changes. */
const uint8_t *body_header(Body *self, int64_t producer_id, int16_t epoch, int32_t sequence);

/* Bytes on their way to a socket. Everything it owns is in one block, which `iov` begins. */
typedef struct {
    PyObject_HEAD
    Py_ssize_t size, left; /* bytes: of all, and not handed over yet */
    struct iovec *iov;     /* `next` is the first that has something left */
    Py_ssize_t iovs, next;
    PyObject **owner; /* what keeps the memory behind `iov` */
    Py_ssize_t owners;
    uint8_t *glue;
} Send;

/* With room for so much; the caller fills it and counts. NULL with an exception. */
Send *send_new(Py_ssize_t iovs, Py_ssize_t owners, Py_ssize_t glue_bytes);

/* py_request.c, for the module's table. */
PyObject *produce_request(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
