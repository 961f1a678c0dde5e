/* The compress word of a batch, as in mpproducer/_core: compress.c mp_compress_begin, mp_compress_end,
 * mp_compress_abandon; pool.c mp_compressed, mp_take_compression, mp_release, mp_retry_quarantine,
 * mp_reap. The worker that fills a batch takes BUSY, compresses, publishes DONE; the sender takes
 * over from one that is slow, stopped or dead.
 *
 * One head slot, which lives again and again, and slots for output. A worker opens a batch, adds the
 * record that fills it (or finds it sealed under its hands), and compresses it. It may die before
 * every shared step; being stopped is to take no step. Generations repeat after two lives, as they do
 * in the code after 2^14; batch ids do not.
 *
 * ORDER is when a worker takes BUSY:
 *   ORDER=0  after it announced the full batch
 *   ORDER=1  between commit and announcement (the code)
 *   ORDER=2  before the commit, while it owns the batch; a commit that loses gives it back
 * All are safe. With 1 and 2, who comes by the announcement finds the word taken: the assertion at
 * `look`. With 0 the sender may be faster, and compresses what the worker was about to.
 *
 * What is checked, in every interleaving:
 *   - nobody reads the batch, or its output, after its memory was given back
 *   - a batch is sent as one stream: the sender's own, or the worker's, whole and of this batch
 *   - when nothing moves any more, all batches were sent or expired, and all memory is free
 *
 * Each MUTANT breaks one rule and must fail:
 *   1  a release does not take NONE first: compression begins after it
 *   2  RECALLED does not keep the memory: it is freed under the late reader
 *   3  BUSY does not keep the memory
 *   4  who got BUSY does not compare the batch id: generations came round
 *   5  the recall is a store, not a CAS: it overwrites DONE
 *   6  the reaper frees the output of the dead without asking whether the batch counts it
 *   7  a release forgets the output
 *   8  a worker that was recalled never says that it has returned
 *   9  ORDER 2: a commit that lost keeps BUSY
 *  10  a death is not heard: a dead worker's BUSY keeps the memory for ever
 *  11  a release takes NONE once, and frees the batch although it shows NONE again
 *  12  output is published before it is written
 *  13  ORDER 0 is relied upon as if it were ORDER 1
 *
 * Two rules of the code save work and are not needed for what is checked; without them it holds:
 * VARIANT 1, DONE is a store (over a recall it publishes what nobody reads; it is freed with the
 * batch), and VARIANT 2, the sender takes over without a recall.
 */
#ifndef K
#define K 1             /* batches of the first worker */
#endif
#ifndef K2
#define K2 2            /* batches of the second */
#endif
#ifndef NO
#define NO 1            /* slots for output */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef ORDER
#define ORDER 0
#endif
#ifndef VARIANT
#define VARIANT 0
#endif
#ifndef MUTANT
#define MUTANT 0
#endif
#define NOBODY 0
#define NOWHERE 15

mtype = { NONE, BUSY, TAKEN, DONE, RECALLED, RETURNED };

/* slot.word, batch_id and payload of the head */
bit live = 0, seal = 0, linked = 0, gen = 0;
byte owner = NOBODY, id = 0, cell = 0;
/* slot.compress of the head */
mtype state = NONE;
byte c_owner = NOBODY, c_out = 0;
bit c_gen = 0;
/* extensions that hold output */
bit o_live[NO], o_placed[NO];
byte o_owner[NO], o_batch[NO], o_cell[NO];

bit dead[3], ended[3], alive[3] = 1;
byte crashes = CRASHES, next_id = 0;

/* ghosts */
byte told = 0;          /* batch whose announcement is out */
byte given_up = 0;      /* batch whose BUSY was given back */

#define GONE(w) (dead[w] && ended[w])
#define DIE if :: atomic { crashes > 0 -> crashes--; dead[me] = 1; goto stopped } :: skip fi
#define IS(what, who) (state == what && c_owner == who && c_gen == mine)
#define TAKE_BUSY(got) \
  if :: state == NONE && c_gen == mine -> state = BUSY; c_owner = me; got = 1 :: else -> got = 0 fi

/* Whether another look at a batch in quarantine may end otherwise. */
#define MAYBE_QUIET ((owner == NOBODY || !alive[owner]) && \
                     !((state == BUSY || state == RECALLED) && (alive[c_owner] || MUTANT == 10)))

