#include "py_batch.h"

Runs *runs_new(Py_ssize_t records) {
    Runs *self = PyObject_New(Runs, &Runs_Type);
    if (!self) return NULL;
    memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
    self->records = records;
    return self;
}

static void runs_dealloc(Runs *self) {
    for (Py_ssize_t i = 0; i < self->used; i++) pending_drop(self->run[i].batch);
    PyMem_Free(self->run);
    PyMem_Free(self->order);
    PyMem_Free(self->timestamps);
    PyObject_Free(self);
}

int runs_reserve(Runs *self) {
    if (self->used < self->room) return 0;
    const Py_ssize_t room = self->room ? self->room * 2 : 4;
    struct run *more = PyMem_Realloc(self->run, (size_t)room * sizeof *more);
    if (!more) {
        PyErr_NoMemory();
        return -1;
    }
    self->run = more;
    self->room = room;
    return 0;
}

void runs_add(Runs *self, Pending *batch, uint32_t index, uint32_t count) {
    struct run *last = self->used ? &self->run[self->used - 1] : NULL;
    self->count += count;
    if (last && last->batch == batch && last->index + last->count == index) {
        last->count += count;
        return;
    }
    self->run[self->used++] = (struct run){pending_keep(batch), index, count};
}

int runs_fail(Runs *self, PyObject *topic, Py_ssize_t count) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    PyException_SetTraceback(error, Py_None); /* the future is not to keep frames alive */
    while (count > 0) {
        Pending *batch = runs_reserve(self) < 0 ? NULL : pending_new(topic);
        if (!batch) {
            Py_DECREF(error);
            return -1;
        }
        const uint32_t part = count < UINT32_MAX ? (uint32_t)count : UINT32_MAX;
        batch->error = Py_NewRef(error);
        batch->done = 1;
        runs_add(self, batch, 0, part);
        pending_drop(batch);
        count -= part;
    }
    Py_DECREF(error);
    return 0;
}

/* --- outcomes */

/* Records that share one outcome: `count` from `index` on in their batch, whose places begin at
 * `place`. */
struct stretch {
    Py_ssize_t run, place;
    Pending *batch;
    uint32_t index, count;
    const struct mp_outcome *outcome; /* NULL: an error of the batch, or nobody told */
};

/* Moves on to the next stretch; all zero is before the first. 0 at the end. */
static int next_stretch(const Runs *self, struct stretch *s) {
    const struct run *run = &self->run[s->run];
    uint32_t from = s->batch ? s->index + s->count : s->run < self->used ? run->index : 0;
    s->place += s->count;
    if (s->batch && from == run->index + run->count && ++s->run < self->used)
        from = (++run)->index;
    if (s->run >= self->used) return 0;
    const uint32_t end = run->index + run->count;
    s->batch = run->batch;
    s->index = from;
    s->outcome = run->batch->error ? NULL : pending_outcome(run->batch, from);
    uint32_t until = end;
    if (s->outcome && s->outcome->count < end - s->outcome->first)
        until = s->outcome->first + s->outcome->count;
    else if (!s->outcome && !run->batch->error)
        until = from + 1;
    s->count = until - from;
    return 1;
}

static inline int is_acked(const struct stretch *s) {
    return s->outcome && s->outcome->kind == MP_ACKED;
}

static inline Py_ssize_t record_at(const Runs *self, Py_ssize_t place) {
    return self->order ? (Py_ssize_t)self->order[place] : place;
}

static inline long long offset_of(const struct stretch *s, uint32_t i) {
    if (!is_acked(s) || s->outcome->base_offset < 0) return -1;
    return s->outcome->base_offset + (s->index + i - s->outcome->first);
}

static int is_done(const Runs *self) {
    for (Py_ssize_t i = 0; i < self->used; i++)
        if (!self->run[i].batch->done) return 0;
    return 1;
}

static PyObject *runs_done(Runs *self, PyObject *Py_UNUSED(ignored)) {
    Attachment *drained = NULL;
    for (Py_ssize_t i = 0; i < self->used; i++) {
        const Pending *batch = self->run[i].batch;
        if (batch->done || batch->attachment == drained) continue;
        if (!attachment_usable(batch->attachment)) continue;
        drained = batch->attachment;
        Py_INCREF((PyObject *)drained);
        attachment_drain(drained);
        Py_DECREF((PyObject *)drained);
    }
    return PyBool_FromLong(is_done(self));
}

