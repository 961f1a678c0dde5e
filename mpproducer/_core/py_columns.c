#include "py_columns.h"

/* The object's attribute, or NULL: with an exception, or without one where there is none. Names are
 * interned, because a type's method cache keeps every string it is asked for. */
enum name { ARROW_ARRAY, ARROW_STREAM, MASK, DTYPE, STR, NAMES };
static PyObject *attribute(PyObject *object, enum name name) {
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
    PyObject *found = attribute(object, name);
    Py_XDECREF(found);
    return found ? 1 : PyErr_Occurred() ? -1 : 0;
}

/* --- life */

static struct piece *add_piece(struct column *c) {
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

/* --- Arrow */

static enum form arrow_bytes(const char *format, Py_ssize_t *width) {
    if (!strcmp(format, "z") || !strcmp(format, "u")) return FORM_OFFSETS;
    if (!strcmp(format, "Z") || !strcmp(format, "U")) return FORM_LARGE;
    if (!strcmp(format, "vz") || !strcmp(format, "vu")) return FORM_VIEWS;
    if (!strncmp(format, "w:", 2)) {
        *width = (Py_ssize_t)strtoll(format + 2, NULL, 10);
        return FORM_ROWS;
    }
    return FORM_NULL;
}

/* What the schema says, into c->form and c->unit_ns. */
static int take_schema(struct column *c, const struct ArrowSchema *schema, enum form wanted,
                       Py_ssize_t *width) {
    const char *format = schema->format;
    c->form = FORM_NULL;
    if (!strcmp(format, "n") && !schema->dictionary) return 0; /* all null */
    if (wanted == FORM_ROWS) {
        c->form = arrow_bytes(format, width);
    } else if (wanted == FORM_INT32 || wanted == FORM_INT64) {
        c->form = !strcmp(format, "l")                           ? FORM_INT64
                  : !strcmp(format, "i") && wanted == FORM_INT32 ? FORM_INT32
                                                                 : FORM_NULL;
        *width = c->form == FORM_INT32 ? 4 : 8;
        if (wanted == FORM_INT64 && !strncmp(format, "ts", 2) && format[2] && format[3] == ':') {
            c->form = FORM_INT64;
            c->unit_ns = format[2] == 's'   ? 1000000000
                         : format[2] == 'm' ? 1000000
                         : format[2] == 'u' ? 1000
                                            : 1;
        }
    }
    if (c->form != FORM_NULL && !schema->dictionary && *width >= 0) return 0;
    PyErr_Format(PyExc_TypeError, "%s: an Arrow column must hold %s, got format '%.50s'%s", c->what,
                 wanted == FORM_ROWS    ? "binary or string"
                 : wanted == FORM_INT64 ? "int64 (ms) or timestamp"
                                        : "int32 or int64",
                 format,
                 schema->dictionary ? ", dictionary-encoded; decode it first"
                 : format[0] == '+' ? "; give one column of it"
                                    : "");
    return -1;
}

/* One array, which the column has taken over. */
static int take_array(struct column *c, const struct ArrowArray *array, Py_ssize_t width) {
    struct piece *piece = add_piece(c);
    if (!piece) return -1;
    const int64_t buffers = c->form == FORM_NULL    ? 0
                            : c->form == FORM_VIEWS ? 3
                            : c->form == FORM_OFFSETS || c->form == FORM_LARGE ? 3
                                                                               : 2;
    if (array->length < 0 || array->offset < 0 || array->n_buffers < buffers) {
        PyErr_Format(PyExc_ValueError, "%s: the Arrow array is malformed: length %lld, offset %lld, "
                                       "%lld buffers",
                     c->what, (long long)array->length, (long long)array->offset,
                     (long long)array->n_buffers);
        return -1;
    }
    piece->length = (Py_ssize_t)array->length;
    c->length += piece->length;
    if (c->form == FORM_NULL || piece->length == 0) return 0;
    piece->first = array->offset;
    piece->validity = array->null_count != 0 ? array->buffers[0] : NULL;
    piece->rows = array->buffers[1];
    piece->stride = piece->width = width;
    if (c->form == FORM_VIEWS) {
        piece->buffers = array->buffers + 2;
        piece->buffer_count = array->n_buffers - 3;
        piece->buffer_bytes = array->buffers[array->n_buffers - 1];
    } else if (buffers == 3) {
        piece->data = array->buffers[2];
        /* The interface tells no size: the last offset does, and one in a null's place may lie. */
        const int64_t end = array->offset + array->length;
        if (piece->rows)
            piece->data_bytes = c->form == FORM_LARGE ? ((const int64_t *)piece->rows)[end]
                                                      : ((const int32_t *)piece->rows)[end];
    }
    if (!piece->rows && c->form == FORM_ROWS && width == 0)
        piece->rows = (const uint8_t *)""; /* items of no bytes need no buffer */
    if (piece->rows) return 0;
    PyErr_Format(PyExc_ValueError, "%s: the Arrow array is malformed: a buffer is missing", c->what);
    return -1;
}

static struct ArrowArray *add_array(struct column *c) {
    struct ArrowArray *more = PyMem_Realloc(c->arrays, sizeof *more * ((size_t)c->array_count + 1));
    if (!more) {
        PyErr_NoMemory();
        return NULL;
    }
    c->arrays = more;
    more[c->array_count].release = NULL;
    return &more[c->array_count++];
}

static int take_arrow_array(struct column *c, PyObject *pair, enum form wanted) {
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        PyErr_Format(PyExc_TypeError, "%s: __arrow_c_array__() must return two capsules", c->what);
        return -1;
    }
    const struct ArrowSchema *schema =
        PyCapsule_GetPointer(PyTuple_GET_ITEM(pair, 0), "arrow_schema");
    struct ArrowArray *array =
        schema ? PyCapsule_GetPointer(PyTuple_GET_ITEM(pair, 1), "arrow_array") : NULL;
    Py_ssize_t width = 0;
    if (!array || take_schema(c, schema, wanted, &width) < 0) return -1;
    struct ArrowArray *mine = add_array(c);
    if (!mine) return -1;
    *mine = *array; /* moved: the capsule has nothing to release any more */
    array->release = NULL;
    return take_array(c, mine, width);
}

