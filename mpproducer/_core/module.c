/* Module `native`: constants, leaves, and the Python classes that results are built with. */
#include "py_batch.h"

#include <errno.h>
#include <pthread.h>

#include "py_wire.h"

uint32_t mp_fork_generation;
PyObject *mp_make_metadata, *mp_make_error, *mp_make_await, *mp_watch, *mp_make_batch_future;

/* Also forks that Python does not hear of make every inherited attachment unusable. */
static void in_child(void) { mp_fork_generation++; }

static PyObject *segment_sizes(PyObject *Py_UNUSED(module), PyObject *args) {
    unsigned slots, max_partitions, max_topics;
    if (!PyArg_ParseTuple(args, "III", &slots, &max_partitions, &max_topics)) return NULL;
    size_t ctl, pool;
    mp_segment_sizes(slots, max_partitions, max_topics, &ctl, &pool);
    return Py_BuildValue("nn", (Py_ssize_t)ctl, (Py_ssize_t)pool);
}

/* For who looks at a host and sends nothing: what metrics_read says of a control segment. */
static PyObject *read_metrics(PyObject *Py_UNUSED(module), PyObject *args) {
    int fd;
    unsigned max_partitions, max_topics;
    if (!PyArg_ParseTuple(args, "iII", &fd, &max_partitions, &max_topics)) return NULL;
    struct mp_region region;
    const char *failed = mp_control_map(&region, fd, max_partitions, max_topics);
    PyObject *found = NULL;
    if (failed)
        PyErr_Format(PyExc_OSError, "%s (errno %d)", failed, errno);
    else if (region.ctl->magic != MP_MAGIC || region.ctl->layout_hash != mp_layout_hash())
        PyErr_SetString(PyExc_ValueError, "the segment has another layout than this process");
    else
        found = metrics_read(&region);
    mp_region_unmap(&region);
    return found;
}

static PyObject *murmur2(PyObject *Py_UNUSED(module), PyObject *data) {
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) return NULL;
    const uint32_t hash = mp_murmur2(view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(hash);
}

static PyObject *failed_future(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *topic, *error;
    if (!PyArg_ParseTuple(args, "UO", &topic, &error)) return NULL;
    if (!PyExceptionInstance_Check(error)) {
        PyErr_SetString(PyExc_TypeError, "error must be an exception");
        return NULL;
    }
    return future_failed(topic, error);
}

static PyObject *configure(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"metadata", "error", "await_", "watch", "batch_future", NULL};
    PyObject *given[5];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOOOO", names, &given[0], &given[1], &given[2],
                                     &given[3], &given[4]))
        return NULL;
    PyObject **targets[] = {&mp_make_metadata, &mp_make_error, &mp_make_await, &mp_watch,
                            &mp_make_batch_future};
    for (int i = 0; i < 5; i++) {
        PyObject *old = *targets[i];
        *targets[i] = Py_NewRef(given[i]);
        Py_XDECREF(old);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"segment_sizes", segment_sizes, METH_VARARGS, NULL},
    {"murmur2", murmur2, METH_O, NULL},
    {"produce_request", (PyCFunction)(void *)produce_request, METH_FASTCALL, NULL},
    {"produce_decode", produce_decode, METH_VARARGS, NULL},
    {"read_metrics", read_metrics, METH_VARARGS, NULL},
    {"failed_future", failed_future, METH_VARARGS, NULL},
    {"configure", (PyCFunction)(void *)configure, METH_VARARGS | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, const char *name, PyTypeObject *type) {
    return PyType_Ready(type) < 0 ||
           PyModule_AddObjectRef(module, name, (PyObject *)type) < 0;
}

static int exec_module(PyObject *module) {
    static int registered;
    if (!registered && pthread_atfork(NULL, NULL, in_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    registered = 1;
    /* Until configure(): a call of them is a TypeError. */
    PyObject **const hooks[] = {&mp_make_metadata, &mp_make_error, &mp_make_await, &mp_watch,
                                &mp_make_batch_future};
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++)
        if (!*hooks[i]) *hooks[i] = Py_NewRef(Py_None);
    mp_corrupt_error = PyErr_NewException("mpproducer._core.native.CorruptBatch", NULL, NULL);
    PyObject *hash = PyLong_FromUnsignedLongLong(mp_layout_hash());
    if (!mp_corrupt_error || !hash || PyType_Ready(&TopicRef_Type) < 0 ||
        PyModule_AddObjectRef(module, "CorruptBatch", mp_corrupt_error) < 0 ||
        PyModule_AddObjectRef(module, "LAYOUT_HASH", hash) < 0 ||
        PyModule_AddIntConstant(module, "LAYOUT_VERSION", MP_LAYOUT_VERSION) < 0 ||
        PyModule_AddIntConstant(module, "SLOT_SIZE", MP_SLOT_BYTES) < 0 ||
        PyModule_AddIntConstant(module, "MAX_OWNERS", MP_MAX_OWNERS) < 0 ||
        PyModule_AddIntConstant(module, "MAX_BATCH_BYTES", MP_MAX_BYTES) < 0 ||
        PyModule_AddIntConstant(module, "MAX_BATCH_RECORDS", MP_MAX_RECORDS) < 0 ||
        PyModule_AddIntConstant(module, "COUNTERS", MP_COUNTERS) < 0 ||
        PyModule_AddIntConstant(module, "TALLY_FIRST", MP_TALLY_FIRST) < 0 ||
        PyModule_AddIntConstant(module, "TALLIES", MP_TALLY_WORDS) < 0 ||
        PyModule_AddIntConstant(module, "NODES", MP_NODES) < 0 ||
        PyModule_AddIntConstant(module, "BUCKETS", MP_BUCKETS) < 0 ||
        PyModule_AddIntConstant(module, "TOPIC_WANTED", MP_T_WANTED) < 0 ||
        PyModule_AddIntConstant(module, "TOPIC_READY", MP_T_READY) < 0 ||
        PyModule_AddIntConstant(module, "TOPIC_ERROR", MP_T_ERROR) < 0 ||
        add_type(module, "Metrics", &Metrics_Type) || add_type(module, "Pool", &Pool_Type) ||
        add_type(module, "Body", &Body_Type) || add_type(module, "Send", &Send_Type) ||
        add_type(module, "FrameReader", &FrameReader_Type) ||
        add_type(module, "Attachment", &Attachment_Type) ||
        add_type(module, "DeliveryFuture", &Future_Type) ||
        add_type(module, "Runs", &Runs_Type) || add_type(module, "ProducerBase", &Producer_Type))
        return -1;
    Py_DECREF(hash);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, exec_module},
#ifdef Py_mod_multiple_interpreters
    /* Types and the process's attachments are static: one interpreter per process. */
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native",
    .m_doc = "The C core: shared-memory accumulator, futures, and the send path.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_native(void) { return PyModuleDef_Init(&definition); }
