/* Body: a sealed batch as it goes to a broker. Nothing of its records is copied: it holds the memory
 * they are in, as a view of it would, and says where in it they are. */
#include "py_wire.h"

#include "crc.h"
#include "structmember.h"

/* A header's CRC is of what stands behind it: the attributes and on. */
enum { CRC_AT = 17, CRC_FROM = 21, LENGTH_FROM = 12, MAGIC = 2 };

int integer_of(PyObject *number, int64_t least, int64_t most, const char *what, int64_t *value) {
    int overflow;
    if (!PyLong_Check(number)) {
        PyErr_Format(PyExc_TypeError, "%s is a number, not %R", what, number);
        return -1;
    }
    *value = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (!overflow && *value >= least && *value <= most) return 0;
    PyErr_Format(PyExc_OverflowError, "%s %R is not in %lld..%lld", what, number, (long long)least,
                 (long long)most);
    return -1;
}

/* The memory is held; what is in it is the caller's to say. */
static Body *body_new(PyObject *memory, Py_ssize_t pieces) {
    Body *self = PyObject_NewVar(Body, &Body_Type, pieces);
    if (!self) return NULL;
    self->stamped = 0;
    self->held.obj = NULL; /* nothing to release yet */
    if (PyObject_GetBuffer(memory, &self->held, PyBUF_SIMPLE) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return self;
}

PyObject *body_of_walk(PyObject *pool, const struct mp_walk *walk) {
    Body *self = body_new(pool, walk->spans);
    if (!self) return NULL;
    self->base_timestamp = walk->base_timestamp;
    self->max_timestamp = walk->max_timestamp;
    self->records = walk->records;
    self->size = walk->bytes;
    self->crc = walk->crc;
    self->attributes = 0;
    for (uint32_t i = 0; i < walk->spans; i++) {
        self->piece[i].iov_base = (char *)self->held.buf + walk->span[i].offset;
        self->piece[i].iov_len = walk->span[i].bytes;
    }
    return (PyObject *)self;
}

static void body_dealloc(Body *self) {
    PyBuffer_Release(&self->held);
    PyObject_Free(self);
}

static uint32_t checksum(const Body *self) {
    uint32_t crc = 0;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        crc = mp_crc32c(crc, self->piece[i].iov_base, self->piece[i].iov_len);
    return crc;
}

/* The pieces of a body made by hand: all of the memory, or these spans of it. */
static int take_spans(Body *self, PyObject *spans) {
    const Py_ssize_t length = self->held.len;
    uint64_t size = 0;
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++) {
        int64_t offset = 0, bytes = length;
        PyObject *span = spans ? PyList_GET_ITEM(spans, i) : NULL;
        if (span && (!PyTuple_Check(span) || PyTuple_GET_SIZE(span) != 2)) {
            PyErr_SetString(PyExc_TypeError, "a span is a tuple of its offset and its bytes");
            return -1;
        }
        /* Not by their __index__, which could take the list from under us. */
        if (span &&
            (integer_of(PyTuple_GET_ITEM(span, 0), INT64_MIN, INT64_MAX, "offset", &offset) < 0 ||
             integer_of(PyTuple_GET_ITEM(span, 1), INT64_MIN, INT64_MAX, "length", &bytes) < 0))
            return -1;
        if (offset < 0 || bytes < 0 || offset > length || bytes > length - offset) {
            PyErr_Format(PyExc_ValueError, "%lld bytes at %lld are not in a memory of %zd bytes",
                         (long long)bytes, (long long)offset, length);
            return -1;
        }
        self->piece[i] = (struct iovec){(char *)self->held.buf + offset, (size_t)bytes};
        size += (uint64_t)bytes;
    }
    if (size > INT32_MAX - MP_HEADER_BYTES) {
        PyErr_SetString(PyExc_OverflowError, "a batch does not hold so many bytes");
        return -1;
    }
    self->size = (uint32_t)size;
    return 0;
}

