/* send_many(): records are decoded in chunks, put in order by partition, and appended in runs. */
#include "py_batch.h"
#include "py_chunk.h"
#include "py_producer.h"

#define CHUNK 1024u             /* records that are decoded before they are appended */
#define CHUNK_OF_MANY 8192u     /* at most, where many partitions would make short runs */
#define RECORDS_PER_PARTITION 64u
#define CHUNKS_PER_BREATH 64u   /* then other threads get the GIL, if one wants it */
#define END UINT32_MAX

struct sending {
    Producer *self;
    PyObject *topic;
    struct column values, keys, headers, times, partitions;
    int64_t partition; /* of all records, or -1 */
    Py_ssize_t count;
    Runs *runs;
    Attachment *a;
    TopicRef *ref;
    int64_t deadline, now_ms;
    struct chunk chunk;
    int64_t *integers;
    /* lists of a chunk's records by partition; the entry behind the last partition is for records
     * whose partition does not exist */
    uint32_t partition_room;
    uint32_t *head, *tail, *next;
    uint32_t *touched; /* partitions in order of their first record */
};

/* A usable attachment that knows the topic and the partition. 0, or -1 with an exception. */
static int ready(struct sending *s, int64_t partition) {
    if (producer_check_open(s->self) < 0) return -1;
    for (;;) {
        if (!s->a || !attachment_usable(s->a)) {
            Py_CLEAR(s->a);
            if (!(s->a = producer_attach(s->self, &s->deadline))) return -1;
        }
        s->ref = producer_topic(s->self, s->a, s->topic, partition, &s->deadline);
        if (s->ref) return 0;
        if (PyErr_Occurred()) return -1;
    }
}

static uint32_t partition_count(const struct sending *s) {
    return atomic_load_explicit(&s->ref->topic->partition_count, memory_order_acquire);
}

/* --- appending */

static enum mp_status append_once(struct sending *s, uint32_t to, uint32_t from, uint32_t count,
                                  int roam, struct mp_place *place) {
    struct mp_writer *writer = &s->a->writer;
    const uint32_t partition = mp_topic_index(s->ref->topic, to);
    if (!s->chunk.records)
        return mp_append_values(writer, partition, s->chunk.values + from, count, s->now_ms, roam,
                                place);
    return mp_append_run(writer, partition, s->chunk.list + from, count, roam, place);
}

/* Appends `count` records of the chunk's list to a partition, or where the sticky one is if
 * `partition` is -1. Each has a run afterwards; or -1 with an exception, which is the outcome of all
 * that have none. *sealed tells whether a batch was filled. */
static int append(struct sending *s, uint32_t from, uint32_t count, int64_t partition,
                  int *sealed) {
    for (uint32_t done = 0; done < count;) {
        if (ready(s, partition) < 0) return -1;
        if (runs_reserve(s->runs) < 0 || attachment_reserve(s->a) < 0) return -1;
        Attachment *a = s->a;
        const uint32_t partitions = partition_count(s);
        const uint32_t to =
            partition < 0 ? sticky_partition(a, s->ref, partitions) : (uint32_t)partition;
        struct mp_place place;
        const enum mp_status status =
            append_once(s, to, from + done, count - done, partition < 0, &place);
        if (status == MP_DONE) {
            const uint32_t before = a->pending;
            runs_add(s->runs, batch_of(a, s->topic, to, &place), place.index, place.count);
            a->bytes += place.bytes;
            a->records += place.count;
            done += place.count;
            *sealed |= mp_filled_batch(&place);
            if (partition < 0) sticky_appended(a, s->ref, partitions, to, &place);
            if (place.sealed_count > 0) attachment_compress(a, &place);
            if (a->pending != before) attachment_look(a);
            continue;
        }
        if (status == MP_FULL) move_sticky(a, s->ref, partitions, to);
        if (place.sealed_count > 0) attachment_compress(a, &place);
        const struct mp_record record = chunk_record(&s->chunk, from + done, s->now_ms);
        if (producer_wait(s->self, a, &record, status, place.units, &s->deadline) == 0) continue;
        if (status != MP_NO_MEMORY || !attachment_usable(a) ||
            place.units <= a->writer.region.slots)
            return -1;
        if (runs_fail(s->runs, s->topic, 1) < 0) return -1; /* larger than the whole memory */
        done++;
    }
    return 0;
}

