/* Send: bytes on their way to one socket, from as many places as they are in, and how far they are. */
#include "py_wire.h"

#include <errno.h>
#include <sys/socket.h>

#include "structmember.h"

/* Linux takes at most IOV_MAX buffers in a call; more would fail with EMSGSIZE. */
#define MOST_IOVS 1024

Send *send_new(Py_ssize_t iovs, Py_ssize_t owners, Py_ssize_t glue_bytes) {
    const size_t front = (size_t)iovs * sizeof(struct iovec) + (size_t)owners * sizeof(PyObject *);
    Send *self = PyObject_New(Send, &Send_Type);
    if (!self) return NULL;
    self->size = self->left = self->iovs = self->next = self->owners = 0;
    self->iov = PyMem_Malloc(front + (size_t)glue_bytes);
    if (!self->iov) {
        Py_DECREF((PyObject *)self);
        PyErr_NoMemory();
        return NULL;
    }
    self->owner = (PyObject **)(self->iov + iovs);
    self->glue = (uint8_t *)(self->owner + owners);
    return self;
}

static void let_go(Send *self) {
    while (self->owners > 0) Py_DECREF(self->owner[--self->owners]);
}

static void send_dealloc(Send *self) {
    let_go(self);
    PyMem_Free(self->iov);
    PyObject_Free(self);
}

static PyObject *send_make(PyTypeObject *Py_UNUSED(type), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"buffers", NULL};
    PyObject *given;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &given)) return NULL;
    PyObject *buffers = PySequence_Tuple(given);
    if (!buffers) return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(buffers);
    Send *self = send_new(count, count, 0);
    for (Py_ssize_t i = 0; self && i < count; i++) {
        PyObject *view = PyMemoryView_FromObject(PyTuple_GET_ITEM(buffers, i));
        if (view) self->owner[self->owners++] = view;
        const Py_buffer *buffer = view ? PyMemoryView_GET_BUFFER(view) : NULL;
        if (buffer && !PyBuffer_IsContiguous(buffer, 'C'))
            PyErr_SetString(PyExc_BufferError, "a buffer that is sent must be contiguous");
        if (!view || PyErr_Occurred()) {
            Py_DECREF((PyObject *)self);
            self = NULL;
        } else if (buffer->len > 0) {
            self->iov[self->iovs++] = (struct iovec){buffer->buf, (size_t)buffer->len};
            self->size += buffer->len;
        }
    }
    if (self) self->left = self->size;
    Py_DECREF(buffers);
    return (PyObject *)self;
}

/* So many of the bytes that are left were handed over. With the last one the memory is let go of. */
static void advance(Send *self, Py_ssize_t count) {
    self->left -= count;
    while (self->next < self->iovs) {
        struct iovec *first = &self->iov[self->next];
        if ((size_t)count < first->iov_len) {
            first->iov_base = (char *)first->iov_base + count;
            first->iov_len -= (size_t)count;
            return;
        }
        count -= (Py_ssize_t)first->iov_len;
        self->next++;
    }
    let_go(self);
}

/* A socket's buffer is full only when it refuses: the peer reads meanwhile, and one more call costs
 * less than a turn of the loop. */
static PyObject *send_write_to(Send *self, PyObject *arg) {
    int64_t fd;
    if (integer_of(arg, INT_MIN, INT_MAX, "descriptor", &fd) < 0) return NULL;
    while (self->left > 0) {
        struct msghdr message = {.msg_iov = self->iov + self->next};
        const Py_ssize_t iovs = self->iovs - self->next;
        message.msg_iovlen = (size_t)(iovs < MOST_IOVS ? iovs : MOST_IOVS);
        ssize_t sent;
        Py_BEGIN_ALLOW_THREADS
        sent = sendmsg((int)fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        Py_END_ALLOW_THREADS
        if (sent > 0) {
            advance(self, sent);
        } else if (sent == 0 || errno == EAGAIN || errno == EWOULDBLOCK) {
            Py_RETURN_FALSE;
        } else if (errno != EINTR) {
            return PyErr_SetFromErrno(PyExc_OSError);
        } else if (PyErr_CheckSignals() < 0) {
            return NULL;
        } else {
            Py_RETURN_FALSE; /* the socket is writable, and whoever waits for that goes on at once */
        }
    }
    Py_RETURN_TRUE;
}

static PyObject *send_peek(Send *self, PyObject *arg) {
    Py_ssize_t count = PyLong_AsSsize_t(arg);
    if (count == -1 && PyErr_Occurred()) return NULL;
    if (count < 0) count = 0;
    if (count > self->left) count = self->left;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count);
    char *at = bytes ? PyBytes_AS_STRING(bytes) : NULL;
    for (Py_ssize_t i = self->next; at && count > 0; i++) {
        const size_t length = self->iov[i].iov_len;
        const size_t part = length < (size_t)count ? length : (size_t)count;
        memcpy(at, self->iov[i].iov_base, part);
        at += part;
        count -= (Py_ssize_t)part;
    }
    return bytes;
}

static PyObject *send_advance(Send *self, PyObject *arg) {
    const Py_ssize_t count = PyLong_AsSsize_t(arg);
    if (count == -1 && PyErr_Occurred()) return NULL;
    if (count < 0 || count > self->left) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are left, not %zd", self->left, count);
        return NULL;
    }
    advance(self, count);
    Py_RETURN_NONE;
}

static PyMemberDef send_members[] = {
    {"size_bytes", T_PYSSIZET, offsetof(Send, size), READONLY, NULL},
    {"left_bytes", T_PYSSIZET, offsetof(Send, left), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef send_methods[] = {
    {"write_to", (PyCFunction)send_write_to, METH_O, NULL},
    {"peek", (PyCFunction)send_peek, METH_O, NULL},
    {"advance", (PyCFunction)send_advance, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject Send_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.Send",
    .tp_basicsize = sizeof(Send),
    .tp_new = send_make,
    .tp_dealloc = (destructor)send_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = send_methods,
    .tp_members = send_members,
};
