/* The memory orders by their last names, for the files whose every second line has one. */
#ifndef MP_ORDERS_H
#define MP_ORDERS_H

#include <stdatomic.h>

#define RELAXED memory_order_relaxed
#define ACQUIRE memory_order_acquire
#define RELEASE memory_order_release
#define ACQ_REL memory_order_acq_rel
#define SEQ_CST memory_order_seq_cst

#endif