/* Whole batches are waited for: they may be split, and the parts answered one by one. */
static PyObject *runs_wait(Runs *self, PyObject *timeout) {
    int64_t deadline;
    if (timeout_to_deadline(timeout, &deadline) < 0) return NULL;
    for (Py_ssize_t i = 0; i < self->used; i++) {
        const int got = pending_wait(self->run[i].batch, UINT32_MAX, deadline);
        if (got < 0) return NULL;
        if (got == 0) Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

/* A future of each batch that is not told yet: they bring callbacks and awaits. */
static PyObject *runs_batches(Runs *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *found = PySet_New(NULL), *list = PyList_New(0);
    for (Py_ssize_t i = 0; found && list && i < self->used; i++) {
        Pending *batch = self->run[i].batch;
        if (batch->done) continue;
        PyObject *id = PyLong_FromVoidPtr(batch);
        const int known = id ? PySet_Contains(found, id) : -1;
        Future *whole = known == 0 && PySet_Add(found, id) == 0 ? future_new() : NULL;
        Py_XDECREF(id);
        if (whole) {
            whole->batch = pending_keep(batch);
            whole->index = UINT32_MAX; /* no frame ever speaks of it: done with the batch */
            whole->timestamp_ms = -1;
        }
        if (known != 1 && (!whole || PyList_Append(list, (PyObject *)whole) < 0)) Py_CLEAR(list);
        Py_XDECREF((PyObject *)whole);
    }
    Py_XDECREF(found);
    if (!found) Py_CLEAR(list);
    return list;
}

static PyObject *runs_failed(Runs *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0);
    for (struct stretch s = {0}; list && next_stretch(self, &s);) {
        if (is_acked(&s)) continue;
        PyObject *error = pending_error(s.batch, s.index);
        for (uint32_t i = 0; list && i < s.count; i++) {
            PyObject *entry =
                error ? Py_BuildValue("nO", record_at(self, s.place + i), error) : NULL;
            if (!entry || PyList_Append(list, entry) < 0) Py_CLEAR(list);
            Py_XDECREF(entry);
        }
        Py_XDECREF(error);
    }
    return list;
}

static PyObject *runs_first_error(Runs *self, PyObject *Py_UNUSED(ignored)) {
    struct stretch first = {0};
    Py_ssize_t record = PY_SSIZE_T_MAX;
    for (struct stretch s = {0}; next_stretch(self, &s);)
        for (uint32_t i = 0; !is_acked(&s) && i < s.count; i++)
            if (record_at(self, s.place + i) < record) {
                record = record_at(self, s.place + i);
                first = s;
            }
    if (!first.batch) Py_RETURN_NONE;
    return pending_error(first.batch, first.index);
}

static PyObject *runs_offsets(Runs *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, self->count * (Py_ssize_t)sizeof(int64_t));
    if (!bytes) return NULL;
    char *out = PyBytes_AS_STRING(bytes);
    for (struct stretch s = {0}; next_stretch(self, &s);)
        for (uint32_t i = 0; i < s.count; i++) {
            const int64_t offset = offset_of(&s, i);
            memcpy(out + record_at(self, s.place + i) * 8, &offset, sizeof offset);
        }
    return bytes;
}

static PyObject *runs_partitions(Runs *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, self->count * (Py_ssize_t)sizeof(int32_t));
    if (!bytes) return NULL;
    char *out = PyBytes_AS_STRING(bytes);
    Py_ssize_t place = 0;
    for (Py_ssize_t n = 0; n < self->used; n++)
        for (uint32_t i = 0; i < self->run[n].count; i++, place++)
            memcpy(out + record_at(self, place) * 4, &self->run[n].batch->partition, 4);
    return bytes;
}

/* All were acknowledged. */
static PyObject *runs_metadata(Runs *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(self->count);
    for (struct stretch s = {0}; list && next_stretch(self, &s);)
        for (uint32_t i = 0; list && i < s.count; i++) {
            const Py_ssize_t record = record_at(self, s.place + i);
            const long long own = self->timestamps ? self->timestamps[record] : self->timestamp_ms;
            const long long told = s.outcome ? s.outcome->append_time_ms : -1;
            PyObject *one = PyObject_CallFunction(mp_make_metadata, "OiLL", s.batch->topic,
                                                  (int)s.batch->partition, offset_of(&s, i),
                                                  told >= 0 ? told : own);
            if (one)
                PyList_SET_ITEM(list, record, one);
            else
                Py_CLEAR(list);
        }
    return list;
}

static Py_ssize_t runs_length(Runs *self) { return self->count; }

static PyObject *runs_sizeof(Runs *self, PyObject *Py_UNUSED(ignored)) {
    size_t bytes = sizeof *self + (size_t)self->room * sizeof *self->run;
    if (self->order) bytes += (size_t)self->records * sizeof *self->order;
    if (self->timestamps) bytes += (size_t)self->records * sizeof *self->timestamps;
    return PyLong_FromSize_t(bytes);
}

static PyMethodDef runs_methods[] = {
    {"done", (PyCFunction)runs_done, METH_NOARGS, NULL},
    {"wait", (PyCFunction)runs_wait, METH_O, NULL},
    {"batches", (PyCFunction)runs_batches, METH_NOARGS, NULL},
    {"failed", (PyCFunction)runs_failed, METH_NOARGS, NULL},
    {"first_error", (PyCFunction)runs_first_error, METH_NOARGS, NULL},
    {"offsets", (PyCFunction)runs_offsets, METH_NOARGS, NULL},
    {"partitions", (PyCFunction)runs_partitions, METH_NOARGS, NULL},
    {"metadata", (PyCFunction)runs_metadata, METH_NOARGS, NULL},
    {"__sizeof__", (PyCFunction)runs_sizeof, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods runs_sequence = {.sq_length = (lenfunc)runs_length};

PyTypeObject Runs_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpproducer._core.native.Runs",
    .tp_basicsize = sizeof(Runs),
    .tp_dealloc = (destructor)runs_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = runs_methods,
    .tp_as_sequence = &runs_sequence,
};