static int stream_failed(const struct column *c, struct ArrowArrayStream *stream, int code) {
    const char *why = stream->get_last_error(stream);
    PyErr_Format(PyExc_ValueError, "%s: the Arrow stream failed: %.200s", c->what,
                 why ? why : strerror(code));
    return -1;
}

static int take_arrow_stream(struct column *c, PyObject *capsule, enum form wanted) {
    struct ArrowArrayStream *theirs = PyCapsule_GetPointer(capsule, "arrow_array_stream");
    if (!theirs) return -1;
    struct ArrowArrayStream stream = *theirs;
    theirs->release = NULL;
    struct ArrowSchema schema = {.release = NULL};
    Py_ssize_t width = 0;
    int result = stream.get_schema(&stream, &schema);
    if (result != 0)
        result = stream_failed(c, &stream, result);
    else
        result = take_schema(c, &schema, wanted, &width);
    while (result == 0) {
        struct ArrowArray *array = add_array(c);
        if (!array) {
            result = -1;
            break;
        }
        const int code = stream.get_next(&stream, array);
        if (code != 0) {
            array->release = NULL;
            result = stream_failed(c, &stream, code);
        }
        if (result != 0 || !array->release) break;
        result = take_array(c, array, width);
    }
    PyObject *type, *error, *trace; /* as in release_column */
    PyErr_Fetch(&type, &error, &trace);
    if (schema.release) schema.release(&schema);
    stream.release(&stream);
    PyErr_Restore(type, error, trace);
    return result;
}

/* 1 taken, 0 no Arrow object, -1. */
static int take_arrow(struct column *c, PyObject *object, enum form wanted) {
    if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) return 0;
    for (int stream = 0; stream < 2; stream++) {
        PyObject *method = attribute(object, stream ? ARROW_STREAM : ARROW_ARRAY);
        if (!method && PyErr_Occurred()) return -1;
        if (!method) continue;
        PyObject *got = PyObject_CallNoArgs(method);
        Py_DECREF(method);
        if (!got) return -1;
        c->length = 0;
        const int result = stream ? take_arrow_stream(c, got, wanted)
                                  : take_arrow_array(c, got, wanted);
        PyObject *type, *error, *trace; /* as in release_column */
        PyErr_Fetch(&type, &error, &trace);
        Py_DECREF(got);
        PyErr_Restore(type, error, trace);
        return result < 0 ? -1 : 1;
    }
    return 0;
}

/* --- reading */

static inline int is_null(const struct piece *p, int64_t item) {
    return p->validity && !(p->validity[item >> 3] >> (item & 7) & 1);
}

/* One record's bytes. 0, or the reason why there are none. Null: *data stays NULL, *size -1. */
static inline const char *bytes_at(const struct piece *p, enum form form, int64_t item,
                                   const uint8_t **data, int64_t *size) {
    *data = NULL;
    *size = -1;
    if (form == FORM_NULL || is_null(p, item)) return NULL;
    if (form == FORM_OFFSETS || form == FORM_LARGE) {
        const int64_t from = form == FORM_LARGE ? ((const int64_t *)p->rows)[item]
                                                : ((const int32_t *)p->rows)[item];
        const int64_t to = form == FORM_LARGE ? ((const int64_t *)p->rows)[item + 1]
                                              : ((const int32_t *)p->rows)[item + 1];
        if (from < 0 || to < from) return "an offset is negative, or less than the one before";
        if (to > p->data_bytes) return "an offset is behind the end of the data";
        *data = p->data + from;
        *size = to - from;
    } else if (form == FORM_VIEWS) {
        const uint8_t *view = p->rows + item * 16;
        int32_t length, buffer, offset;
        memcpy(&length, view, 4);
        memcpy(&buffer, view + 8, 4);
        memcpy(&offset, view + 12, 4);
        if (length < 0) return "a view has a negative length";
        if (length > 12) {
            if (buffer < 0 || buffer >= p->buffer_count || offset < 0 ||
                (int64_t)offset + length > p->buffer_bytes[buffer])
                return "a view is not inside its buffer";
            *data = (const uint8_t *)p->buffers[buffer] + offset;
        } else {
            *data = view + 4;
        }
        *size = length;
    } else {
        *data = p->rows + item * p->stride;
        *size = p->width;
        if (form == FORM_PADDED)
            while (*size > 0 && (*data)[*size - 1] == 0) --*size;
    }
    return NULL;
}

