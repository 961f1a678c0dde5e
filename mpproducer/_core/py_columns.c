/* Columns as they are taken from what the caller gave: sequences, buffers, Arrow. */
#include "py_columns.h"

PyObject *column_attribute(PyObject *object, enum name name) {
    static const char *const texts[NAMES] = {"__arrow_c_array__", "__arrow_c_stream__", "mask",
                                             "dtype", "str"};
    static PyObject *names[NAMES];
    if (!names[name] && !(names[name] = PyUnicode_InternFromString(texts[name]))) return NULL;
    PyObject *found = PyObject_GetAttr(object, names[name]);
    if (!found && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
    return found;
}

/* 1, 0, or -1 with an exception. */
static int has(PyObject *object, enum name name) {
    PyObject *found = column_attribute(object, name);
    Py_XDECREF(found);
    return found ? 1 : PyErr_Occurred() ? -1 : 0;
}

/* --- life */

struct piece *add_piece(struct column *c) {
    struct piece *more = PyMem_Realloc(c->pieces, sizeof *more * ((size_t)c->piece_count + 1));
    if (!more) {
        PyErr_NoMemory();
        return NULL;
    }
    c->pieces = more;
    struct piece *piece = &more[c->piece_count++];
    memset(piece, 0, sizeof *piece);
    piece->data_bytes = INT64_MAX;
    piece->start = c->length;
    return piece;
}

/* Giving back may run code of whoever gave it, which must not meet our exception. */
void release_column(struct column *c) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    for (int i = 0; i < c->view_count; i++) PyBuffer_Release(&c->views[i]);
    for (Py_ssize_t i = 0; i < c->array_count; i++)
        if (c->arrays[i].release) c->arrays[i].release(&c->arrays[i]);
    PyMem_Free(c->arrays);
    PyMem_Free(c->pieces);
    Py_XDECREF(c->objects);
    Py_XDECREF(c->held);
    memset(c, 0, sizeof *c);
    c->length = -1;
    PyErr_Restore(type, error, trace);
}

static int wrong_type(const struct column *c, PyObject *object, const char *wanted) {
    PyErr_Format(PyExc_TypeError, "%s must be %s, got %.100s", c->what, wanted,
                 Py_TYPE(object)->tp_name);
    return -1;
}

static int check_length(const struct column *c, Py_ssize_t count) {
    if (count < 0 || c->length == count) return 0;
    PyErr_Format(PyExc_ValueError, "%s has %zd items, values has %zd", c->what, c->length, count);
    return -1;
}

/* --- sequences */

/* A tuple of what a list holds now, which nobody else can see; and whether all of it is bytes or
 * None. One pass, because each item is a cache miss. */
static PyObject *copy_list(PyObject *list, int *plain) {
    const Py_ssize_t count = PyList_GET_SIZE(list);
    PyObject *copy = PyTuple_New(count);
    if (!copy) return NULL;
    if (count > 0) PyObject_GC_UnTrack(copy);
    int all = 1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        all &= PyBytes_CheckExact(item) || item == Py_None;
        PyTuple_SET_ITEM(copy, i, Py_NewRef(item));
    }
    *plain = all;
    return copy;
}

static int is_plain(PyObject *tuple) {
    int all = 1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); i++) {
        PyObject *item = PyTuple_GET_ITEM(tuple, i);
        all &= PyBytes_CheckExact(item) || item == Py_None;
    }
    return all;
}

void drop_objects(struct column *c, Py_ssize_t at, Py_ssize_t count) {
    for (Py_ssize_t i = at; c->own && i < at + count; i++)
        Py_CLEAR(PyTuple_GET_ITEM(c->objects, i));
}

int take_object_column(struct column *c, PyObject *object, const char *what, Py_ssize_t count) {
    c->what = what;
    if (object == Py_None) return 0;
    if (PyUnicode_Check(object) || PyBytes_Check(object) || PyByteArray_Check(object) ||
        PyAnySet_Check(object) || PyDict_Check(object) ||
        !(PySequence_Check(object) || Py_TYPE(object)->tp_iter))
        return wrong_type(c, object, "a sequence of records' parts or a column");
    /* A tuple, because the GIL may be given away while records are appended: what a list holds then
     * may be gone afterwards. */
    c->own = PyList_CheckExact(object);
    c->objects = c->own ? copy_list(object, &c->plain) : PySequence_Tuple(object);
    if (!c->objects) return -1;
    if (!c->own) c->plain = is_plain(c->objects);
    c->length = PyTuple_GET_SIZE(c->objects);
    return check_length(c, count);
}

/* --- the buffer protocol */

/* The letter of a format of one item ("<i", "3s"), or 0. */
static char item_letter(const char *format) {
    if (!format) return 'B';
    if (*format == '@' || *format == '=' || *format == '<') format++;
    while (*format >= '0' && *format <= '9') format++;
    return format[0] && !format[1] ? format[0] : 0;
}

