/* libFuzzer target of Produce responses: a value, or the one error; no byte is read outside the frame.
 *
 * Input: one byte for the version, then the frame, of correlation id 0. */
#include "fuzz_python.h"

static PyObject *decode, *types[3];

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    PyObject *names = start_python("from collections import namedtuple\n"
                                   "class Refused(Exception): pass\n"
                                   "decode = native.produce_decode\n"
                                   "Response = namedtuple('Response', 'a b c')\n"
                                   "Partition = namedtuple('Partition', 'a b c d e f g h')\n");
    decode = PyDict_GetItemString(names, "decode");
    types[0] = PyDict_GetItemString(names, "Response");
    types[1] = PyDict_GetItemString(names, "Partition");
    types[2] = PyDict_GetItemString(names, "Refused");
    if (!decode || !types[0] || !types[1] || !types[2]) python_failed();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    if (size < 1) return 0;
    uint8_t *exact = malloc(size); /* a read behind its end is seen */
    memcpy(exact, input + 1, size - 1);
    exact = realloc(exact, size > 1 ? size - 1 : 1);
    PyObject *frame = PyMemoryView_FromMemory((char *)exact, (Py_ssize_t)size - 1, PyBUF_READ);
    PyObject *told = frame ? PyObject_CallFunction(decode, "OiiOOO", frame, 3 + input[0] % 11, 0,
                                                   types[0], types[1], types[2])
                           : NULL;
    if (!told && !PyErr_ExceptionMatches(types[2])) python_failed();
    if (told && PyErr_Occurred()) python_failed();
    PyErr_Clear();
    Py_XDECREF(told);
    Py_XDECREF(frame);
    free(exact);
    return 0;
}
