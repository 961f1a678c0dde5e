/* A Produce request, v3 to v13: the glue, with the headers of its batches in it, and where their
 * records are. */
#include "py_wire.h"

#include "varint.h"

enum { PRODUCE = 0, LOWEST = 3, FLEXIBLE = 9, TOPIC_IDS = 13, HIGHEST = 13, ID_BYTES = 16 };
enum { LONGEST_STRING = INT16_MAX, MOST_LENGTH_BYTES = 5 };

/* One batch, in the order in which it was given; `after`: the next one of its topic, or -1. */
struct row {
    PyObject *topic;
    Body *body;
    int64_t producer_id;
    int32_t partition, sequence;
    int16_t epoch;
    Py_ssize_t after;
};

struct topic {
    PyObject *name;
    const char *text;
    Py_ssize_t length, first, last, batches;
};

struct request {
    int version, flexible;
    Py_ssize_t rows, topics;
    struct row *row;
    struct topic *topic;
};

struct text {
    const char *data;
    Py_ssize_t length; /* -1: null */
};

static int text_of(PyObject *given, const char *what, struct text *text) {
    text->length = -1;
    if (given == Py_None) return 0;
    text->data = PyUnicode_AsUTF8AndSize(given, &text->length);
    if (!text->data) return -1;
    if (text->length <= LONGEST_STRING) return 0;
    PyErr_Format(PyExc_OverflowError, "a %s of %zd bytes is longer than a string of the protocol", what,
                 text->length);
    return -1;
}

/* --- the rows, by topic */

/* Exact types: no code but ours runs while the rows are read. */
static int read_topic(int version, struct topic *topic) {
    PyObject *name = topic->name;
    if (version >= TOPIC_IDS) {
        if (PyBytes_CheckExact(name) && PyBytes_GET_SIZE(name) == ID_BYTES) {
            topic->text = PyBytes_AS_STRING(name);
            topic->length = ID_BYTES;
            return 0;
        }
        PyErr_Format(PyExc_ValueError, "a topic's id is %d bytes, not %R", (int)ID_BYTES, name);
        return -1;
    }
    if (!PyUnicode_CheckExact(name)) {
        PyErr_Format(PyExc_TypeError, "a topic's name is a str, not %R", name);
        return -1;
    }
    struct text text;
    if (text_of(name, "topic's name", &text) < 0) return -1;
    topic->text = text.data;
    topic->length = text.length;
    return 0;
}

/* The topic of this name or id, a new one if it is not there yet; -1 with an exception. A request
 * has one topic, or few, or very many. */
static Py_ssize_t find_topic(struct request *r, PyObject *name, PyObject **known) {
    struct topic *last = r->topics ? &r->topic[r->topics - 1] : NULL;
    if (last && last->name == name) return r->topics - 1;
    struct topic found = {.name = name, .first = -1, .last = -1};
    if (read_topic(r->version, &found) < 0) return -1;
    if (!*known && !(*known = PyDict_New())) return -1;
    PyObject *place = PyDict_GetItemWithError(*known, name);
    if (place) return PyLong_AsSsize_t(place);
    if (PyErr_Occurred()) return -1;
    place = PyLong_FromSsize_t(r->topics);
    const int failed = !place || PyDict_SetItem(*known, name, place) < 0;
    Py_XDECREF(place);
    if (failed) return -1;
    r->topic[r->topics] = found;
    return r->topics++;
}

static int read_row(struct row *row, PyObject *given) {
    int64_t partition, producer_id, epoch, sequence;
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 6 ||
        !Py_IS_TYPE(PyTuple_GET_ITEM(given, 2), &Body_Type)) {
        PyErr_SetString(PyExc_TypeError, "a batch is (topic, partition, Body, producer id, epoch, "
                                         "base sequence)");
        return -1;
    }
    if (integer_of(PyTuple_GET_ITEM(given, 1), INT32_MIN, INT32_MAX, "partition", &partition) < 0 ||
        integer_of(PyTuple_GET_ITEM(given, 3), INT64_MIN, INT64_MAX, "producer id", &producer_id) < 0 ||
        integer_of(PyTuple_GET_ITEM(given, 4), INT16_MIN, INT16_MAX, "epoch", &epoch) < 0 ||
        integer_of(PyTuple_GET_ITEM(given, 5), INT32_MIN, INT32_MAX, "sequence", &sequence) < 0)
        return -1;
    *row = (struct row){
        .topic = PyTuple_GET_ITEM(given, 0),
        .body = (Body *)PyTuple_GET_ITEM(given, 2),
        .partition = (int32_t)partition,
        .producer_id = producer_id,
        .epoch = (int16_t)epoch,
        .sequence = (int32_t)sequence,
        .after = -1,
    };
    return 0;
}

static int read_rows(struct request *r, PyObject *batches) {
    PyObject *known = NULL; /* name or id -> place */
    Py_ssize_t i = 0;
    for (; i < r->rows; i++) {
        struct row *row = &r->row[i];
        if (read_row(row, PyList_GET_ITEM(batches, i)) < 0) break;
        const Py_ssize_t place = find_topic(r, row->topic, &known);
        if (place < 0) break;
        struct topic *topic = &r->topic[place];
        if (topic->batches++ == 0) topic->first = i;
        else r->row[topic->last].after = i;
        topic->last = i;
    }
    Py_XDECREF(known);
    return i < r->rows ? -1 : 0;
}

/* --- the bytes */

static uint8_t *put_count(uint8_t *at, int flexible, Py_ssize_t count) {
    return flexible ? put_varint(at, (uint32_t)count + 1) : put_big(at, (uint64_t)count, 4);
}

static uint8_t *put_bytes(uint8_t *at, const char *data, Py_ssize_t length) {
    if (length > 0) memcpy(at, data, (size_t)length);
    return at + (length > 0 ? length : 0);
}