static enum form integer_form(const Py_buffer *view) {
    if (view->ndim == 1 && view->format && item_letter(view->format) &&
        strchr("ilqn", item_letter(view->format))) {
        if (view->itemsize == 4) return FORM_INT32;
        if (view->itemsize == 8) return FORM_INT64;
    }
    return FORM_NULL;
}

static enum form rows_form(const Py_buffer *view) {
    const char letter = item_letter(view->format);
    if (view->ndim == 2 && view->itemsize == 1 && (letter == 'B' || letter == 'b' || letter == 'c'))
        return FORM_ROWS;
    if (view->ndim != 1) return FORM_NULL;
    return letter == 's' ? FORM_PADDED : letter == 'x' ? FORM_ROWS : FORM_NULL;
}

static int add_rows(struct column *c, const Py_buffer *view) {
    struct piece *piece = add_piece(c);
    if (!piece) return -1;
    piece->length = view->shape[0];
    piece->rows = view->buf;
    piece->stride = view->strides[0];
    piece->width = view->ndim == 2 ? view->shape[1] : view->itemsize;
    if (view->ndim == 2 && view->strides[1] != 1 && view->shape[1] > 1) {
        PyErr_Format(PyExc_TypeError, "%s: the bytes of a row must be contiguous; copy it first",
                     c->what);
        return -1;
    }
    c->length = piece->length;
    return 0;
}

/* 1 taken, 0 it has no such buffer, -1. A masked array has one, but without its mask. */
static int view_of(struct column *c, PyObject *object) {
    if (!PyObject_CheckBuffer(object)) return 0;
    const int masked = PyMemoryView_Check(object) ? 0 : has(object, MASK);
    if (masked < 0) return -1;
    if (masked) {
        PyErr_Format(PyExc_TypeError, "%s: masked arrays are not taken; fill it first: a.filled()",
                     c->what);
        return -1;
    }
    if (PyObject_GetBuffer(object, &c->views[c->view_count], PyBUF_RECORDS_RO) < 0) {
        PyErr_Clear();
        return 0;
    }
    c->view_count++;
    return 1;
}

static void drop_view(struct column *c) { PyBuffer_Release(&c->views[--c->view_count]); }

/* Integers of a width, sign or byte order that offsets do not have. */
static int other_integers(const Py_buffer *view) {
    const char *format = view->format;
    if (view->ndim != 1 || view->itemsize < 2 || !format || !*format) return 0;
    return strchr("hHiIlLqQnN", format[strlen(format) - 1]) != NULL;
}

/* (offsets, data): 1 taken, 0 something else, -1. */
static int take_pair(struct column *c, PyObject *object) {
    if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != 2) return 0;
    PyObject *offsets = PyTuple_GET_ITEM(object, 0), *data = PyTuple_GET_ITEM(object, 1);
    if (PyBytes_Check(offsets) || PyByteArray_Check(offsets)) return 0;
    int got = view_of(c, offsets);
    if (got <= 0) return got;
    c->form = integer_form(&c->views[0]) == FORM_INT32   ? FORM_OFFSETS
              : integer_form(&c->views[0]) == FORM_INT64 ? FORM_LARGE
                                                         : FORM_NULL;
    if (c->form == FORM_NULL) {
        if (other_integers(&c->views[0])) {
            PyErr_Format(PyExc_TypeError,
                         "%s: (offsets, data): offsets must be int32 or int64, got format '%.50s'; "
                         "two arrays that are records go in a list",
                         c->what, c->views[0].format);
            return -1;
        }
        drop_view(c);
        return 0;
    }
    if (PyObject_GetBuffer(data, &c->views[1], PyBUF_SIMPLE) < 0) {
        PyErr_Format(PyExc_TypeError,
                     "%s: (offsets, data): data must be a contiguous buffer, got %.100s", c->what,
                     Py_TYPE(data)->tp_name);
        return -1;
    }
    c->view_count++;
    const Py_buffer *view = &c->views[0];
    if (view->shape[0] < 1 || (view->strides[0] != view->itemsize && view->shape[0] > 1)) {
        PyErr_Format(PyExc_ValueError,
                     view->shape[0] < 1
                         ? "%s: (offsets, data): there is one more offset than records, so at least 1"
                         : "%s: (offsets, data): offsets must be contiguous; copy them first",
                     c->what);
        return -1;
    }
    struct piece *piece = add_piece(c);
    if (!piece) return -1;
    piece->length = view->shape[0] - 1;
    piece->rows = view->buf;
    piece->data = c->views[1].buf;
    piece->data_bytes = c->views[1].len;
    c->length = piece->length;
    return 1;
}

/* --- the three kinds */