proctype Worker(byte me) {
  byte k = 0, batch = 0, seen = 0, out = NOWHERE;
  bit mine = 0, busy = 0;

again:
  atomic {
    batch = 0; seen = 0; out = NOWHERE; busy = 0;
    if :: k == (me == 1 -> K : K2) -> goto stopped :: else -> k++ fi
  }
  DIE;
  atomic { /* claim */
    !live -> live = 1; gen = 1 - gen; owner = me; seal = 0; linked = 0; mine = gen
  }
  DIE;
  atomic { /* the owner's own stores, before the link */
    next_id++; batch = next_id; id = batch; cell = batch;
    state = NONE; c_owner = NOBODY; c_gen = mine
  }
  DIE;
  atomic { linked = 1; owner = NOBODY } /* link and first commit: slot.pml has the steps */
  DIE;
  atomic { if :: live && id == batch && !seal && owner == NOBODY -> owner = me :: else -> goto again fi }
#if ORDER == 2
  DIE;
  atomic { TAKE_BUSY(busy) }
#endif
  DIE;
  atomic {
    assert(live && id == batch && owner == me);
    if :: !seal -> seal = 1; owner = NOBODY; goto filled :: else fi
  }
  /* sealed over us */
#if ORDER == 2
  DIE;
  if
  :: busy && MUTANT != 9 ->
     atomic { if :: IS(BUSY, me) -> given_up = id; state = NONE; c_owner = NOBODY; busy = 0 :: else fi }
     DIE;
     if
     :: busy -> atomic { if :: IS(RECALLED, me) -> state = RETURNED :: else fi }
     :: else
     fi
  :: else
  fi;
#endif
  DIE;
  atomic { assert(live && owner == me); owner = NOBODY; goto again } /* T6 */

filled:
#if ORDER == 1
  DIE;
  atomic { TAKE_BUSY(busy) }
#endif
  DIE;
  told = batch;
#if ORDER == 0
  DIE;
  atomic { TAKE_BUSY(busy) }
#endif
  if :: !busy -> goto again :: else fi;
  DIE;
  atomic { if :: id == batch || MUTANT == 4 -> skip :: else -> goto abandon fi }
  DIE;
  atomic { assert(live && id == batch && cell == batch); seen = cell }
  DIE;
  if
  :: goto abandon   /* the compressor failed */
  :: skip
  fi;
  atomic { assert(live && id == batch && cell == seen) } /* the last look at the batch */
  DIE;
  atomic { /* claim output */
    out = 0;
    do :: out < NO && o_live[out] -> out++ :: else -> break od;
    if
    :: out == NO -> out = NOWHERE; goto abandon
    :: else -> o_live[out] = 1; o_owner[out] = me; o_placed[out] = 0
    fi
  }
  DIE;
  atomic { o_batch[out] = id; o_placed[out] = 1 }
  DIE;
  if :: MUTANT != 12 -> o_cell[out] = seen :: else fi;
  DIE;
  atomic {
    if
    :: IS(BUSY, me) || VARIANT == 1 ->
       assert(live && id == batch);
       state = DONE; c_owner = NOBODY; c_out = out;
       if :: MUTANT != 12 -> goto again :: else fi
    :: else -> goto lost
    fi
  }
  DIE;
  o_cell[out] = seen; /* mutant 12 */
  goto again;
lost:
  DIE;
  atomic { assert(o_live[out] && o_owner[out] == me); o_live[out] = 0; o_cell[out] = 0; out = NOWHERE }
abandon:
  DIE;
  atomic { if :: IS(BUSY, me) -> given_up = id; state = NONE; c_owner = NOBODY; goto again :: else fi }
  DIE;
  if
  :: MUTANT != 8 -> atomic { if :: IS(RECALLED, me) -> state = RETURNED :: else fi }
  :: else
  fi;
  goto again;
stopped:
  atomic { k = 0; batch = 0; seen = 0; out = NOWHERE; mine = 0; busy = 0; ended[me] = 1 }
}

#define STATE_NOW found = state; f_owner = c_owner; f_gen = c_gen

