/* The records of a chunk, out of their columns. */
#include "py_chunk.h"

int chunk_make(struct chunk *chunk, uint32_t room, int plain, int keyed) {
    chunk->room = room;
    chunk->values = PyMem_Malloc(room * sizeof *chunk->values);
    int missing = !chunk->values;
    if (keyed) {
        chunk->keys = PyMem_Malloc(room * sizeof *chunk->keys);
        missing |= !chunk->keys;
    }
    if (!plain) {
        chunk->records = PyMem_Malloc(room * sizeof *chunk->records);
        chunk->list = PyMem_Malloc(room * sizeof *chunk->list);
        missing |= !chunk->records || !chunk->list;
    }
    if (missing) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

void chunk_free(struct chunk *chunk) {
    PyMem_Free(chunk->values);
    PyMem_Free(chunk->keys);
    PyMem_Free(chunk->records);
    PyMem_Free((void *)chunk->list);
    PyMem_Free(chunk->views);
}

void chunk_release(struct chunk *chunk) {
    for (uint32_t i = 0; i < chunk->view_count; i++) PyBuffer_Release(&chunk->views[i]);
    chunk->view_count = 0;
    for (uint32_t i = 0; i < chunk->record_count; i++)
        PyMem_Free((void *)(uintptr_t)chunk->records[i].headers);
    chunk->record_count = 0;
}

static int keep_view(struct chunk *chunk, struct request *r) {
    if (r->view_count == 0) return 0;
    if (!chunk->views &&
        !(chunk->views = PyMem_Malloc(sizeof *chunk->views * 2 * chunk->room))) {
        release_record(r);
        PyErr_NoMemory();
        return -1;
    }
    chunk->views[chunk->view_count++] = r->views[0];
    r->view_count = 0;
    return 0;
}

/* What is known to be bytes or None. */
static void read_plain(const struct column *c, Py_ssize_t at, uint32_t count,
                       struct mp_value *values, uint64_t *sizes) {
    uint64_t all = 0;
    for (uint32_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(c->objects, at + i);
        if (item == Py_None) {
            values[i] = (struct mp_value){NULL, -1};
            continue;
        }
        const Py_ssize_t size = PyBytes_GET_SIZE(item);
        values[i].data = (const uint8_t *)PyBytes_AS_STRING(item);
        values[i].bytes = (int32_t)(size > MAX_FIELD ? MAX_FIELD : size);
        all |= (uint64_t)size;
    }
    *sizes |= all;
}

static Py_ssize_t read_objects(struct chunk *chunk, const struct column *c, Py_ssize_t at,
                               uint32_t count, struct mp_value *values, uint64_t *sizes) {
    if (c->plain) {
        read_plain(c, at, count, values, sizes);
        return count;
    }
    uint64_t bytes = 0;
    struct request r = {.view_count = 0, .headers = NULL};
    for (uint32_t i = 0; i < count; i++) {
        r.too_large = 0;
        if (take_bytes(&r, PyTuple_GET_ITEM(c->objects, at + i), c->what, &values[i].data,
                       &values[i].bytes) < 0 ||
            keep_view(chunk, &r) < 0)
            return -1;
        if (r.too_large) values[i].bytes = MAX_FIELD;
        const uint64_t size = values[i].bytes > 0 ? (uint64_t)values[i].bytes : 0;
        *sizes |= size;
        bytes += size;
        if (bytes > CHUNK_BYTES) return i + 1;
    }
    return count;
}

static Py_ssize_t read_column(struct chunk *chunk, struct column *c, Py_ssize_t at,
                              Py_ssize_t count, struct mp_value *values, uint64_t *sizes) {
    if (count < 0 || c->length < 0) return count;
    if (c->objects) return read_objects(chunk, c, at, (uint32_t)count, values, sizes);
    if (read_bytes(c, at, (uint32_t)count, values, sizes) == 0) return count;
    PyErr_Format(PyExc_ValueError, "%s: the offsets have changed while they were read", c->what);
    return -1;
}

static int read_headers(struct mp_record *record, PyObject *object) {
    struct request r = {.view_count = 0, .headers = NULL, .too_large = 0};
    if (take_headers(&r, object) < 0) return -1;
    if (!r.headers) return 0;
    uint8_t *copy = PyMem_Malloc(r.record.headers_bytes);
    if (copy) memcpy(copy, r.headers, r.record.headers_bytes);
    record->headers = copy;
    record->headers_bytes = copy ? r.record.headers_bytes : 0;
    release_record(&r);
    if (copy) return 0;
    PyErr_NoMemory();
    return -1;
}

Py_ssize_t chunk_read(struct chunk *chunk, struct column *values, struct column *keys,
                      struct column *headers, Py_ssize_t at, uint32_t room, int64_t now_ms,
                      uint64_t *sizes) {
    uint64_t key_sizes = 0;
    Py_ssize_t count = read_column(chunk, values, at, room, chunk->values, sizes);
    count = read_column(chunk, keys, at, count, chunk->keys, &key_sizes);
    if (!chunk->records) return count;
    for (Py_ssize_t i = 0; i < count; i++) {
        struct mp_record *record = &chunk->records[i];
        *record = mp_plain_record(&chunk->values[i], now_ms);
        if (chunk->keys) {
            record->key = chunk->keys[i].data;
            record->key_bytes = chunk->keys[i].bytes;
        }
        chunk->list[i] = record;
    }
    if (headers->length < 0 || count < 0) return count;
    chunk->record_count = (uint32_t)count;
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_headers(&chunk->records[i], PyTuple_GET_ITEM(headers->objects, at + i)) < 0)
            return -1;
    return count;
}