static struct piece *seek(struct column *c, Py_ssize_t at) {
    while (at < c->pieces[c->current].start) c->current--;
    while (at >= c->pieces[c->current].start + c->pieces[c->current].length) c->current++;
    return &c->pieces[c->current];
}

static inline int read_form(const struct piece *p, enum form form, int64_t item, uint32_t count,
                            char *data, char *size) {
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *bytes;
        int64_t length;
        if (bytes_at(p, form, item + i, &bytes, &length)) return -1;
        *(const uint8_t **)(void *)data = bytes;
        *(int32_t *)(void *)size = (int32_t)(length > MAX_FIELD ? MAX_FIELD : length);
        data += sizeof(struct mp_record);
        size += sizeof(struct mp_record);
    }
    return 0;
}

int read_bytes(struct column *c, Py_ssize_t at, uint32_t count, struct mp_record *records,
               int as_key) {
    for (uint32_t done = 0; done < count;) {
        const struct piece *p = seek(c, at + done);
        const Py_ssize_t skip = at + done - p->start, left = p->length - skip;
        const uint32_t part = left < count - done ? (uint32_t)left : count - done;
        struct mp_record *record = records + done;
        char *data = as_key ? (char *)&record->key : (char *)&record->value;
        char *size = as_key ? (char *)&record->key_bytes : (char *)&record->value_bytes;
        const int64_t item = p->first + skip;
        int bad;
        switch (c->form) { /* one loop for each */
        case FORM_OFFSETS: bad = read_form(p, FORM_OFFSETS, item, part, data, size); break;
        case FORM_LARGE: bad = read_form(p, FORM_LARGE, item, part, data, size); break;
        case FORM_VIEWS: bad = read_form(p, FORM_VIEWS, item, part, data, size); break;
        case FORM_PADDED: bad = read_form(p, FORM_PADDED, item, part, data, size); break;
        case FORM_ROWS: bad = read_form(p, FORM_ROWS, item, part, data, size); break;
        default: bad = read_form(p, FORM_NULL, item, part, data, size); break;
        }
        if (bad) return -1;
        done += part;
    }
    return 0;
}

void read_integers(struct column *c, Py_ssize_t at, uint32_t count, int64_t *integers) {
    for (uint32_t i = 0; i < count; i++) {
        const struct piece *p = seek(c, at + i);
        const int64_t item = p->first + (at + i - p->start);
        int64_t number = NO_INT;
        if (c->form != FORM_NULL && !is_null(p, item)) {
            const uint8_t *from = p->rows + item * p->stride;
            int32_t narrow;
            if (c->form == FORM_INT64) {
                memcpy(&number, from, 8);
            } else {
                memcpy(&narrow, from, 4);
                number = narrow;
            }
        }
        if (c->unit_ns && number != NO_INT)
            number = c->unit_ns > 1000000 ? number * (c->unit_ns / 1000000)
                                          : number / (1000000 / c->unit_ns);
        integers[i] = number;
    }
}

/* --- checks */

static int check_bytes(struct column *c) {
    for (Py_ssize_t n = 0; n < c->piece_count; n++) {
        const struct piece *p = &c->pieces[n];
        if (c->form != FORM_OFFSETS && c->form != FORM_LARGE && c->form != FORM_VIEWS) continue;
        for (Py_ssize_t i = 0; i < p->length; i++) {
            const uint8_t *data;
            int64_t size;
            const char *wrong = bytes_at(p, c->form, p->first + i, &data, &size);
            if (!wrong) continue;
            PyErr_Format(PyExc_ValueError, "%s: record %zd: %s; nothing was sent", c->what,
                         p->start + i, wrong);
            return -1;
        }
    }
    return 0;
}

static int check_integers(struct column *c, int64_t most, const char *range) {
    const int64_t unit = c->unit_ns;
    c->unit_ns = 0; /* as they are, before their unit can overflow */
    if (unit > 1000000) most /= unit / 1000000;
    int64_t numbers[256];
    for (Py_ssize_t at = 0; at < c->length; at += 256) {
        const uint32_t count = c->length - at < 256 ? (uint32_t)(c->length - at) : 256;
        read_integers(c, at, count, numbers);
        for (uint32_t i = 0; i < count; i++) {
            if (numbers[i] == NO_INT || (numbers[i] >= 0 && numbers[i] <= most)) continue;
            PyErr_Format(PyExc_ValueError, "%s: record %zd: must be %s, got %lld; nothing was sent",
                         c->what, at + i, range, (long long)numbers[i]);
            return -1;
        }
    }
    c->unit_ns = unit;
    return 0;
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
    PyObject *dtype = attribute(object, DTYPE);
    PyObject *text = dtype ? attribute(dtype, STR) : NULL;
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
