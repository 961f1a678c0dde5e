/* Columns of pieces: checked whole, then read in order. */
#include "py_columns.h"

static inline int is_null(const struct piece *p, int64_t item) {
    return p->validity && !(p->validity[item >> 3] >> (item & 7) & 1);
}

/* An array of offsets need not be aligned. */
static inline int64_t offset_at(const struct piece *p, int wide, int64_t item) {
    int64_t offset;
    int32_t narrow;
    if (wide) {
        memcpy(&offset, p->rows + item * 8, 8);
        return offset;
    }
    memcpy(&narrow, p->rows + item * 4, 4);
    return narrow;
}

/* One record's bytes. 0, or the reason why there are none. Null: *data stays NULL, *size -1. */
static inline const char *bytes_at(const struct piece *p, enum form form, int64_t item,
                                   const uint8_t **data, int64_t *size) {
    *data = NULL;
    *size = -1;
    if (form == FORM_NULL || is_null(p, item)) return NULL;
    if (form == FORM_OFFSETS || form == FORM_LARGE) {
        const int64_t from = offset_at(p, form == FORM_LARGE, item);
        const int64_t to = offset_at(p, form == FORM_LARGE, item + 1);
        if (from < 0 || to < from) return "an offset is negative, or less than the one before";
        if (to > p->data_bytes) return "an offset is behind the end of the data";
        *data = p->data + from;
        *size = to - from;
    } else if (form == FORM_VIEWS) {
        const uint8_t *view = p->rows + item * 16;
        int32_t length, buffer, offset;
        memcpy(&length, view, 4);
        memcpy(&buffer, view + 8, 4);
        memcpy(&offset, view + 12, 4);
        if (length < 0) return "a view has a negative length";
        if (length > 12) {
            if (buffer < 0 || buffer >= p->buffer_count || offset < 0 ||
                (int64_t)offset + length > p->buffer_bytes[buffer])
                return "a view is not inside its buffer";
            *data = (const uint8_t *)p->buffers[buffer] + offset;
        } else {
            *data = view + 4;
        }
        *size = length;
    } else {
        *data = p->rows + item * p->stride;
        *size = p->width;
        if (form == FORM_PADDED)
            while (*size > 0 && (*data)[*size - 1] == 0) --*size;
    }
    return NULL;
}

static struct piece *seek(struct column *c, Py_ssize_t at) {
    while (at < c->pieces[c->current].start) c->current--;
    while (at >= c->pieces[c->current].start + c->pieces[c->current].length) c->current++;
    return &c->pieces[c->current];
}

static inline int read_form(const struct piece *p, enum form form, int64_t item, uint32_t count,
                            struct mp_value *values, uint64_t *sizes) {
    for (uint32_t i = 0; i < count; i++) {
        int64_t size;
        if (bytes_at(p, form, item + i, &values[i].data, &size)) return -1;
        values[i].bytes = (int32_t)(size > MAX_FIELD ? MAX_FIELD : size);
        *sizes |= size > 0 ? (uint64_t)size : 0;
    }
    return 0;
}

/* Offsets without nulls: each is looked at once. Two of them are in order when none of both and of
 * their difference is negative, so that one look at all signs at the end is enough. */
static inline int read_offsets(const struct piece *p, int wide, int64_t item, uint32_t count,
                               struct mp_value *values, uint64_t *sizes) {
    const uint8_t *const data = p->data;
    int64_t from = offset_at(p, wide, item);
    uint64_t signs = (uint64_t)from, all = 0;
    for (uint32_t i = 0; i < count; i++) {
        const int64_t to = offset_at(p, wide, item + i + 1);
        const uint64_t size = (uint64_t)to - (uint64_t)from;
        values[i].data = data + from;
        values[i].bytes = (int32_t)(size > MAX_FIELD ? MAX_FIELD : size);
        all |= size;
        signs |= (uint64_t)to;
        from = to;
    }
    *sizes |= all;
    return (int64_t)(signs | all) < 0 || from > p->data_bytes ? -1 : 0;
}