static int make_lists(struct sending *s, uint32_t partitions) {
    if (s->partition_room > partitions) return 0;
    const size_t size = ((size_t)partitions + 1) * sizeof *s->head;
    uint32_t *head = PyMem_Realloc(s->head, size);
    if (head) s->head = head;
    uint32_t *tail = PyMem_Realloc(s->tail, size);
    if (tail) s->tail = tail;
    if (!head || !tail) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i <= partitions; i++) head[i] = END;
    s->partition_room = partitions + 1;
    return 0;
}

/* Where each record of the chunk goes; returns how many partitions there are in `touched`. `bound`:
 * how many of the records may go nowhere else. */
static uint32_t divide(struct sending *s, uint32_t count, uint32_t partitions, uint32_t sticky,
                       uint32_t *bound) {
    const int by_key = s->keys.length >= 0 && !s->a->writer.region.ctl->ignore_keys;
    uint32_t touched = 0;
    *bound = count;
    for (uint32_t i = 0; i < count; i++) {
        const struct mp_record *record = &s->chunk.records[i];
        uint32_t to = sticky;
        if (s->partitions.length >= 0 && s->integers[i] != NO_INT)
            to = s->integers[i] < partitions ? (uint32_t)s->integers[i] : partitions;
        else if (by_key && record->key_bytes >= 0)
            to = (mp_murmur2(record->key, (size_t)record->key_bytes) & 0x7fffffffu) % partitions;
        else
            --*bound;
        s->next[i] = END;
        if (s->head[to] == END) {
            s->head[to] = i;
            s->touched[touched++] = to;
        } else {
            s->next[s->tail[to]] = i;
        }
        s->tail[to] = i;
    }
    return touched;
}

/* A chunk whose records go to several partitions: those of each together, in their order. */
static int append_divided(struct sending *s, Py_ssize_t at, uint32_t count) {
    PyObject *type = NULL, *unknown = NULL, *trace = NULL;
    if (s->partitions.length >= 0) {
        int64_t last = -1;
        read_integers(&s->partitions, at, count, s->integers);
        for (uint32_t i = 0; i < count; i++)
            if (s->integers[i] > last) last = s->integers[i];
        if (ready(s, last) < 0) { /* the outcome of those that are behind the last partition */
            if (!is_not_written()) return -1;
            PyErr_Fetch(&type, &unknown, &trace);
            if (ready(s, -1) < 0) goto failed;
        }
    }
    const uint32_t partitions = partition_count(s);
    const uint32_t sticky = sticky_partition(s->a, s->ref, partitions);
    if (make_lists(s, partitions) < 0) goto failed;
    uint32_t bound;
    const uint32_t touched = divide(s, count, partitions, sticky, &bound);
    uint32_t place = 0;
    for (uint32_t n = 0; n < touched; n++) {
        const uint32_t to = s->touched[n];
        for (uint32_t i = s->head[to]; i != END; i = s->next[i]) {
            s->chunk.list[place] = &s->chunk.records[i];
            s->runs->order[at + place] = (uint32_t)(at + i);
            place++;
        }
        s->head[to] = END;
        s->tail[n] = place; /* where that partition's records end; the tails are done with */
    }
    for (uint32_t n = 0, from = 0; n < touched; from = s->tail[n++]) {
        const uint32_t to = s->touched[n], size = s->tail[n] - from;
        int sealed = 0, result;
        if (to == partitions) {
            Py_XINCREF(type);
            Py_XINCREF(unknown);
            Py_XINCREF(trace);
            PyErr_Restore(type, unknown, trace);
            count_failed((PyObject *)s->a, size);
            result = runs_fail(s->runs, s->topic, size);
        } else { /* without a bound one they move on by themselves; else to keep their order */
            result = append(s, from, size, bound > 0 ? (int64_t)to : -1, &sealed);
        }
        if (result < 0) goto failed;
        /* Callbacks and compressors ran meanwhile: they may have detached. */
        if (sealed && bound > 0 && to == sticky && attachment_usable(s->a))
            move_sticky(s->a, s->ref, partitions, sticky);
    }
    Py_XDECREF(type);
    Py_XDECREF(unknown);
    Py_XDECREF(trace);
    return 0;
failed:
    Py_XDECREF(type);
    Py_XDECREF(unknown);
    Py_XDECREF(trace);
    return -1;
}

