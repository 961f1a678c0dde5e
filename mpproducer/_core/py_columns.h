/* Columns of send_many: taken from what the caller gave, checked whole, then read in order. */
#ifndef MP_PY_COLUMNS_H
#define MP_PY_COLUMNS_H

#include "py_record.h"

#include "arrow.h"

/* How a piece holds its records. */
enum form {
    FORM_NULL,    /* all null */
    FORM_ROWS,    /* `width` bytes every `stride` */
    FORM_PADDED,  /* the same, NULs at the end are padding (numpy S) */
    FORM_OFFSETS, /* int32 offsets into `data` */
    FORM_LARGE,   /* int64 offsets */
    FORM_VIEWS,   /* Arrow views: inline or in one of `buffers` */
    FORM_INT32,   /* every `stride` */
    FORM_INT64,
};

/* Memory in which records follow each other: a buffer, or one Arrow array. */
struct piece {
    Py_ssize_t start, length; /* records */
    const uint8_t *validity;  /* bit per item, NULL: none is null */
    int64_t first;            /* item of the first record, in validity, offsets and views */
    const uint8_t *rows;      /* rows, integers, offsets or views, of item 0 */
    Py_ssize_t stride, width;
    const uint8_t *data;   /* what offsets count in */
    int64_t data_bytes;    /* INT64_MAX: not told */
    const void *const *buffers; /* of views */
    const int64_t *buffer_bytes;
    int64_t buffer_count;
};

struct column {
    const char *what;   /* its argument */
    PyObject *objects;  /* a tuple, or NULL: pieces */
    int own, plain;     /* the tuple is seen by nobody else; all in it is bytes or None */
    struct piece *pieces;
    Py_ssize_t piece_count, current;
    Py_ssize_t length;  /* records; -1: there is no such column */
    enum form form;
    int64_t unit_ns;    /* of timestamps */
    /* what has to be given back */
    Py_buffer views[2];
    int view_count;
    PyObject *held;
    struct ArrowArray *arrays;
    Py_ssize_t array_count;
};

#define NO_INT INT64_MIN /* a null among integers */

/* Each takes `object`, None included, as the column of argument `what`; 0, or -1 with an exception
 * that names it. With count >= 0 the column has that many records. */
int take_bytes_column(struct column *c, PyObject *object, const char *what, Py_ssize_t count);
int take_time_column(struct column *c, PyObject *object, Py_ssize_t count);
int take_partition_column(struct column *c, PyObject *object, Py_ssize_t count);
int take_object_column(struct column *c, PyObject *object, const char *what, Py_ssize_t count);
/* Gives back the objects of records that are appended, while they are in the cache. */
void drop_objects(struct column *c, Py_ssize_t at, Py_ssize_t count);
/* Whether the object is a column of integers rather than one integer; -1 with an exception. */
int is_integer_column(PyObject *object);
void release_column(struct column *c);

/* Reads of columns of pieces, `count` records from `at` on. Lengths are set in *sizes bit by bit: no
 * value is longer than that. -1, without an exception, when offsets have become senseless since they
 * were checked. */
int read_bytes(struct column *c, Py_ssize_t at, uint32_t count, struct mp_value *values,
               uint64_t *sizes);
void read_integers(struct column *c, Py_ssize_t at, uint32_t count, int64_t *integers);

/* --- between the files of columns */

/* The object's attribute, or NULL: with an exception, or without one where there is none. Names are
 * interned, because a type's method cache keeps every string it is asked for. */
enum name { ARROW_ARRAY, ARROW_STREAM, MASK, DTYPE, STR, NAMES };
PyObject *column_attribute(PyObject *object, enum name name);
/* A piece more, behind those there are; NULL with MemoryError. */
struct piece *add_piece(struct column *c);
/* 1 taken, 0 no Arrow object, -1. */
int take_arrow(struct column *c, PyObject *object, enum form wanted);
/* What can be told before anything is sent. 0, or -1 with ValueError that names the record. */
int check_bytes(struct column *c);
int check_integers(struct column *c, int64_t most, const char *range);

#endif