int read_bytes(struct column *c, Py_ssize_t at, uint32_t count, struct mp_value *values,
               uint64_t *sizes) {
    for (uint32_t done = 0; done < count;) {
        const struct piece *p = seek(c, at + done);
        const Py_ssize_t skip = at + done - p->start, left = p->length - skip;
        const uint32_t part = left < count - done ? (uint32_t)left : count - done;
        struct mp_value *to = values + done;
        const int64_t item = p->first + skip;
        int bad;
        switch (c->form) { /* one loop for each */
        case FORM_OFFSETS:
            bad = p->validity ? read_form(p, FORM_OFFSETS, item, part, to, sizes)
                              : read_offsets(p, 0, item, part, to, sizes);
            break;
        case FORM_LARGE:
            bad = p->validity ? read_form(p, FORM_LARGE, item, part, to, sizes)
                              : read_offsets(p, 1, item, part, to, sizes);
            break;
        case FORM_VIEWS: bad = read_form(p, FORM_VIEWS, item, part, to, sizes); break;
        case FORM_PADDED: bad = read_form(p, FORM_PADDED, item, part, to, sizes); break;
        case FORM_ROWS: bad = read_form(p, FORM_ROWS, item, part, to, sizes); break;
        default: bad = read_form(p, FORM_NULL, item, part, to, sizes); break;
        }
        if (bad) return -1;
        done += part;
    }
    return 0;
}

void read_integers(struct column *c, Py_ssize_t at, uint32_t count, int64_t *integers) {
    for (uint32_t i = 0; i < count; i++) {
        const struct piece *p = seek(c, at + i);
        const int64_t item = p->first + (at + i - p->start);
        int64_t number = NO_INT;
        if (c->form != FORM_NULL && !is_null(p, item)) {
            const uint8_t *from = p->rows + item * p->stride;
            int32_t narrow;
            if (c->form == FORM_INT64) {
                memcpy(&number, from, 8);
            } else {
                memcpy(&narrow, from, 4);
                number = narrow;
            }
        }
        if (c->unit_ns && number != NO_INT)
            number = c->unit_ns > 1000000 ? number * (c->unit_ns / 1000000)
                                          : number / (1000000 / c->unit_ns);
        integers[i] = number;
    }
}

/* --- checks */

/* Whether all offsets rise, those beside nulls included, within the data: see read_offsets. */
static inline int rise(const struct piece *p, int wide) {
    const int64_t last = p->first + p->length;
    uint64_t signs = 0;
    if (wide) {
        for (int64_t i = p->first; i < last; i++) {
            const uint64_t from = (uint64_t)offset_at(p, 1, i);
            const uint64_t to = (uint64_t)offset_at(p, 1, i + 1);
            signs |= from | to | (to - from);
        }
    } else { /* in their own width, so that four are looked at at once */
        uint32_t narrow = 0;
        for (int64_t i = p->first; i < last; i++) {
            const uint32_t from = (uint32_t)offset_at(p, 0, i);
            const uint32_t to = (uint32_t)offset_at(p, 0, i + 1);
            narrow |= from | to | (to - from);
        }
        signs = (uint64_t)narrow << 32;
    }
    return (int64_t)signs >= 0 && offset_at(p, wide, last) <= p->data_bytes;
}

int check_bytes(struct column *c) {
    for (Py_ssize_t n = 0; n < c->piece_count; n++) {
        const struct piece *p = &c->pieces[n];
        const int offsets = c->form == FORM_OFFSETS || c->form == FORM_LARGE;
        if (!offsets && c->form != FORM_VIEWS) continue;
        if (offsets && p->length > 0 && rise(p, c->form == FORM_LARGE)) continue;
        for (Py_ssize_t i = 0; i < p->length; i++) {
            const uint8_t *data;
            int64_t size;
            const char *wrong = bytes_at(p, c->form, p->first + i, &data, &size);
            if (!wrong) continue;
            PyErr_Format(PyExc_ValueError, "%s: record %zd: %s; nothing was sent", c->what,
                         p->start + i, wrong);
            return -1;
        }
    }
    return 0;
}

int check_integers(struct column *c, int64_t most, const char *range) {
    const int64_t unit = c->unit_ns;
    c->unit_ns = 0; /* as they are, before their unit can overflow */
    if (unit > 1000000) most /= unit / 1000000;
    int64_t numbers[256];
    for (Py_ssize_t at = 0; at < c->length; at += 256) {
        const uint32_t count = c->length - at < 256 ? (uint32_t)(c->length - at) : 256;
        read_integers(c, at, count, numbers);
        for (uint32_t i = 0; i < count; i++) {
            if (numbers[i] == NO_INT || (numbers[i] >= 0 && numbers[i] <= most)) continue;
            PyErr_Format(PyExc_ValueError, "%s: record %zd: must be %s, got %lld; nothing was sent",
                         c->what, at + i, range, (long long)numbers[i]);
            return -1;
        }
    }
    c->unit_ns = unit;
    return 0;
}
