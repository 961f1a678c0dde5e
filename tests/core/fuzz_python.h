/* An interpreter inside a libFuzzer target, with the instrumented core as mpproducer._core.native.
 * PYTHONPATH names the project; PYTHONMALLOC=malloc lets AddressSanitizer see Python's objects. */
#ifndef MP_FUZZ_PYTHON_H
#define MP_FUZZ_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

PyMODINIT_FUNC PyInit_native(void);
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

static void python_failed(void) {
    PyErr_Print();
    abort();
}

/* Starts Python, runs `source`, and returns its namespace. */
static PyObject *start_python(const char *source) {
    if (PyImport_AppendInittab("native", PyInit_native) < 0) abort();
    Py_InitializeEx(0);
    PyObject *main = PyImport_AddModule("__main__");
    PyObject *names = main ? PyModule_GetDict(main) : NULL;
    if (!names) python_failed();
    static const char *const first = "import sys, native\n"
                                     "sys.modules['mpproducer._core.native'] = native\n"
                                     "import mpproducer._core\n"
                                     "mpproducer._core.native = native\n";
    const char *const sources[] = {first, source};
    for (int i = 0; i < 2; i++) {
        PyObject *done = PyRun_String(sources[i], Py_file_input, names, names);
        if (!done) python_failed();
        Py_DECREF(done);
    }
    return names;
}

#endif
