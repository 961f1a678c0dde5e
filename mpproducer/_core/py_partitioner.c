/* The user's own partitioner: asked before anything is appended, and its answer checked. */
#include "py_producer.h"

int choice_begin(struct choice *choice, Attachment *a, const TopicRef *ref) {
    const uint32_t count =
        atomic_load_explicit(&ref->topic->partition_count, memory_order_acquire);
    choice->count = count;
    choice->all = PyList_New(count);
    choice->available = PyList_New(0);
    for (uint32_t i = 0; choice->all && choice->available && i < count; i++) {
        const uint32_t index = mp_topic_index(ref->topic, i);
        PyObject *number = PyLong_FromUnsignedLong(i);
        if (!number || (atomic_load_explicit(&a->writer.region.available[index],
                                             memory_order_relaxed) &&
                        PyList_Append(choice->available, number) < 0)) {
            Py_XDECREF(number);
            choice_end(choice);
            return -1;
        }
        PyList_SET_ITEM(choice->all, i, number);
    }
    if (choice->all && choice->available) return 0;
    choice_end(choice);
    return -1;
}

void choice_end(struct choice *choice) {
    Py_CLEAR(choice->all);
    Py_CLEAR(choice->available);
}

static int64_t check_answer(PyObject *answer, PyObject *topic, uint32_t count) {
    int64_t partition = -1;
    const int is_int = PyIndex_Check(answer) && !PyBool_Check(answer);
    PyObject *whole = is_int ? PyNumber_Index(answer) : NULL;
    if (is_int && !whole) return -1;
    if (whole) {
        int overflow;
        partition = PyLong_AsLongLongAndOverflow(whole, &overflow);
        Py_DECREF(whole);
        if (!overflow && partition >= 0 && partition < (int64_t)count) return partition;
    }
    PyErr_Format(is_int ? PyExc_ValueError : PyExc_TypeError,
                 "the partitioner returned %.100R for topic %R: it must return an int from 0 to "
                 "%u; nothing was sent",
                 answer, topic, count - 1);
    return -1;
}

int64_t choice_ask(const struct choice *choice, Producer *self, PyObject *topic,
                   const struct mp_record *record) {
    PyObject *key = record->key_bytes < 0
                        ? Py_NewRef(Py_None)
                        : PyBytes_FromStringAndSize((const char *)record->key, record->key_bytes);
    if (!key) return -1;
    PyObject *partitioner = Py_NewRef(self->partitioner);
    PyObject *answer =
        PyObject_CallFunctionObjArgs(partitioner, key, choice->all, choice->available, NULL);
    const int64_t partition = answer ? check_answer(answer, topic, choice->count) : -1;
    Py_XDECREF(answer);
    Py_DECREF(partitioner);
    Py_DECREF(key);
    return partition;
}
