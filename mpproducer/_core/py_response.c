/* A Produce response, v3 to v13, from bytes to the values that the sender's machine sees. Every length
 * in it is hostile: nothing is allocated for an element before its bytes are there. */
#include "native.h"

enum { FLEXIBLE = 9, TOPIC_IDS = 13, TAGGED = 10, LOWEST = 3, HIGHEST = 13 };

struct response {
    const uint8_t *data;
    size_t size, at;
    int version, flexible;
    PyTypeObject *whole, *partition;
    PyObject *error;
};

static int bad_field(const struct response *r, long long count) {
    PyErr_Format(r->error, "a field of %lld bytes at %zu leaves a message of %zu bytes", count, r->at,
                 r->size);
    return -1;
}

/* The next `count` bytes, or NULL with the error. */
static const uint8_t *take(struct response *r, int64_t count) {
    if (count < 0 || (uint64_t)count > r->size - r->at) {
        bad_field(r, count);
        return NULL;
    }
    const uint8_t *found = r->data + r->at;
    r->at += (size_t)count;
    return found;
}

static uint64_t big_endian(const uint8_t *data, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | data[i];
    return value;
}

static int read_int16(struct response *r, int16_t *value) {
    const uint8_t *data = take(r, 2);
    if (!data) return -1;
    *value = (int16_t)big_endian(data, 2);
    return 0;
}

static int read_int32(struct response *r, int32_t *value) {
    const uint8_t *data = take(r, 4);
    if (!data) return -1;
    *value = (int32_t)big_endian(data, 4);
    return 0;
}

static int read_int64(struct response *r, int64_t *value) {
    const uint8_t *data = take(r, 8);
    if (!data) return -1;
    *value = (int64_t)big_endian(data, 8);
    return 0;
}

static int read_uvarint(struct response *r, uint32_t *value) {
    uint64_t found = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        const uint8_t *byte = take(r, 1);
        if (!byte) return -1;
        found |= (uint64_t)(*byte & 0x7f) << shift;
        if (*byte & 0x80) continue;
        if (found >> 32) break;
        *value = (uint32_t)found;
        return 0;
    }
    PyErr_Format(r->error, "a varint at %zu has more than 32 bits", r->at);
    return -1;
}

/* Every element takes at least one byte, so a count beyond the rest is a lie. */
static int check_count(const struct response *r, int64_t count) {
    if (count >= 0 && (uint64_t)count <= r->size - r->at) return 0;
    PyErr_Format(r->error, "an array of %lld elements does not fit %zu bytes", (long long)count,
                 r->size - r->at);
    return -1;
}

/* The elements of an array that must not be null, or -1. */
static int64_t read_length(struct response *r) {
    int64_t count;
    if (r->flexible) {
        uint32_t above;
        if (read_uvarint(r, &above) < 0) return -1;
        count = (int64_t)above - 1;
    } else {
        int32_t given;
        if (read_int32(r, &given) < 0) return -1;
        count = given;
    }
    if (count == -1) {
        PyErr_SetString(r->error, "an array of a Produce response is null");
        return -1;
    }
    return check_count(r, count) < 0 ? -1 : count;
}

