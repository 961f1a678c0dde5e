/* DeliveryFuture: a reference to its batch and an index. Its outcome costs nothing until asked. */
#include "native.h"

#define FREE_FUTURES 512
static Future *free_futures[FREE_FUTURES];
static int free_count;

Future *future_new(void) {
    Future *self;
    if (free_count > 0) {
        self = free_futures[--free_count];
        _Py_NewReference((PyObject *)self); /* its type it still has */
    } else {
        self = PyObject_New(Future, &Future_Type);
        if (!self) return NULL;
    }
    self->batch = NULL;
    return self;
}

static void future_dealloc(Future *self) {
    if (self->batch) pending_drop(self->batch);
    if (free_count < FREE_FUTURES)
        free_futures[free_count++] = self;
    else
        PyObject_Free(self);
}

PyObject *error_new(const char *name, PyObject *message) {
    PyObject *errors = PyImport_ImportModule("mpproducer.errors");
    if (!errors) return NULL;
    PyObject *result = PyObject_CallMethod(errors, name, "O", message);
    Py_DECREF(errors);
    return result;
}

/* A copy of a kept error: errors.py says why. NULL with an exception set. */
static PyObject *error_again(PyObject *error) {
    PyObject *errors = PyImport_ImportModule("mpproducer.errors");
    PyObject *fresh = errors ? PyObject_CallMethod(errors, "again", "O", error) : NULL;
    Py_XDECREF(errors);
    return fresh;
}

PyObject *future_failed(PyObject *topic, PyObject *error) {
    Future *self = future_new();
    if (!self) return NULL;
    self->batch = pending_new(topic);
    if (!self->batch) {
        Py_DECREF(self);
        return NULL;
    }
    self->batch->error = Py_NewRef(error);
    self->batch->done = 1;
    self->index = 0;
    self->timestamp_ms = -1;
    return (PyObject *)self;
}

static int future_is_done(const Future *self) {
    return self->batch->done || pending_outcome(self->batch, self->index) != NULL;
}

int pending_wait(Pending *batch, uint32_t index, int64_t deadline_ns) {
    if (batch->done || pending_outcome(batch, index)) return 1;
    if (attachment_usable(batch->attachment))
        return attachment_wait(batch->attachment, batch, index, deadline_ns);
    /* Only after a fork that Python was not told of: the pipe is the parent's. */
    PyObject *error = PyObject_CallFunction(
        mp_make_error, "OIis", Py_True, MP_REASON_WRONG_PROCESS, 0,
        "the future belongs to the process that called send(), not to its forked child");
    if (error) PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
    return -1;
}

/* 1 done, 0 not within the timeout, -1 exception. */
static int future_wait(Future *self, PyObject *timeout) {
    int64_t deadline;
    if (timeout_to_deadline(timeout, &deadline) < 0) return -1;
    return pending_wait(self->batch, self->index, deadline);
}

PyObject *pending_error(const Pending *batch, uint32_t index) {
    if (batch->error) return error_again(batch->error);
    const struct mp_outcome *outcome = pending_outcome(batch, index);
    if (outcome && outcome->kind == MP_ACKED) return NULL;
    if (!outcome) {
        /* The batch is told, but no frame spoke of this record: nobody knows its fate. */
        return PyObject_CallFunction(mp_make_error, "OIis", Py_True, 0u, 0,
                                     "the sender told no outcome for this record");
    }
    return PyObject_CallFunction(mp_make_error, "OIiO",
                                 outcome->kind == MP_FATE_UNKNOWN ? Py_True : Py_False,
                                 outcome->reason, (int)outcome->code,
                                 outcome->message ? outcome->message : Py_None);
}

static PyObject *future_metadata(Future *self) {
    const struct mp_outcome *outcome = pending_outcome(self->batch, self->index);
    const long long offset = outcome->base_offset < 0
                                 ? -1
                                 : outcome->base_offset + (self->index - outcome->first);
    const long long timestamp =
        outcome->append_time_ms >= 0 ? outcome->append_time_ms : self->timestamp_ms;
    return PyObject_CallFunction(mp_make_metadata, "OiLL", self->batch->topic,
                                 (int)self->batch->partition, offset, timestamp);
}

static int raise_timeout(void) {
    PyErr_SetString(PyExc_TimeoutError,
                    "the record's outcome is not known yet; it stays in delivery");
    return -1;
}

static PyObject *timeout_argument(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                                  const char *method) {
    const Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs + named > 1 ||
        (named && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout"))) {
        PyErr_Format(PyExc_TypeError, "%s() takes one argument, timeout (seconds or None)", method);
        return NULL;
    }
    return nargs + named ? args[0] : Py_None;
}

static PyObject *future_result(Future *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames) {
    PyObject *timeout = timeout_argument(args, nargs, kwnames, "result");
    if (!timeout) return NULL;
    const int done = future_wait(self, timeout);
    if (done < 0) return NULL;
    if (done == 0) {
        raise_timeout();
        return NULL;
    }
    PyObject *error = pending_error(self->batch, self->index);
    if (!error) return PyErr_Occurred() ? NULL : future_metadata(self);
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
    return NULL;
}

