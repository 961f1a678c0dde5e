/* libFuzzer target of columns: Arrow arrays through the C data interface, and pairs of offsets and
 * data. What a column's checks let pass is read without a byte outside what it said it has.
 *
 * Input: which form, which column, lengths, then the bytes of validity, offsets, views, rows and data.
 * Buffers are allocations of exactly the size that the format asks for; what is arbitrary is what
 * they hold, and every field that has a wrong value which can be told. */
#include "fuzz_python.h"

#include "py_columns.h"

enum { MOST = 40, MOST_DATA = 4000 };

static const char *const formats[] = {"z", "u", "Z", "U", "vz", "vu", "w:3", "w:0", "n", "l", "i",
                                      "tsm:", "tss:", "tsn:UTC", "w:-1", "+s", "c", ""};
enum { FORMATS = sizeof formats / sizeof *formats, PAIR32 = FORMATS, PAIR64, FORMS };

struct input {
    const uint8_t *at, *end;
};

static uint32_t take(struct input *in) { return in->at < in->end ? *in->at++ : 0; }

static uint8_t *bytes_of(struct input *in, size_t size) {
    uint8_t *memory = malloc(size ? size : 1);
    for (size_t i = 0; i < size; i++) memory[i] = (uint8_t)take(in);
    return memory;
}

static PyObject *arrow, *memoryview;
static struct ArrowSchema schema;
static struct ArrowArray array;
static int live; /* arrays that were not released */

static void release_array(struct ArrowArray *given) {
    given->release = NULL;
    live--;
}

static void release_schema(struct ArrowSchema *given) { given->release = NULL; }

static void drop_array(PyObject *capsule) {
    struct ArrowArray *given = PyCapsule_GetPointer(capsule, "arrow_array");
    if (given && given->release) given->release(given);
}

static PyObject *export_array(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored)) {
    return Py_BuildValue("NN", PyCapsule_New(&schema, "arrow_schema", NULL),
                         PyCapsule_New(&array, "arrow_array", drop_array));
}

static PyMethodDef export = {"__arrow_c_array__", export_array, METH_NOARGS, NULL};

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    PyObject *names = start_python("import types\narrow = types.SimpleNamespace()\n");
    arrow = PyDict_GetItemString(names, "arrow");
    PyObject *method = PyCFunction_New(&export, NULL);
    if (!arrow || !method || PyObject_SetAttrString(arrow, "__arrow_c_array__", method) < 0)
        python_failed();
    Py_DECREF(method);
    memoryview = (PyObject *)&PyMemoryView_Type;
    return 0;
}

/* The last offset bounds the data: a sound column's others are below it. */
static int64_t data_size(uint8_t *offsets, size_t width, size_t last) {
    int64_t end = 0;
    int32_t narrow;
    if (width == 8) {
        memcpy(&end, offsets + last * 8, 8);
    } else {
        memcpy(&narrow, offsets + last * 4, 4);
        end = narrow;
    }
    if (end > MOST_DATA) {
        end %= MOST_DATA;
        memcpy(offsets + last * width, &end, width);
    }
    return end > 0 ? end : 0;
}

static uint64_t sum;

static void touch(const uint8_t *data, int64_t size) {
    for (int64_t i = 0; i < size; i++) sum += data[i];
}

static void read_back(struct column *c, int integers, uint32_t chunk) {
    struct mp_value values[MOST];
    int64_t numbers[MOST];
    for (Py_ssize_t at = 0; at < c->length;) {
        const uint32_t count =
            c->length - at < (Py_ssize_t)chunk ? (uint32_t)(c->length - at) : chunk;
        if (integers) {
            read_integers(c, at, count, numbers);
            for (uint32_t i = 0; i < count; i++)
                if (numbers[i] < 0 && numbers[i] != NO_INT) abort(); /* they were refused */
        } else {
            uint64_t sizes = 0;
            if (read_bytes(c, at, count, values, &sizes) < 0) abort(); /* it was checked */
            for (uint32_t i = 0; i < count; i++) {
                touch(values[i].data, values[i].bytes);
                if (values[i].bytes > 0 && (uint64_t)values[i].bytes > sizes) abort();
            }
        }
        at += count;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    struct input in = {bytes, bytes + size};
    const uint32_t form = take(&in) % FORMS, which = take(&in) % 3, length = take(&in) % MOST;
    const uint32_t offset = take(&in) % 9, odd = take(&in), chunk = 1 + take(&in) % (MOST - 1);
    const size_t items = (size_t)length + offset;
    const int wide = form == 2 || form == 3 || form == PAIR64;
    const int views = form == 4 || form == 5, offsets = form < 4 || form >= PAIR32;
    uint8_t *validity = bytes_of(&in, (items + 7) / 8);
    uint8_t *rows = bytes_of(&in, views     ? items * 16
                                  : offsets ? (items + 1) * (wide ? 8 : 4)
                                            : items * 8);
    int64_t sizes[2] = {0, 0};
    if (offsets) sizes[0] = data_size(rows, wide ? 8 : 4, items);
    if (views) sizes[0] = take(&in), sizes[1] = take(&in);
    uint8_t *data[2] = {bytes_of(&in, (size_t)sizes[0]), bytes_of(&in, (size_t)sizes[1])};
    const void *buffers[5] = {validity, rows, data[0], data[1], sizes};
    struct column column;
    memset(&column, 0, sizeof column);
    column.length = -1;
    PyObject *given = Py_NewRef(arrow);
    if (form >= PAIR32) {
        PyObject *raw = PyMemoryView_FromMemory((char *)rows, (Py_ssize_t)((items + 1) * (wide ? 8 : 4)),
                                                PyBUF_READ);
        PyObject *typed = raw ? PyObject_CallMethod(raw, "cast", "s", wide ? "q" : "i") : NULL;
        PyObject *payload = PyMemoryView_FromMemory((char *)data[0], (Py_ssize_t)sizes[0], PyBUF_READ);
        Py_DECREF(given);
        given = Py_BuildValue("NN", typed, payload);
        Py_XDECREF(raw);
        if (!given) python_failed();
    } else {
        schema = (struct ArrowSchema){.format = formats[form], .release = release_schema,
                                      .dictionary = odd == 1 ? &schema : NULL};
        const int64_t usual = views ? 5 : offsets ? 3 : form == 8 ? 0 : 2;
        array = (struct ArrowArray){
            .length = odd == 2 ? -1 - (int64_t)length : length,
            .offset = odd == 3 ? -1 : (int64_t)offset,
            .null_count = odd == 4 ? -1 : odd == 5 ? 0 : 1,
            .n_buffers = odd == 6 ? (int64_t)chunk % (views ? 3 : usual + 1) : usual,
            .buffers = buffers, .release = release_array};
        if (odd == 7) buffers[1] = NULL;
        if (odd == 8) buffers[0] = NULL;
        live = 1;
    }
    const int taken = which == 0   ? take_bytes_column(&column, given, "values", -1)
                      : which == 1 ? take_time_column(&column, given, -1)
                                   : take_partition_column(&column, given, -1);
    if (taken == 0 && !column.objects && column.length >= 0)
        read_back(&column, which != 0, chunk);
    if (taken < 0 && !PyErr_Occurred()) abort();
    if (taken == 0 && PyErr_Occurred()) python_failed();
    PyErr_Clear();
    release_column(&column);
    Py_DECREF(given);
    if (form < PAIR32 && live != 0) abort(); /* released once, whatever happened */
    free(validity);
    free(rows);
    free(data[0]);
    free(data[1]);
    return 0;
}