/* --- one chunk */

static int read_times(struct sending *s, Py_ssize_t at, Py_ssize_t count) {
    if (s->times.length < 0) return 0;
    int64_t *times = s->runs->timestamps + at;
    if (!s->times.objects) {
        read_integers(&s->times, at, (uint32_t)count, times);
    } else {
        for (Py_ssize_t i = 0; i < count; i++) {
            struct request r;
            r.record.timestamp_ms = NO_INT;
            if (take_timestamp(&r, PyTuple_GET_ITEM(s->times.objects, at + i)) < 0) return -1;
            times[i] = r.record.timestamp_ms;
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (times[i] == NO_INT) times[i] = s->now_ms;
        s->chunk.records[i].timestamp_ms = times[i];
    }
    return 0;
}

/* How many of the records at the beginning make a chunk that is not too large; 0: the first alone is
 * larger than a request, by *bound. `sizes` bounds each value. */
static Py_ssize_t fit(const struct sending *s, Py_ssize_t count, uint64_t sizes, uint64_t *bound) {
    const uint64_t most = s->a->writer.region.ctl->max_request_size;
    const struct mp_record plain = {.value_bytes = 0};
    const uint64_t more = request_bound(&plain) + sizes;
    if (!s->chunk.records && more <= most && more * (uint64_t)count <= CHUNK_BYTES) return count;
    uint64_t bytes = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        const struct mp_record record = chunk_record(&s->chunk, (uint32_t)i, s->now_ms);
        *bound = request_bound(&record);
        bytes += *bound;
        if (*bound > most || (bytes > CHUNK_BYTES && i > 0)) return i;
    }
    return count;
}

/* Sends the records from `at` on that make a chunk; returns how many, or -1 with the exception that
 * is the outcome of all that have no run. A record that is too large is a chunk of its own. */
static Py_ssize_t send_chunk(struct sending *s, Py_ssize_t at) {
    const Py_ssize_t left = s->count - at;
    uint64_t sizes = 0, bound = 0;
    Py_ssize_t count =
        chunk_read(&s->chunk, &s->values, &s->keys, &s->headers, at,
                   left < s->chunk.room ? (uint32_t)left : s->chunk.room, s->now_ms, &sizes);
    if (count < 0 || read_times(s, at, count) < 0 || ready(s, s->partition) < 0) return -1;
    count = fit(s, count, sizes, &bound);
    if (count == 0) {
        raise_too_large(bound, s->a->writer.region.ctl->max_request_size, "max_request_size");
        count_failed((PyObject *)s->a, 1);
        return runs_fail(s->runs, s->topic, 1) < 0 ? -1 : 1;
    }
    int sealed = 0;
    const int result = s->runs->order ? append_divided(s, at, (uint32_t)count)
                                      : append(s, 0, (uint32_t)count, s->partition, &sealed);
    return result < 0 ? -1 : count;
}

/* --- the call */

/* Has the user's partitioner choose for every record that names no partition; its choices become the
 * column of partitions. 0, or -1 with an exception: nothing is appended yet. */