/* Null is a length of -1, which a compact string writes as 0. */
static uint8_t *put_string(uint8_t *at, int compact, const char *data, Py_ssize_t length) {
    at = compact ? put_varint(at, (uint32_t)(length + 1)) : put_big(at, (uint64_t)length, 2);
    return put_bytes(at, data, length);
}

/* What the glue takes at most, and how many pieces its batches have. */
static Py_ssize_t most_glue(const struct request *r, const struct text *client,
                            const struct text *transaction, Py_ssize_t *pieces) {
    enum { FIXED = 64, OF_TOPIC = 16, OF_BATCH = 16 + MP_HEADER_BYTES };
    Py_ssize_t bytes = FIXED + client->length + transaction->length;
    for (Py_ssize_t i = 0; i < r->topics; i++) bytes += OF_TOPIC + r->topic[i].length;
    *pieces = 0;
    for (Py_ssize_t i = 0; i < r->rows; i++) *pieces += Py_SIZE(r->row[i].body);
    return bytes + r->rows * OF_BATCH;
}

/* The glue since `from` goes out before what follows. */
static uint8_t *cut(Send *send, uint8_t *from, uint8_t *at) {
    if (at > from) send->iov[send->iovs++] = (struct iovec){from, (size_t)(at - from)};
    send->size += at - from;
    return at;
}

static void put_topics(const struct request *r, Send *send, uint8_t *at) {
    const int flexible = r->flexible;
    uint8_t *from = send->glue;
    at = put_count(at, flexible, r->topics);
    for (const struct topic *topic = r->topic; topic < r->topic + r->topics; topic++) {
        if (r->version >= TOPIC_IDS) at = put_bytes(at, topic->text, topic->length);
        else at = put_string(at, flexible, topic->text, topic->length);
        at = put_count(at, flexible, topic->batches);
        for (Py_ssize_t i = topic->first; i >= 0; i = r->row[i].after) {
            const struct row *row = &r->row[i];
            Body *body = row->body;
            at = put_big(at, (uint32_t)row->partition, 4);
            at = put_count(at, flexible, (Py_ssize_t)(MP_HEADER_BYTES + body->size));
            memcpy(at, body_header(body, row->producer_id, row->epoch, row->sequence),
                   MP_HEADER_BYTES);
            from = cut(send, from, at + MP_HEADER_BYTES);
            at = from;
            memcpy(&send->iov[send->iovs], body->piece,
                   (size_t)Py_SIZE(body) * sizeof *body->piece);
            send->iovs += Py_SIZE(body);
            send->size += body->size;
            send->owner[send->owners++] = Py_NewRef((PyObject *)body);
            if (flexible) *at++ = 0; /* no tagged fields, here and below */
        }
        if (flexible) *at++ = 0;
    }
    if (flexible) *at++ = 0;
    cut(send, from, at);
}

static PyObject *encode(const struct request *r, PyObject *const *args) {
    int64_t correlation_id, acks, timeout_ms;
    struct text client, transaction;
    if (integer_of(args[1], INT32_MIN, INT32_MAX, "correlation id", &correlation_id) < 0 ||
        text_of(args[2], "client id", &client) < 0 ||
        integer_of(args[3], INT16_MIN, INT16_MAX, "acks", &acks) < 0 ||
        integer_of(args[4], INT32_MIN, INT32_MAX, "timeout", &timeout_ms) < 0 ||
        text_of(args[5], "transactional id", &transaction) < 0)
        return NULL;
    Py_ssize_t pieces;
    const Py_ssize_t glue_bytes = most_glue(r, &client, &transaction, &pieces);
    Send *send = send_new(pieces + r->rows + 1, r->rows, glue_bytes);
    if (!send) return NULL;
    uint8_t *at = send->glue + 4; /* the length comes last */
    at = put_big(at, PRODUCE, 2);
    at = put_big(at, (uint64_t)r->version, 2);
    at = put_big(at, (uint64_t)correlation_id, 4);
    at = put_string(at, 0, client.data, client.length);
    if (r->flexible) *at++ = 0;
    at = put_string(at, r->flexible, transaction.data, transaction.length);
    at = put_big(at, (uint64_t)acks, 2);
    at = put_big(at, (uint64_t)timeout_ms, 4);
    put_topics(r, send, at);
    send->left = send->size;
    if (send->size - 4 > INT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "a request does not hold %zd bytes", send->size);
        Py_DECREF((PyObject *)send);
        return NULL;
    }
    put_big(send->glue, (uint64_t)send->size - 4, 4);
    return (PyObject *)send;
}

PyObject *produce_request(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    int64_t version;
    if (count != 7 || !PyList_Check(args[6])) {
        PyErr_SetString(PyExc_TypeError, "produce_request takes 7 arguments, and batches as a list");
        return NULL;
    }
    if (integer_of(args[0], INT16_MIN, INT16_MAX, "version", &version) < 0) return NULL;
    if (version < LOWEST || version > HIGHEST) {
        PyErr_Format(PyExc_ValueError, "Produce v%d is not spoken here", (int)version);
        return NULL;
    }
    struct request request = {
        .version = (int)version,
        .flexible = version >= FLEXIBLE,
        .rows = PyList_GET_SIZE(args[6]),
    };
    const size_t each = sizeof *request.row + sizeof *request.topic;
    request.row = PyMem_Malloc((size_t)request.rows * each + 1);
    if (!request.row) return PyErr_NoMemory();
    request.topic = (struct topic *)(request.row + request.rows);
    PyObject *made = read_rows(&request, args[6]) < 0 ? NULL : encode(&request, args);
    PyMem_Free(request.row);
    return made;
}
