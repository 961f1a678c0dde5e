/* The words whose order the proofs lean on, over store buffers: what slot.pml, wake.pml and grant.pml
 * take for granted (one step after the other, for all to see) is not what hardware does. Here every
 * plain store goes into its process's buffer and reaches memory some time later; loads look at memory.
 * A read-modify-write (`lock` on x86, what C11 seq_cst asks for elsewhere) waits until the buffer of
 * its process is empty, and acts on memory at once. So does a system call.
 *
 * Buffers keep their order (TSO: x86), or with PSO=1 only the order of stores to the same word.
 *
 *   worker 1   payload; count (T2); dirty[]; wake?        appends and announces
 *              free[] (T9); waiting[]?; wake?             gives memory back
 *   worker 2   waiting[]; wake?                           waits for memory
 *   sender     wake; dirty[]?; waiting[]?; free[]?        goes to sleep
 *
 * What is checked, in every interleaving and with every delay of every buffer:
 *   - the sender never sleeps for ever over a record or over a waiter that a free slot would serve
 *   - the count of a batch is never seen before the payload it counts
 *
 * Each MUTANT makes one of the stores plain and must fail:
 *   1  the dirty bit
 *   2  the sleep word
 *   3  the waiting bit
 *   4  the bit of the slot that is given back
 *   5  PSO: the count (on x86 this one is right: TSO keeps the order of stores)
 */
#ifndef PSO
#define PSO 0
#endif
#ifndef MUTANT
#define MUTANT 0
#endif
#define WORKER 0
#define WAITER 1
#define SENDER 2

#define PAYLOAD 0
#define COUNT 1
#define DIRTY 2
#define WAKE 3
#define WAITING 4
#define FREE 5
#define WORDS 6

byte memory[WORDS];
bit eventfd = 0, granted = 0, collected = 0;

/* One buffer a process, or with PSO one a process and word. */
#if PSO
#define BUFFERS (3 * WORDS)
#define BUFFER(me, word) (me * WORDS + word)
#define PROCESS(buffer) (buffer / WORDS)
#else
#define BUFFERS 3
#define BUFFER(me, word) me
#define PROCESS(buffer) buffer
#endif
chan buffer[BUFFERS] = [2] of { byte, byte };
byte pending[3];        /* stores of a process that are not in memory yet */

#define STORE(word, value) atomic { buffer[BUFFER(me, word)]!word, value; pending[me]++ }
#define RMW(word, value) atomic { pending[me] == 0 -> memory[word] = value }
#define WAKE_SENDER \
  seen = memory[WAKE]; \
  if \
  :: seen != 0 -> \
     atomic { pending[me] == 0 -> eventfd = 1 } \
     atomic { pending[me] == 0 -> if :: memory[WAKE] == seen -> memory[WAKE] = 0 :: else fi } \
  :: else \
  fi

active [BUFFERS] proctype Buffer() {
  byte word, value;
end_empty:
  do
  :: atomic {
       buffer[_pid]?word, value;
       memory[word] = value;
       pending[PROCESS(_pid)]--;
       word = 0; value = 0
     }
  od
}

proctype Worker(byte me) {
  byte seen = 0;
  STORE(PAYLOAD, 1);
  if :: MUTANT == 5 -> STORE(COUNT, 1) :: else -> RMW(COUNT, 1) fi;
  if :: MUTANT == 1 -> STORE(DIRTY, 1) :: else -> RMW(DIRTY, 1) fi;
  WAKE_SENDER;
  if :: goto stopped :: skip fi; /* else what follows would empty the buffer */
  if :: MUTANT == 4 -> STORE(FREE, 1) :: else -> RMW(FREE, 1) fi;
  if
  :: memory[WAITING] -> WAKE_SENDER
  :: !memory[WAITING]
  fi;
stopped:
  skip
}

proctype Waiter(byte me) {
  byte seen = 0;
  if :: goto stopped :: skip fi;
  if :: MUTANT == 3 -> STORE(WAITING, 1) :: else -> RMW(WAITING, 1) fi;
  WAKE_SENDER;
stopped:
  skip
}

proctype Sender(byte me) {
  bit again = 0;
  byte sleep = 0;
awake:
  atomic { pending[me] == 0 -> again = memory[DIRTY]; memory[DIRTY] = 0 } /* mp_take_dirty */
  if
  :: memory[COUNT] -> assert(memory[PAYLOAD]); collected = collected || again /* the bit's batch */
  :: !memory[COUNT]
  fi;
  if
  :: memory[WAITING] && !granted -> if :: memory[FREE] -> granted = 1 :: !memory[FREE] fi
  :: !(memory[WAITING] && !granted)
  fi;
  /* mp_sleep_begin */
  sleep++;
  if :: MUTANT == 2 -> STORE(WAKE, sleep) :: else -> RMW(WAKE, sleep) fi;
  again = memory[DIRTY];
  if
  :: memory[WAITING] && !granted -> if :: memory[FREE] -> granted = 1; again = 1 :: !memory[FREE] fi
  :: !(memory[WAITING] && !granted)
  fi;
  if :: again -> RMW(WAKE, 0); goto awake :: else fi;
  if
  :: atomic { eventfd -> eventfd = 0 }; RMW(WAKE, 0); goto awake
  :: timeout -> assert(collected && (granted || !memory[WAITING] || !memory[FREE]))
  fi
}

init { atomic { run Worker(WORKER); run Waiter(WAITER); run Sender(SENDER) } }
