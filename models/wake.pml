/* The sleep of the sender, as in mpproducer/_core: dirty bits, sleep word, eventfd, capped sleep.
 * append.c append_new and look_for_other; wake.c; pool.c mp_take_dirty and mp_sleep_begin;
 * sender/store.py, which looks again at a batch that had no record.
 *
 * One partition. A worker opens a batch (link, mark in dirty[], commit, wake-up), or adds to the one
 * that is open and looks whether its mark still stands. Each may be stopped for ever (or killed)
 * before every shared step. `timeout` is the end of a sleep: it comes when nobody can do anything
 * else.
 *
 * What is checked, in every interleaving:
 *   - when nothing moves any more, every record whose append returned has been collected, without
 *     the help of the cap: no wake-up is lost, whoever else is stopped and wherever
 *   - after the cap, also the records of stopped workers have been collected, by their marks
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
 *   6  a worker trusts any deadline, also one that is later than its record is due
 *   7  who adds to another's batch relies on its wake-up
 *   8  the sender forgets a batch that had no record when its mark was taken
 *   9  it does not look at that batch once more when its word is out
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
#ifndef SEALS
#define SEALS 2         /* times a worker does not wait for an opener any longer */
#endif
#ifndef MUTANT
#define MUTANT 0
#endif

bit dirty = 0, eventfd = 0;
byte wake = 0;          /* 0: awake; else number of the sleep * 2 + early */
#define EARLY(word) ((word) % 2) /* it ends before any record is due */
byte stops = STOPS, seals = SEALS;
byte batch = 0;         /* the open one; batches are numbered */
byte owner = 0;         /* who opens it, until its commit: worker + 1; 0: it has records */
bit open = 0;           /* it takes records: not sealed */

/* ghosts */
byte committed = 0, collected = 0;
byte told = 0;          /* records committed when an append returned */

#define STOP if :: atomic { stops > 0 -> stops--; goto stopped } :: skip fi

proctype Worker(byte me) {
  byte k = 0, seen = 0, mine = 0, id = 0;
again:
  if :: k == K -> goto stopped :: else fi;
  STOP;
end: /* blocked for good where the opener was stopped and nobody seals */
  atomic {
    if
    :: open && owner == 0 -> committed++; mine = committed; goto added
    :: open && owner != 0 && seals > 0 -> seals--; open = 0 /* sealed over its opener */
    :: !open
    fi;
    batch++; id = batch; owner = me; open = 1 /* linked */
  };
  if :: MUTANT == 3 -> seen = wake :: else fi;
  STOP;
  dirty = 1;
  STOP;
  atomic {
    if
    :: batch == id && open -> owner = 0; committed++; mine = committed
    :: else -> seen = 0; id = 0; goto again
    fi
  };
  STOP;
  if :: MUTANT != 3 -> seen = wake :: else fi;
  goto check;
added:
  STOP;
  if :: MUTANT == 7 || !dirty -> goto returned :: else fi;
  STOP;
  seen = wake;
check:
  if
  :: seen == 0 || EARLY(seen) || MUTANT == 6 -> skip
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
returned:
  atomic {
    if :: mine > told -> told = mine :: else fi;
    k++; mine = 0; seen = 0; id = 0; goto again
  }
stopped:
  skip
}

active proctype Sender() {
  byte epoch = 0, word = 0;
  bit found = 0, unborn = 0, last = 0;
awake:
  /* take_dirty, then the batch that the bit names, or that had no record the last time */
  atomic { found = dirty; dirty = 0 }
look:
  atomic {
    if
    :: found || unborn ->
       unborn = open && owner != 0 && MUTANT != 8;
       if :: owner == 0 || !open -> open = 0 :: else fi; /* sealed and sent */
       collected = committed
    :: else
    fi
  };
  if :: found -> goto awake :: last -> goto over :: else fi;
  /* sleep_begin */
  atomic {
    if :: MUTANT == 4 -> epoch = 1 :: else -> epoch++ fi;
    if :: wake = epoch * 2 :: wake = epoch * 2 + 1 fi;
    word = wake
  }
  atomic { if :: dirty && MUTANT != 2 -> wake = 0; goto awake :: else fi }
  atomic { /* mp_collect_changed */
    if :: unborn && (owner == 0 || !open) && MUTANT != 9 -> wake = 0; goto awake :: else fi
  }
  if
  :: atomic { eventfd -> eventfd = 0 }
  :: timeout -> /* the machine's own deadline, or that of the look at a batch without a record, which
                 * nothing depends on unless its writer was stopped */
     if
     :: EARLY(word) || (unborn && stops < STOPS) ->
        wake = 0; last = 1; atomic { found = dirty; dirty = 0 }; goto look
     :: else -> goto over
     fi
  fi;
  wake = 0;
  goto awake;
over:
  assert(collected >= told);
  if :: MUTANT == 5 -> goto done :: else fi;
  /* A mark comes before its record: dirty bits, and what had no record, are all there is to find. */
  if :: dirty || unborn -> collected = committed :: else fi;
done:
  assert(collected == committed)
}

init {
  byte w = 0;
  atomic { do :: w < NW -> run Worker(w + 1); w++ :: else -> break od }
}