/* A string, or None; NULL with an exception. */
static PyObject *read_string(struct response *r) {
    int64_t length;
    if (r->flexible) {
        uint32_t above;
        if (read_uvarint(r, &above) < 0) return NULL;
        length = (int64_t)above - 1;
    } else {
        int16_t given;
        if (read_int16(r, &given) < 0) return NULL;
        length = given;
    }
    if (length == -1) Py_RETURN_NONE;
    const uint8_t *data = take(r, length);
    if (!data) return NULL;
    PyObject *text = PyUnicode_DecodeUTF8((const char *)data, (Py_ssize_t)length, NULL);
    if (!text && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        PyErr_Format(r->error, "a string before %zu is not UTF-8", r->at);
    return text;
}

/* Tagged fields, of which only tag 0 means something here: 1, in `first`; 0: it is not there. */
static int read_tags(struct response *r, struct response *first) {
    uint32_t count, tag, size;
    int64_t last = -1;
    int found = 0;
    if (read_uvarint(r, &count) < 0 || check_count(r, count) < 0) return -1;
    for (uint32_t i = 0; i < count; i++) {
        if (read_uvarint(r, &tag) < 0) return -1;
        if ((int64_t)tag <= last) {
            PyErr_Format(r->error, "tagged field %u follows %lld", tag, (long long)last);
            return -1;
        }
        last = tag;
        if (read_uvarint(r, &size) < 0) return -1;
        const uint8_t *data = take(r, size);
        if (!data) return -1;
        if (tag != 0 || !first) continue;
        *first = *r;
        first->data = data;
        first->size = size;
        first->at = 0;
        found = 1;
    }
    return found;
}

/* A named tuple of these items, whose references it takes; NULL, with all of them dropped, when one
 * is missing. */
static PyObject *named(PyTypeObject *type, PyObject **item, Py_ssize_t count) {
    PyObject *made = NULL;
    int whole = 1;
    for (Py_ssize_t i = 0; i < count; i++) whole &= item[i] != NULL;
    if (whole) made = type->tp_alloc(type, count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (made) PyTuple_SET_ITEM(made, i, item[i]);
        else Py_XDECREF(item[i]);
    }
    return made;
}

/* Appends and drops `item`, which may be NULL. */
static int add(PyObject *list, PyObject *item) {
    const int bad = !item || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return bad ? -1 : 0;
}

static PyObject *read_record_errors(struct response *r) {
    const int64_t count = read_length(r);
    if (count < 0) return NULL;
    if (count == 0) return PyTuple_New(0);
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < count; i++) {
        int32_t index;
        PyObject *message = read_int32(r, &index) < 0 ? NULL : read_string(r);
        if (!message || add(list, Py_BuildValue("iN", (int)index, message)) < 0 ||
            (r->flexible && read_tags(r, NULL) < 0))
            Py_CLEAR(list);
    }
    PyObject *errors = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return errors;
}

/* (leader id, leader epoch) when the broker told a newer one (KIP-951), or None. */
static PyObject *read_leader(struct response *r) {
    struct response tagged;
    const int found = read_tags(r, &tagged);
    if (found < 0) return NULL;
    if (!found || r->version < TAGGED) Py_RETURN_NONE;
    int32_t leader, epoch;
    if (read_int32(&tagged, &leader) < 0 || read_int32(&tagged, &epoch) < 0) return NULL;
    return Py_BuildValue("ii", (int)leader, (int)epoch);
}

static PyObject *read_partition(struct response *r) {
    int32_t partition;
    int16_t code;
    int64_t offset, append_ms, start = -1;
    if (read_int32(r, &partition) < 0 || read_int16(r, &code) < 0 || read_int64(r, &offset) < 0 ||
        read_int64(r, &append_ms) < 0 || (r->version >= 5 && read_int64(r, &start) < 0))
        return NULL;
    PyObject *item[8] = {NULL};
    item[5] = r->version < 8 ? PyTuple_New(0) : read_record_errors(r);
    if (item[5]) item[6] = r->version < 8 ? Py_NewRef(Py_None) : read_string(r);
    if (item[6]) item[7] = r->flexible ? read_leader(r) : Py_NewRef(Py_None);
    if (item[7]) {
        item[0] = PyLong_FromLong(partition);
        item[1] = PyLong_FromLong(code);
        item[2] = PyLong_FromLongLong(offset);
        item[3] = PyLong_FromLongLong(append_ms);
        item[4] = PyLong_FromLongLong(start);
    }
    return named(r->partition, item, 8);
}

static PyObject *read_topic_name(struct response *r) {
    if (r->version >= TOPIC_IDS) {
        const uint8_t *id = take(r, 16);
        return id ? PyBytes_FromStringAndSize((const char *)id, 16) : NULL;
    }
    PyObject *name = read_string(r);
    if (name != Py_None) return name;
    Py_DECREF(name);
    PyErr_SetString(r->error, "a Produce response has a topic without a name");
    return NULL;
}

