/* The arguments of a record, checked and decoded. */
#include "py_record.h"

#include "varint.h"

int take_buffer(struct request *r, PyObject *object, const char *what, const uint8_t **data,
                int32_t *length) {
    if (PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError,
                     "%s must be bytes-like or None, got str; encode it first: %s.encode()", what,
                     what);
        return -1;
    }
    Py_buffer *view = &r->views[r->view_count];
    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) < 0) {
        if (!PyErr_ExceptionMatches(PyExc_BufferError))
            PyErr_Format(PyExc_TypeError, "%s must be bytes-like or None, got %.100s", what,
                         Py_TYPE(object)->tp_name);
        else
            PyErr_Format(PyExc_TypeError,
                         "%s must be a contiguous buffer; copy it first: bytes(%s)", what, what);
        return -1;
    }
    r->view_count++;
    *data = view->buf;
    *length = take_size(r, view->len);
    return 0;
}

/* Name and value of one header. The value's buffer may be made by Python code that changes the
 * header, so `key` is a new reference, and the view holds the value. */
static int header_fields(PyObject *item, PyObject **key, const char **name, Py_ssize_t *name_size,
                         Py_buffer *view, int *has_value) {
    if (!(PyTuple_Check(item) || PyList_Check(item)) || PySequence_Fast_GET_SIZE(item) != 2) {
        PyErr_Format(PyExc_TypeError, "a header must be a pair (str, bytes or None), got %.100R",
                     item);
        return -1;
    }
    PyObject *text = PySequence_Fast_GET_ITEM(item, 0);
    PyObject *value = PySequence_Fast_GET_ITEM(item, 1);
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "a header name must be str, got %.100s",
                     Py_TYPE(text)->tp_name);
        return -1;
    }
    *name = PyUnicode_AsUTF8AndSize(text, name_size);
    if (!*name) {
        if (PyErr_ExceptionMatches(PyExc_UnicodeError))
            PyErr_Format(PyExc_ValueError, "header name %R has no UTF-8 form", text);
        return -1;
    }
    *key = Py_NewRef(text);
    *has_value = value != Py_None;
    if (*has_value && (PyUnicode_Check(value) ||
                       PyObject_GetBuffer(value, view, PyBUF_SIMPLE) < 0)) {
        const int strided = PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_BufferError);
        PyErr_Format(PyExc_TypeError,
                     strided ? "the value of header '%U' must be a contiguous buffer, got %.100s; "
                               "copy it first with bytes()"
                             : "the value of header '%U' must be bytes-like or None, got %.100s",
                     text, Py_TYPE(value)->tp_name);
        Py_CLEAR(*key);
        return -1;
    }
    return 0;
}

/* Appends one header to *out, which grows from the stack to the heap. */
static int put_header(struct request *r, PyObject *item, uint8_t **out, size_t *used,
                      size_t *room) {
    const char *name;
    Py_ssize_t name_size;
    PyObject *key;
    Py_buffer view = {.buf = NULL, .len = 0};
    int has_value, result = -1;
    if (header_fields(item, &key, &name, &name_size, &view, &has_value) < 0) return -1;
    const size_t need = *used + 20 + (size_t)name_size + (size_t)view.len;
    if (need > *room) {
        *room = need * 2;
        const int on_stack = *out == r->headers_stack;
        uint8_t *grown = on_stack ? PyMem_Malloc(*room) : PyMem_Realloc(*out, *room);
        if (!grown) {
            PyErr_NoMemory();
            goto end;
        }
        if (on_stack) memcpy(grown, *out, *used);
        *out = grown;
    }
    uint8_t *at = put_varint(*out + *used, (uint64_t)name_size << 1);
    memcpy(at, name, (size_t)name_size);
    at = put_varint(at + name_size, has_value ? (uint64_t)view.len << 1 : 1);
    if (has_value) {
        memcpy(at, view.buf, (size_t)view.len);
        at += view.len;
    }
    *used = (size_t)(at - *out);
    result = 0;
end:
    Py_DECREF(key);
    if (has_value) PyBuffer_Release(&view);
    return result;
}

int take_headers(struct request *r, PyObject *object) {
    if (object == Py_None) return 0;
    if (!PyList_Check(object) && !PyTuple_Check(object)) {
        PyErr_Format(PyExc_TypeError,
                     "headers must be a list of (str, bytes or None) pairs, got %.100s",
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    /* A list may change while Python code makes the buffer of one of its values. */
    PyObject *fixed = PySequence_Tuple(object);
    if (!fixed) return -1;
    const Py_ssize_t count = PyTuple_GET_SIZE(fixed);
    size_t room = MAX_HEADERS_STACK;
    uint8_t *out = r->headers_stack;
    size_t used = (size_t)(put_varint(out, (uint64_t)count << 1) - out);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (put_header(r, PyTuple_GET_ITEM(fixed, i), &out, &used, &room) < 0) {
            if (out != r->headers_stack) PyMem_Free(out);
            Py_DECREF(fixed);
            return -1;
        }
    }
    Py_DECREF(fixed);
    if (count == 0) return 0;
    r->headers = out;
    if (used > INT32_MAX / 2) r->too_large = used;
    r->record.headers = out;
    r->record.headers_bytes = (uint32_t)used;
    return 0;
}

/* An int or whatever converts to one without loss (numpy's integers), but not a bool. 0, or -1 with
 * an exception that names `what`. */
static int take_int(PyObject *object, const char *what, const char *range, int64_t most,
                    int64_t *number) {
    if (!PyIndex_Check(object) || PyBool_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be an int or None, got %.100s", what,
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *whole = PyNumber_Index(object);
    if (!whole) return -1;
    int overflow;
    *number = PyLong_AsLongLongAndOverflow(whole, &overflow);
    Py_DECREF(whole);
    if (*number == -1 && PyErr_Occurred()) return -1;
    if (overflow || *number < 0 || *number > most) {
        PyErr_Format(PyExc_ValueError, "%s must be %s, got %R", what, range, object);
        return -1;
    }
    return 0;
}

int take_timestamp(struct request *r, PyObject *object) {
    r->has_timestamp = object != Py_None;
    if (!r->has_timestamp) return 0;
    int64_t number;
    if (take_int(object, "timestamp_ms", "between 0 and 2**63-1 (ms since the epoch)", INT64_MAX,
                 &number) < 0)
        return -1;
    r->record.timestamp_ms = number;
    return 0;
}

int take_partition(PyObject *object, int64_t *partition) {
    *partition = -1;
    if (object == Py_None) return 0;
    return take_int(object, "partition", "between 0 and 2**31-1", INT32_MAX, partition);
}
