/* Columns of the Arrow C data interface: one array, or a stream of them. */
#include "py_columns.h"

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

int take_arrow(struct column *c, PyObject *object, enum form wanted) {
    if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) return 0;
    for (int stream = 0; stream < 2; stream++) {
        PyObject *method = column_attribute(object, stream ? ARROW_STREAM : ARROW_ARRAY);
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