static int ask_partitioner(struct sending *s) {
    if (s->self->partitioner == Py_None || s->partition >= 0 || s->count == 0) return 0;
    struct column chosen = {.what = "partition", .length = s->count, .form = FORM_INT64};
    struct choice choice;
    if (ready(s, -1) < 0 || choice_begin(&choice, s->a, s->ref) < 0) return -1;
    chosen.held = PyBytes_FromStringAndSize(NULL, s->count * 8);
    chosen.pieces = PyMem_Calloc(1, sizeof *chosen.pieces);
    if (!chosen.held || !chosen.pieces) {
        if (!PyErr_Occurred()) PyErr_NoMemory();
        goto failed;
    }
    char *numbers = PyBytes_AS_STRING(chosen.held);
    chosen.piece_count = 1;
    chosen.pieces[0] = (struct piece){
        .length = s->count, .rows = (const uint8_t *)numbers, .stride = 8};
    for (Py_ssize_t at = 0; at < s->count; at++) {
        int64_t partition = NO_INT;
        struct request r = {.view_count = 0, .headers = NULL, .record.key_bytes = -1};
        if (s->partitions.length >= 0) read_integers(&s->partitions, at, 1, &partition);
        if (partition == NO_INT) {
            if (s->keys.objects) {
                if (take_bytes(&r, PyTuple_GET_ITEM(s->keys.objects, at), "key", &r.record.key,
                               &r.record.key_bytes) < 0)
                    goto failed;
            } else if (s->keys.length >= 0) {
                struct mp_value key;
                uint64_t sizes = 0;
                if (read_bytes(&s->keys, at, 1, &key, &sizes) < 0) {
                    PyErr_SetString(PyExc_ValueError, "keys: the offsets have changed meanwhile");
                    goto failed;
                }
                r.record.key = key.data;
                r.record.key_bytes = key.bytes;
            }
            partition = choice_ask(&choice, s->self, s->topic, &r.record);
            release_record(&r);
            if (partition < 0) goto failed;
        }
        memcpy(numbers + at * 8, &partition, 8);
    }
    choice_end(&choice);
    release_column(&s->partitions);
    s->partitions = chosen;
    return 0;
failed:
    choice_end(&choice);
    release_column(&chosen);
    return -1;
}

/* An error amid many records (closed, no memory, no sender): those that are appended keep their
 * futures, so the error becomes the outcome of the rest. Before the first it is raised, unless it
 * is of the kind that send() returns in a future. */
static int fail_rest(struct sending *s) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    if (s->runs->count == 0 && !is_not_written()) return -1;
    count_failed((PyObject *)s->a, (uint64_t)(s->count - s->runs->count));
    return runs_fail(s->runs, s->topic, s->count - s->runs->count);
}

static int prepare(struct sending *s) {
    const int divided =
        s->partitions.length >= 0 || (s->keys.length >= 0 && s->partition < 0);
    if ((uint64_t)s->count > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "send_many takes at most 2**32-1 records in one call");
        return -1;
    }
    uint32_t room = CHUNK;
    if (divided && s->count > CHUNK) {
        if (ready(s, -1) < 0) return -1;
        const uint32_t wanted = partition_count(s) * RECORDS_PER_PARTITION;
        room = wanted < CHUNK ? CHUNK : wanted > CHUNK_OF_MANY ? CHUNK_OF_MANY : wanted;
    }
    if (s->count < room) room = (uint32_t)s->count;
    const int plain = !divided && s->keys.length < 0 && s->headers.length < 0 && s->times.length < 0;
    if (chunk_make(&s->chunk, room, plain, s->keys.length >= 0) < 0) return -1;
    int missing = 0;
    if (divided) {
        s->next = PyMem_Malloc(room * sizeof *s->next);
        s->touched = PyMem_Malloc(room * sizeof *s->touched);
        s->integers = PyMem_Malloc(room * sizeof *s->integers);
        s->runs->order = PyMem_Malloc((size_t)s->count * sizeof *s->runs->order);
        missing |= !s->next || !s->touched || !s->integers || !s->runs->order;
    }
    if (s->times.length >= 0) {
        s->runs->timestamps = PyMem_Malloc((size_t)s->count * sizeof *s->runs->timestamps);
        missing |= !s->runs->timestamps;
    }
    if (missing) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; divided && i < s->count; i++) s->runs->order[i] = (uint32_t)i;
    return 0;
}