/* (name, results) */
static PyObject *read_topic(struct response *r) {
    PyObject *name = read_topic_name(r);
    if (!name) return NULL;
    const int64_t count = read_length(r);
    PyObject *results = count < 0 ? NULL : PyList_New(0);
    for (int64_t i = 0; results && i < count; i++)
        if (add(results, read_partition(r)) < 0) Py_CLEAR(results);
    if (results && r->flexible && read_tags(r, NULL) < 0) Py_CLEAR(results);
    if (results) return Py_BuildValue("NN", name, results);
    Py_DECREF(name);
    return NULL;
}

/* (node id, host, port); the rack is nobody's concern. */
static PyObject *read_endpoint(struct response *r) {
    int32_t node, port;
    PyObject *host = read_int32(r, &node) < 0 ? NULL : read_string(r);
    PyObject *rack = !host || read_int32(r, &port) < 0 ? NULL : read_string(r);
    PyObject *made = NULL;
    if (rack && read_tags(r, NULL) >= 0)
        made = host == Py_None ? Py_BuildValue("isi", (int)node, "", (int)port)
                               : Py_BuildValue("iOi", (int)node, host, (int)port);
    Py_XDECREF(host);
    Py_XDECREF(rack);
    return made;
}

/* Behind the throttle time: the brokers that newer leaders are at, a tagged field. */
static PyObject *read_endpoints(struct response *r) {
    struct response tagged;
    const int found = r->flexible ? read_tags(r, &tagged) : 0;
    if (found < 0) return NULL;
    if (!found || r->version < TAGGED) return PyTuple_New(0);
    const int64_t count = read_length(&tagged);
    PyObject *list = count < 0 ? NULL : PyList_New(0);
    for (int64_t i = 0; list && i < count; i++)
        if (add(list, read_endpoint(&tagged)) < 0) Py_CLEAR(list);
    PyObject *endpoints = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return endpoints;
}

static PyObject *read_response(struct response *r, int32_t correlation_id) {
    int32_t found, throttle_ms;
    if (read_int32(r, &found) < 0 || (r->flexible && read_tags(r, NULL) < 0)) return NULL;
    if (found != correlation_id) {
        PyErr_Format(r->error, "response to request %d where %d was expected", (int)found,
                     (int)correlation_id);
        return NULL;
    }
    const int64_t count = read_length(r);
    PyObject *topics = count < 0 ? NULL : PyList_New(0);
    for (int64_t i = 0; topics && i < count; i++)
        if (add(topics, read_topic(r)) < 0) Py_CLEAR(topics);
    if (!topics) return NULL;
    PyObject *item[3] = {topics, NULL, NULL};
    if (read_int32(r, &throttle_ms) == 0) item[2] = read_endpoints(r);
    if (item[2] && r->at < r->size) {
        PyErr_Format(r->error, "a Produce response has %zu bytes too many", r->size - r->at);
        Py_CLEAR(item[2]);
    }
    if (item[2]) item[1] = PyLong_FromLong(throttle_ms);
    return named(r->whole, item, 3);
}

PyObject *produce_decode(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer frame;
    int correlation_id;
    struct response r = {0};
    if (!PyArg_ParseTuple(args, "y*iiO!O!O", &frame, &r.version, &correlation_id, &PyType_Type,
                          &r.whole, &PyType_Type, &r.partition, &r.error))
        return NULL;
    PyObject *made = NULL;
    if (r.version < LOWEST || r.version > HIGHEST)
        PyErr_Format(PyExc_ValueError, "Produce v%d is not spoken here", r.version);
    else if (!PyType_IsSubtype(r.whole, &PyTuple_Type) ||
             !PyType_IsSubtype(r.partition, &PyTuple_Type) || !PyExceptionClass_Check(r.error))
        PyErr_SetString(PyExc_TypeError, "two named tuples and an exception are wanted");
    else {
        r.data = frame.buf;
        r.size = (size_t)frame.len;
        r.flexible = r.version >= FLEXIBLE;
        made = read_response(&r, correlation_id);
    }
    PyBuffer_Release(&frame);
    return made;
}