static PyObject *future_exception(Future *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *kwnames) {
    PyObject *timeout = timeout_argument(args, nargs, kwnames, "exception");
    if (!timeout) return NULL;
    const int done = future_wait(self, timeout);
    if (done < 0) return NULL;
    if (done == 0) {
        raise_timeout();
        return NULL;
    }
    PyObject *error = pending_error(self->batch, self->index);
    if (error) return error;
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *future_done(Future *self, PyObject *Py_UNUSED(ignored)) {
    if (!future_is_done(self) && attachment_usable(self->batch->attachment)) {
        Attachment *attachment = (Attachment *)Py_NewRef(self->batch->attachment);
        attachment_drain(attachment);
        Py_DECREF(attachment);
    }
    return PyBool_FromLong(future_is_done(self));
}

static PyObject *always_false(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored)) {
    Py_RETURN_FALSE;
}

static PyObject *future_add_done_callback(Future *self, PyObject *fn) {
    if (!PyCallable_Check(fn)) {
        PyErr_SetString(PyExc_TypeError, "the callback must be callable with one argument");
        return NULL;
    }
    Pending *batch = self->batch;
    /* Made first: that may run finalizers, in which the outcome may be told. */
    PyObject *entry = PyTuple_Pack(2, (PyObject *)self, fn);
    PyObject *list = entry ? PyList_New(0) : NULL;
    if (list && future_is_done(self)) {
        Py_DECREF(entry);
        Py_DECREF(list);
        PyObject *result = PyObject_CallOneArg(fn, (PyObject *)self);
        if (!result) report_unraisable(fn);
        Py_XDECREF(result);
        Py_RETURN_NONE;
    }
    if (list && !batch->callbacks) batch->callbacks = Py_NewRef(list);
    const int failed = !list || PyList_Append(batch->callbacks, entry) < 0;
    Py_XDECREF(entry);
    Py_XDECREF(list);
    if (failed) return NULL;
    Attachment *attachment = (Attachment *)Py_NewRef(batch->attachment);
    attachment->callbacks++;
    PyObject *watched = PyObject_CallOneArg(mp_watch, (PyObject *)attachment);
    Py_DECREF(attachment);
    if (!watched) return NULL;
    Py_DECREF(watched);
    Py_RETURN_NONE;
}

static PyObject *future_await(Future *self) {
    return PyObject_CallOneArg(mp_make_await, (PyObject *)self);
}

static PyObject *future_repr(Future *self) {
    const char *state = !future_is_done(self) ? "pending"
                        : !self->batch->error &&
                                pending_outcome(self->batch, self->index) &&
                                pending_outcome(self->batch, self->index)->kind == MP_ACKED
                            ? "acknowledged"
                            : "failed";
    if (self->batch->partition < 0) /* failed before it had one */
        return PyUnicode_FromFormat("<DeliveryFuture %U %s>", self->batch->topic, state);
    return PyUnicode_FromFormat("<DeliveryFuture %U-%d %s>", self->batch->topic,
                                (int)self->batch->partition, state);
}

static PyObject *get_topic(Future *self, void *Py_UNUSED(closure)) {
    return Py_NewRef(self->batch->topic);
}
static PyObject *get_partition(Future *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLong(self->batch->partition);
}
static PyObject *get_batch_id(Future *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->batch->batch_id);
}
static PyObject *get_index(Future *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->index);
}
static PyObject *get_attachment(Future *self, void *Py_UNUSED(closure)) {
    if (!self->batch->attachment) Py_RETURN_NONE;
    return Py_NewRef((PyObject *)self->batch->attachment);
}

static PyMethodDef future_methods[] = {
    {"result", (PyCFunction)(void *)future_result, METH_FASTCALL | METH_KEYWORDS,
     "result(timeout=None)\n--\n\nWait and return the RecordMetadata, or raise the record's error.\n\n"
     "timeout is in seconds; TimeoutError when it passes, the record stays in delivery."},
    {"get", (PyCFunction)(void *)future_result, METH_FASTCALL | METH_KEYWORDS,
     "get(timeout=None)\n--\n\nThe same as result(), as kafka-python names it."},
    {"exception", (PyCFunction)(void *)future_exception, METH_FASTCALL | METH_KEYWORDS,
     "exception(timeout=None)\n--\n\nWait and return the record's error, or None."},
    {"done", (PyCFunction)future_done, METH_NOARGS,
     "done()\n--\n\nWhether the outcome is known; never blocks."},
    {"cancel", always_false, METH_NOARGS, "cancel()\n--\n\nFalse: a record cannot be taken back."},
    {"cancelled", always_false, METH_NOARGS, "cancelled()\n--\n\nFalse."},
    {"running", always_false, METH_NOARGS, "running()\n--\n\nFalse."},
    {"add_done_callback", (PyCFunction)future_add_done_callback, METH_O,
     "add_done_callback(fn)\n--\n\nCall fn(future) once the outcome is known, in some thread of this "
     "process;\nat once if it is known already. What fn raises is reported and dropped."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef future_getset[] = {
    {"topic", (getter)get_topic, NULL, "Topic of the record.", NULL},
    {"partition", (getter)get_partition, NULL, "Partition, or -1 when it failed before.", NULL},
    {"batch_id", (getter)get_batch_id, NULL, "The batch that holds the record.", NULL},
    {"index", (getter)get_index, NULL, "Index of the record in its batch.", NULL},
    {"_attachment", (getter)get_attachment, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyAsyncMethods future_async = {.am_await = (unaryfunc)future_await};

PyTypeObject Future_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer.DeliveryFuture",
    .tp_basicsize = sizeof(Future),
    .tp_dealloc = (destructor)future_dealloc,
    .tp_repr = (reprfunc)future_repr,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The outcome of one record. Thread-safe; belongs to the process that called send().",
    .tp_methods = future_methods,
    .tp_getset = future_getset,
    .tp_as_async = &future_async,
};