static PyObject *send_all(struct sending *s) {
    s->count = s->values.length;
    s->now_ms = wall_clock_ms();
    s->runs = runs_new(s->count);
    if (!s->runs) return NULL;
    s->runs->timestamp_ms = s->now_ms;
    int failed = s->count > 0 && (ask_partitioner(s) < 0 || prepare(s) < 0);
    uint32_t chunks = 0;
    for (Py_ssize_t at = 0; !failed && at < s->count;) {
        const Py_ssize_t sent = send_chunk(s, at);
        chunk_release(&s->chunk);
        failed = sent < 0;
        drop_objects(&s->values, at, sent);
        drop_objects(&s->keys, at, sent);
        at += sent;
        if (++chunks % CHUNKS_PER_BREATH == 0) {
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
    }
    PyObject *result = NULL;
    if (!failed || fail_rest(s) == 0)
        result = PyObject_CallOneArg(mp_make_batch_future, (PyObject *)s->runs);
    chunk_free(&s->chunk);
    PyMem_Free(s->integers);
    PyMem_Free(s->head);
    PyMem_Free(s->tail);
    PyMem_Free(s->next);
    PyMem_Free(s->touched);
    Py_XDECREF((PyObject *)s->a);
    Py_DECREF((PyObject *)s->runs);
    return result;
}

/* Bad records are found before anything is appended; columns were checked when they were taken. */
static int check_objects(struct sending *s) {
    const Py_ssize_t count = s->values.length;
    PyObject *none = Py_None;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *value = s->values.objects ? PyTuple_GET_ITEM(s->values.objects, i) : none;
        PyObject *key = s->keys.objects ? PyTuple_GET_ITEM(s->keys.objects, i) : none;
        PyObject *headers = s->headers.objects ? PyTuple_GET_ITEM(s->headers.objects, i) : none;
        PyObject *time = s->times.objects ? PyTuple_GET_ITEM(s->times.objects, i) : none;
        if ((value == none || PyBytes_CheckExact(value)) &&
            (key == none || PyBytes_CheckExact(key)) && headers == none && time == none)
            continue;
        struct request r;
        if (take_record(&r, value, key, headers, time) == 0) {
            release_record(&r);
            continue;
        }
        PyObject *type, *error, *trace;
        PyErr_Fetch(&type, &error, &trace);
        PyErr_Format(type, "record %zd: %S; nothing was sent", i, error);
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(trace);
        return -1;
    }
    return 0;
}

static int take_columns(struct sending *s, PyObject *const *slot) {
    if (slot[1] == Py_None) {
        PyErr_SetString(PyExc_TypeError, "values must be a sequence of bytes-like objects, or a "
                                         "column of numpy or Arrow");
        return -1;
    }
    const int divided = is_integer_column(slot[4]);
    if (divided < 0 || (!divided && take_partition(slot[4], &s->partition) < 0)) return -1;
    if (take_bytes_column(&s->values, slot[1], "values", -1) < 0) return -1;
    const Py_ssize_t count = s->values.length;
    if (take_bytes_column(&s->keys, slot[2], "keys", count) < 0 ||
        take_object_column(&s->headers, slot[3], "headers", count) < 0 ||
        take_time_column(&s->times, slot[5], count) < 0)
        return -1;
    if (divided && take_partition_column(&s->partitions, slot[4], count) < 0)
        return -1;
    const int plain = (!s->values.objects || s->values.plain) &&
                      (!s->keys.objects || s->keys.plain) && !s->headers.objects &&
                      !s->times.objects;
    return plain ? 0 : check_objects(s);
}

PyObject *producer_send_many(Producer *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames) {
    static PyObject *names[6];
    static const char *const texts[] = {"topic",   "values",    "keys",
                                        "headers", "partition", "timestamps_ms"};
    for (int i = 0; i < 6; i++)
        if (!names[i] && !(names[i] = PyUnicode_InternFromString(texts[i]))) return NULL;
    PyObject *slot[6];
    if (parse_arguments(args, nargs, kwnames, slot, names, "send_many") < 0) return NULL;
    struct sending s = {.self = self, .topic = slot[0], .partition = -1};
    struct column *columns[] = {&s.values, &s.keys, &s.headers, &s.times, &s.partitions};
    for (int i = 0; i < 5; i++) columns[i]->length = -1;
    PyObject *result = take_columns(&s, slot) == 0 ? send_all(&s) : NULL;
    for (int i = 0; i < 5; i++) release_column(columns[i]);
    Py_DECREF(slot[0]);
    return result;
}
