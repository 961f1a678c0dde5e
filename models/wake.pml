/* The sleep of the sender, as in mpproducer/_core: dirty bits, sleep word, eventfd, capped sleep.
 * wake.c mp_announce and mp_wake_sender; pool.c mp_take_dirty and mp_sleep_begin.
 *
 * Workers commit a record and announce it; each may be stopped for ever (or killed) before every
 * shared step. `timeout` is the cap of the sleep: it comes when nobody can do anything else.
 *
 * What is checked, in every interleaving:
 *   - when nothing moves any more, every record whose announcement ended has been collected, without
 *     the help of the cap: no wake-up is lost, whoever else is stopped and wherever
 *   - after the cap, also the records of stopped workers have been collected
 *   - a worker that does not wake the sender relies on a deadline that is there
 *
 * Steps are sequentially consistent; that the real ones are is argued in docs/MEMORY.md. What a
 * weaker order would do is mutants 2 and 3.
 *
 * Each MUTANT breaks one rule and must fail:
 *   1  the word is cleared before the eventfd is written: who is stopped between swallows the wake-up
 *   2  the sender does not look at the dirty bits again once its word is out
 *   3  a worker loads the word before it sets its dirty bit
 *   4  sleep words repeat: a late CAS clears another sleep
 *   5  the sleep has no cap: the record of a stopped worker is never found
 *   6  after the cap only dirty bits are looked at, not every partition
 *   7  a worker trusts any deadline, also one that is later than its record is due
 */
#ifndef NW
#define NW 2            /* workers */
#endif
#ifndef K
#define K 2             /* records per worker */
#endif
#ifndef STOPS
#define STOPS 1
#endif
#ifndef MUTANT
#define MUTANT 0
#endif

bit dirty = 0, eventfd = 0;
byte wake = 0;          /* 0: awake; else number of the sleep * 2 + early */
#define EARLY(word) ((word) % 2) /* it ends before any record is due */
byte stops = STOPS;

/* ghosts */
byte committed = 0, collected = 0;
byte told = 0;          /* records committed before an announcement that has ended began */

#define STOP if :: atomic { stops > 0 -> stops--; goto stopped } :: skip fi

proctype Worker() {
  byte k = 0, seen = 0, mine = 0;
again:
  if :: k == K -> goto stopped :: else fi;
  STOP;
  atomic { committed++; mine = committed }
  if :: MUTANT == 3 -> seen = wake :: else fi;
  STOP;
  dirty = 1;
  STOP;
  if :: MUTANT != 3 -> seen = wake :: else fi;
  if
  :: seen == 0 || EARLY(seen) || MUTANT == 7 -> skip
  :: else ->
     if
     :: MUTANT == 1 ->
        STOP;
        if
        :: atomic { wake == seen -> wake = 0 };
           STOP;
           eventfd = 1
        :: else
        fi
     :: else ->
        STOP;
        eventfd = 1;
        STOP;
        atomic { if :: wake == seen -> wake = 0 :: else fi }
     fi
  fi;
  atomic { if :: mine > told -> told = mine :: else fi; k++; mine = 0; seen = 0; goto again }
stopped:
  skip
}

active proctype Sender() {
  byte epoch = 0, found = 0, word = 0;
awake:
  /* take_dirty, then the batches that the bits name */
  atomic { found = dirty; dirty = 0 }
  if :: found -> found = committed; collected = found; goto awake :: else fi;
  /* sleep_begin */
  atomic {
    if :: MUTANT == 4 -> epoch = 1 :: else -> epoch++ fi;
    if :: wake = epoch * 2 :: wake = epoch * 2 + 1 fi;
    word = wake
  }
  atomic { if :: dirty && MUTANT != 2 -> wake = 0; goto awake :: else fi }
  if
  :: atomic { eventfd -> eventfd = 0 }
  :: timeout ->
     if :: EARLY(word) -> wake = 0; goto deadline :: else fi;
     assert(collected >= told);
     if :: MUTANT == 5 -> goto done :: else fi;
     if :: MUTANT == 6 && !dirty -> skip :: else -> collected = committed fi;
     goto done
  fi;
  wake = 0;
  goto awake;
deadline: /* the machine's own: it collects as after any wake-up */
  atomic { found = dirty; dirty = 0 }
  if :: found -> collected = committed :: else fi;
  if :: collected < told || found -> goto awake :: else -> collected = committed fi;
done:
  assert(collected == committed)
}

init {
  byte w = 0;
  atomic { do :: w < NW -> run Worker(); w++ :: else -> break od }
}