active proctype Sender() {
  byte batch = 0, i = 0, w = 0, f_owner = 0, streams = 0, using = NOWHERE;
  bit f_gen = 0, due = 0;
  mtype found = NONE;

idle: /* no batch in hand */
  atomic { batch = 0; streams = 0; using = NOWHERE; found = NONE; f_owner = 0; f_gen = 0; due = 0 }
  if
  :: atomic { live && linked -> seal = 1; batch = id }; goto look
  :: atomic { (GONE(1) && alive[1]) || (GONE(2) && alive[2]) } ; goto reap
  :: timeout -> goto over
  fi;

look: /* mp_compressed */
  atomic {
    STATE_NOW;
    assert((ORDER == 0 && MUTANT != 13) || told != batch || state != NONE || given_up == batch)
  }
  if
  :: goto expire
  :: found == NONE ->
     atomic {
       if :: state == NONE && c_gen == f_gen -> state = TAKEN; c_owner = NOBODY; goto own :: else -> goto look fi
     }
  :: found == BUSY && VARIANT == 2 -> goto own
  :: found == BUSY && VARIANT != 2 -> /* look again when it changed; after a while, or a death, recall */
     if
     :: atomic { state != BUSY -> goto look }
     :: atomic { (GONE(1) && alive[1]) || (GONE(2) && alive[2]) } ; goto reap
     :: atomic {
          if
          :: MUTANT == 5 || (state == BUSY && c_owner == f_owner && c_gen == f_gen) ->
             state = RECALLED; c_owner = f_owner; c_gen = f_gen; goto own
          :: else -> goto look
          fi
        }
     fi
  :: found == DONE -> goto use
  :: found == TAKEN || found == RECALLED || found == RETURNED -> goto own
  fi;

own: /* the sender compresses; it lends its own memory to the request */
  atomic { assert(live && id == batch && cell == batch); streams++ }
  goto expire;

use: /* the walk over the output, and the request that reads it again when the socket has room */
  atomic {
    using = c_out;
    assert(o_live[using] && o_placed[using] && o_batch[using] == batch && o_cell[using] == batch);
    streams++
  }
  if
  :: atomic { (GONE(1) && alive[1]) || (GONE(2) && alive[2]) } ; goto reap
  :: skip
  fi;
sending:
  atomic {
    assert(o_live[using] && o_placed[using] && o_batch[using] == batch && o_cell[using] == batch);
    assert(state == DONE)
  }

expire: /* the response, or the end of its time: mp_release */
  assert(streams <= 1);
  using = NOWHERE;
quiet: /* is_quiet: what is nobody's is taken, so that nothing begins once this was answered */
  atomic { STATE_NOW; if :: found == NONE && MUTANT != 1 && !(MUTANT == 11 && due) -> skip :: else -> goto judge fi }
  atomic {
    if :: state == NONE && c_gen == f_gen -> state = TAKEN; c_owner = NOBODY :: else fi;
    STATE_NOW
  }
  if :: MUTANT == 11 -> STATE_NOW :: else fi;
judge:
  atomic {
    if
    :: !(owner != NOBODY && alive[owner]) &&
       !(((found == BUSY && MUTANT != 3) || (found == RECALLED && MUTANT != 2)) &&
         (alive[f_owner] || MUTANT == 10)) -> goto release
    :: else -> due = 1
    fi
  }
quarantine: /* what ends it is T6, the compress word, or a death */
  if
  :: atomic { MAYBE_QUIET -> goto quiet }
  :: atomic { (GONE(1) && alive[1]) || (GONE(2) && alive[2]) } ; goto reap
  :: timeout -> goto over
  fi;

release: /* release_now: the output, then the head */
  atomic {
    if
    :: state == DONE && MUTANT != 7 ->
       i = c_out; assert(o_live[i] && o_batch[i] == batch); o_live[i] = 0; o_cell[i] = 0; i = 0
    :: else
    fi
  }
  atomic { assert(live && id == batch); live = 0; linked = 0; seal = 0; owner = NOBODY; cell = 0; goto idle }

reap: /* R4: a batch linked before the death is in hand, or is collected later: its head is linked */
  atomic {
    if :: GONE(1) && alive[1] -> w = 1 :: else -> w = 2 fi;
    alive[w] = 0; i = 0;
    do
    :: i < NO ->
       if
       :: o_live[i] && o_owner[i] == w &&
          (MUTANT == 6 ||
           !(o_placed[i] && live && id == o_batch[i] && state == DONE)) -> o_live[i] = 0; o_cell[i] = 0
       :: else
       fi;
       i++
    :: else -> break
    od;
    if :: live && owner == w && !linked -> live = 0; owner = NOBODY; cell = 0 :: else fi;
    w = 0; i = 0;
    if
    :: batch == 0 -> goto idle
    :: batch != 0 && using != NOWHERE -> goto sending
    :: batch != 0 && using == NOWHERE && due -> goto quarantine
    :: batch != 0 && using == NOWHERE && !due -> goto look
    fi
  }

over: /* nothing moves any more */
  atomic {
    assert(batch == 0 && !live && ended[1] && ended[2]);
    i = 0;
    do :: i < NO -> assert(!o_live[i]); i++ :: else -> break od
  }
}

init { atomic { run Worker(1); run Worker(2) } }