static PyObject *body_make(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"memory", "records", "base_timestamp_ms", "max_timestamp_ms",
                            "attributes", "spans", "crc", NULL};
    PyObject *memory, *spans = NULL, *crc = Py_None;
    unsigned records;
    long long base, most;
    unsigned short attributes = 0;
    int64_t given = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OILL|HO!O", names, &memory, &records, &base, &most,
                                     &attributes, &PyList_Type, &spans, &crc) ||
        (crc != Py_None && integer_of(crc, 0, UINT32_MAX, "CRC", &given) < 0))
        return NULL;
    Body *self = body_new(memory, spans ? PyList_GET_SIZE(spans) : 1);
    if (!self) return NULL;
    if (take_spans(self, spans) < 0) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    self->base_timestamp = base;
    self->max_timestamp = most;
    self->records = records;
    self->attributes = attributes;
    self->crc = crc == Py_None ? checksum(self) : (uint32_t)given;
    return (PyObject *)self;
}

const uint8_t *body_header(Body *self, int64_t producer_id, int16_t epoch, int32_t sequence) {
    if (self->stamped && self->producer_id == producer_id && self->epoch == epoch &&
        self->sequence == sequence)
        return self->header;
    uint8_t *at = put_big(self->header, 0, 8); /* the base offset is the broker's to give */
    at = put_big(at, MP_HEADER_BYTES - LENGTH_FROM + self->size, 4);
    at = put_big(at, UINT32_MAX, 4); /* and the leader epoch */
    *at = MAGIC;
    at = put_big(self->header + CRC_FROM, self->attributes, 2);
    at = put_big(at, self->records - 1, 4);
    at = put_big(at, (uint64_t)self->base_timestamp, 8);
    at = put_big(at, (uint64_t)self->max_timestamp, 8);
    at = put_big(at, (uint64_t)producer_id, 8);
    at = put_big(at, (uint16_t)epoch, 2);
    at = put_big(at, (uint32_t)sequence, 4);
    put_big(at, self->records, 4);
    const uint32_t crc = mp_crc32c(0, self->header + CRC_FROM, MP_HEADER_BYTES - CRC_FROM);
    put_big(self->header + CRC_AT, mp_crc32c_join(crc, self->crc, self->size), 4);
    self->producer_id = producer_id;
    self->epoch = epoch;
    self->sequence = sequence;
    self->stamped = 1;
    return self->header;
}

static PyObject *body_header_of(Body *self, PyObject *args) {
    long long producer_id;
    short epoch;
    int sequence;
    if (!PyArg_ParseTuple(args, "Lhi", &producer_id, &epoch, &sequence)) return NULL;
    return PyBytes_FromStringAndSize((const char *)body_header(self, producer_id, epoch, sequence),
                                     MP_HEADER_BYTES);
}

static PyObject *body_unchanged(Body *self, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(checksum(self) == self->crc);
}

static PyObject *body_pieces(Body *self, void *Py_UNUSED(closure)) {
    PyObject *whole = PyMemoryView_FromObject(self->held.obj);
    PyObject *pieces = whole ? PyList_New(Py_SIZE(self)) : NULL;
    for (Py_ssize_t i = 0; pieces && i < Py_SIZE(self); i++) {
        const Py_ssize_t from = (char *)self->piece[i].iov_base - (char *)self->held.buf;
        PyObject *piece =
            PySequence_GetSlice(whole, from, from + (Py_ssize_t)self->piece[i].iov_len);
        if (!piece) Py_CLEAR(pieces);
        else PyList_SET_ITEM(pieces, i, piece);
    }
    Py_XDECREF(whole);
    return pieces;
}

#define FIELD(name, type, where) {name, type, offsetof(Body, where), READONLY, NULL}
static PyMemberDef body_members[] = {
    FIELD("size_bytes", T_UINT, size),
    FIELD("records", T_UINT, records),
    FIELD("crc", T_UINT, crc),
    FIELD("attributes", T_UINT, attributes),
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef body_getset[] = {
    {"pieces", (getter)body_pieces, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef body_methods[] = {
    {"header", (PyCFunction)body_header_of, METH_VARARGS, NULL},
    {"unchanged", (PyCFunction)body_unchanged, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject Body_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.Body",
    .tp_basicsize = sizeof(Body),
    .tp_itemsize = sizeof(struct iovec),
    .tp_new = body_make,
    .tp_dealloc = (destructor)body_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = body_methods,
    .tp_members = body_members,
    .tp_getset = body_getset,
};
