/* FrameReader: length-prefixed frames out of a byte stream, with a cap on what is buffered. */
#include "py_wire.h"

#include <errno.h>
#include <sys/socket.h>

enum { START_BYTES = 16 * 1024, LENGTH_BYTES = 4 };
enum { KEEP_BYTES = 1024 * 1024 }; /* a larger buffer is given back after its frame */

typedef struct {
    PyObject_HEAD
    PyObject *buffer; /* a bytearray: a stream that is no socket gets views of it */
    Py_ssize_t filled;
    unsigned int most;
    PyObject *too_large; /* the class of the error; an instance would lead back to us */
    int64_t refused;     /* a length that is not taken: nothing can follow it; -1: none was */
} FrameReader;

static PyObject *reader_make(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"max_frame_bytes", "too_large", NULL};
    PyObject *most, *too_large;
    int64_t bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", names, &most, &too_large) ||
        integer_of(most, 0, INT32_MAX, "max_frame_bytes", &bytes) < 0)
        return NULL;
    FrameReader *self = (FrameReader *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->most = (unsigned int)bytes;
    self->too_large = Py_NewRef(too_large);
    self->refused = -1;
    self->buffer = PyByteArray_FromStringAndSize(NULL, START_BYTES);
    if (self->buffer) return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return NULL;
}

static void reader_dealloc(FrameReader *self) {
    Py_XDECREF(self->buffer);
    Py_XDECREF(self->too_large);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static inline uint8_t *bytes_of(const FrameReader *self) {
    return (uint8_t *)PyByteArray_AS_STRING(self->buffer);
}

static inline Py_ssize_t room_of(const FrameReader *self) {
    return PyByteArray_GET_SIZE(self->buffer) - self->filled;
}

/* What stands behind `start` goes to the front of a buffer that holds the next frame. */
static int make_room(FrameReader *self, Py_ssize_t start, Py_ssize_t need) {
    const Py_ssize_t left = self->filled - start, size = PyByteArray_GET_SIZE(self->buffer);
    if (need > size || (size > KEEP_BYTES && need <= START_BYTES)) {
        PyObject *fresh =
            PyByteArray_FromStringAndSize(NULL, need > START_BYTES ? need : START_BYTES);
        if (!fresh) return -1;
        memcpy(PyByteArray_AS_STRING(fresh), bytes_of(self) + start, (size_t)left);
        Py_SETREF(self->buffer, fresh);
    } else if (start && left) {
        memmove(bytes_of(self), bytes_of(self) + start, (size_t)left);
    }
    self->filled = left;
    return 0;
}

/* The error of the refused length, None without one; NULL with an exception. */
static PyObject *reader_refused(FrameReader *self, void *Py_UNUSED(closure)) {
    if (self->refused < 0) Py_RETURN_NONE;
    PyObject *why = PyUnicode_FromFormat("a frame of %lld bytes was announced; is a Kafka broker there, "
                                         "and does it expect PLAINTEXT?",
                                         (long long)self->refused);
    PyObject *error = why ? PyObject_CallOneArg(self->too_large, why) : NULL;
    Py_XDECREF(why);
    return error;
}

/* 1: no length was refused; 0: the error is set. */
static int check_refused(FrameReader *self) {
    PyObject *error = reader_refused(self, NULL);
    if (error && error != Py_None) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return error == Py_None;
}

/* Takes the whole frames out of what is there. */
static int take_frames(FrameReader *self, PyObject *frames) {
    Py_ssize_t start = 0;
    while (self->filled - start >= LENGTH_BYTES) {
        const uint8_t *at = bytes_of(self) + start;
        const uint32_t length = (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | at[2] << 8 | at[3];
        if (length > self->most) {
            self->refused = length;
            return PyList_GET_SIZE(frames) || check_refused(self) ? 0 : -1; /* whole ones count */
        }
        const Py_ssize_t whole = LENGTH_BYTES + (Py_ssize_t)length;
        if (whole > self->filled - start) return make_room(self, start, whole);
        PyObject *frame = PyBytes_FromStringAndSize((const char *)at + LENGTH_BYTES, length);
        const int failed = !frame || PyList_Append(frames, frame) < 0;
        Py_XDECREF(frame);
        if (failed) return -1;
        start += whole;
    }
    return make_room(self, start, START_BYTES);
}

/* (count, frames), after `count` bytes have come in behind what was there; -1: no more will. */
static PyObject *received(FrameReader *self, Py_ssize_t count) {
    PyObject *frames = PyList_New(0);
    if (!frames) return NULL;
    if (count > 0) {
        self->filled += count;
        if (take_frames(self, frames) < 0) {
            Py_DECREF(frames);
            return NULL;
        }
    }
    PyObject *number = PyLong_FromSsize_t(count), *told = number ? PyTuple_New(2) : NULL;
    if (!told) {
        Py_XDECREF(number);
        Py_DECREF(frames);
        return NULL;
    }
    PyTuple_SET_ITEM(told, 0, number);
    PyTuple_SET_ITEM(told, 1, frames);
    return told;
}

/* With the GIL: it does not wait, and there is seldom more than one answer to copy. */
static PyObject *reader_receive(FrameReader *self, PyObject *arg) {
    int64_t fd;
    if (!check_refused(self) || integer_of(arg, INT_MIN, INT_MAX, "descriptor", &fd) < 0) return NULL;
    const ssize_t count = recv((int)fd, bytes_of(self) + self->filled, (size_t)room_of(self),
                               MSG_DONTWAIT);
    if (count > 0) return received(self, count);
    if (count == 0) return received(self, -1);
    if (errno == EAGAIN || errno == EWOULDBLOCK) return received(self, 0);
    if (errno != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
    return PyErr_CheckSignals() < 0 ? NULL : received(self, 0);
}

static PyObject *reader_read(FrameReader *self, PyObject *read_into) {
    if (!check_refused(self)) return NULL;
    const Py_ssize_t room = room_of(self), filled = self->filled;
    PyObject *buffer = Py_NewRef(self->buffer);
    PyObject *whole = PyMemoryView_FromObject(buffer);
    PyObject *view = whole ? PySequence_GetSlice(whole, filled, filled + room) : NULL;
    PyObject *given = view ? PyObject_CallOneArg(read_into, view) : NULL;
    const Py_ssize_t count = given ? PyLong_AsSsize_t(given) : -1;
    Py_XDECREF(given);
    Py_XDECREF(view);
    Py_XDECREF(whole);
    const int moved = self->buffer != buffer || self->filled != filled;
    Py_DECREF(buffer);
    if (count == -1 && PyErr_Occurred()) return NULL;
    if (moved || count < 0 || count > room) {
        PyErr_Format(PyExc_ValueError, "%zd bytes cannot have come into a room of %zd", count, room);
        return NULL;
    }
    return received(self, count);
}

static PyObject *reader_buffer_bytes(FrameReader *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSsize_t(PyByteArray_GET_SIZE(self->buffer));
}

static PyGetSetDef reader_getset[] = {
    {"refused", (getter)reader_refused, NULL, NULL, NULL},
    {"buffer_bytes", (getter)reader_buffer_bytes, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef reader_methods[] = {
    {"receive", (PyCFunction)reader_receive, METH_O, NULL},
    {"read", (PyCFunction)reader_read, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject FrameReader_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.FrameReader",
    .tp_basicsize = sizeof(FrameReader),
    .tp_new = reader_make,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = reader_methods,
    .tp_getset = reader_getset,
};