int take_bytes_column(struct column *c, PyObject *object, const char *what, Py_ssize_t count) {
    c->what = what;
    if (object == Py_None) return 0;
    int got = take_arrow(c, object, FORM_ROWS);
    if (got == 0) {
        c->length = 0;
        got = take_pair(c, object);
    }
    if (got == 0 && !PyBytes_Check(object) && !PyByteArray_Check(object) &&
        (got = view_of(c, object)) > 0) {
        c->form = rows_form(&c->views[0]);
        const char letter = item_letter(c->views[0].format);
        if (c->form != FORM_NULL) {
            if (add_rows(c, &c->views[0]) < 0) return -1;
        } else if (letter == 'O') {
            drop_view(c);
            got = 0;
        } else {
            PyErr_Format(PyExc_TypeError,
                         "%s: an array must hold fixed-width bytes (S, V, or rows of uint8), got "
                         "format '%.50s' in %d dimensions%s",
                         what, c->views[0].format ? c->views[0].format : "B", c->views[0].ndim,
                         letter == 'w' ? "; encode it first: numpy.char.encode(a)" : "");
            return -1;
        }
    }
    if (got < 0) return -1;
    if (got == 0) return take_object_column(c, object, what, count);
    return check_length(c, count) < 0 || check_bytes(c) < 0 ? -1 : 0;
}

/* numpy's datetime64 exports no buffer; as integers it does. 1 taken, 0 something else, -1. */
static int take_datetime(struct column *c, PyObject *object) {
    PyObject *dtype = column_attribute(object, DTYPE);
    PyObject *text = dtype ? column_attribute(dtype, STR) : NULL;
    Py_XDECREF(dtype);
    const char *code = text && PyUnicode_Check(text) ? PyUnicode_AsUTF8(text) : NULL;
    if (!code || strlen(code) < 4 || strncmp(code + 1, "M8", 2)) {
        PyErr_Clear();
        Py_XDECREF(text);
        return 0;
    }
    const char *unit = code + 3;
    c->unit_ns = !strcmp(unit, "[s]")    ? 1000000000
                 : !strcmp(unit, "[ms]") ? 1000000
                 : !strcmp(unit, "[us]") ? 1000
                 : !strcmp(unit, "[ns]") ? 1
                                         : 0;
    if (!c->unit_ns || code[0] == '>')
        PyErr_Format(PyExc_TypeError, "%s: datetime64 must count s, ms, us or ns, got '%s'", c->what,
                     code);
    else
        c->held = PyObject_CallMethod(object, "view", "s", "i8");
    Py_DECREF(text);
    if (!c->held || view_of(c, c->held) <= 0) {
        if (!PyErr_Occurred()) wrong_type(c, object, "a column of integers");
        return -1;
    }
    return 1;
}

static int take_integers(struct column *c, PyObject *object, enum form wanted) {
    c->length = 0;
    int got = take_arrow(c, object, wanted);
    if (got != 0) return got;
    got = view_of(c, object);
    if (got == 0 && wanted == FORM_INT64 && !PyList_Check(object) && !PyTuple_Check(object))
        got = take_datetime(c, object);
    if (got <= 0) return got;
    c->form = integer_form(&c->views[0]);
    if (item_letter(c->views[0].format) == 'O') {
        drop_view(c);
        return 0;
    }
    if (c->form == FORM_NULL || (wanted == FORM_INT64 && c->form != FORM_INT64)) {
        PyErr_Format(PyExc_TypeError, "%s: an array must hold %s in one dimension, got format "
                                      "'%.50s' in %d",
                     c->what, wanted == FORM_INT64 ? "int64 or datetime64" : "int32 or int64",
                     c->views[0].format ? c->views[0].format : "B", c->views[0].ndim);
        return -1;
    }
    return add_rows(c, &c->views[0]) < 0 ? -1 : 1;
}

int take_time_column(struct column *c, PyObject *object, Py_ssize_t count) {
    c->what = "timestamps_ms";
    if (object == Py_None) return 0;
    const int got = take_integers(c, object, FORM_INT64);
    if (got < 0) return -1;
    if (got == 0) return take_object_column(c, object, c->what, count);
    if (check_length(c, count) < 0) return -1;
    return check_integers(c, INT64_MAX, "between 0 and 2**63-1 ms since the epoch");
}

int is_integer_column(PyObject *object) {
    if (PyLong_Check(object) || object == Py_None || PyBytes_Check(object)) return 0;
    for (int stream = 0; stream < 2; stream++) {
        const int found = has(object, stream ? ARROW_STREAM : ARROW_ARRAY);
        if (found != 0) return found;
    }
    Py_buffer view;
    if (!PyObject_CheckBuffer(object)) return 0;
    if (PyObject_GetBuffer(object, &view, PyBUF_RECORDS_RO) < 0) {
        PyErr_Clear();
        return 0;
    }
    const int column = view.ndim > 0;
    PyBuffer_Release(&view);
    return column;
}

int take_partition_column(struct column *c, PyObject *object, Py_ssize_t count) {
    c->what = "partition";
    const int got = take_integers(c, object, FORM_INT32);
    if (got < 0) return -1;
    if (got == 0) return wrong_type(c, object, "an int, None, or a column of int32 or int64");
    if (check_length(c, count) < 0) return -1;
    return check_integers(c, INT32_MAX, "between 0 and 2**31-1");
}
