/* Writers that wait for memory, as in mpproducer/_core: wait.c mp_wait_begin, mp_wait_end,
 * mp_drop_stash; pool.c first_waiter, mp_grant, mp_sleep_begin, mp_reap. Slots are counted, not
 * named: who owns which is slot.pml's matter. A writer may give up (its deadline), and may die
 * before every shared step.
 *
 * What is checked, in every interleaving:
 *   - when nothing moves any more and no cap has helped, no living writer waits, and all memory is
 *     free: no wake-up is lost, nothing leaks with the dead or with those who gave up
 *   - memory is conserved: nothing is granted twice
 *   - a grant is what that very wait asked for, and nobody who had announced himself earlier still
 *     waits; nobody helps himself while somebody has announced that he waits and is not served yet
 *
 * Each MUTANT breaks one rule and must fail:
 *   1  a writer that gives up does not wake the sender
 *   2  a sleeping sender has not tried once more to serve those who wait
 *   3  the waiter's state does not name the ticket: a second wait passes for the first
 *   4  a grant is a store, not a CAS
 *   5  who gives memory back does not look whether somebody waits for it
 *   6  the reaper forgets what was granted to the dead
 *   7  the sender does not look again once its sleep word is out
 *   8  what was put by for a wait is kept when nobody waits
 *   9  writers help themselves although somebody waits
 *  10  going to sleep the sender does not look for those who gave up since its scan
 */
#ifndef NW
#define NW 2            /* writers */
#endif
#ifndef NS
#define NS 2            /* slots */
#endif
#ifndef K
#define K 2             /* records of the first writer */
#endif
#ifndef K2
#define K2 K            /* records of each other writer */
#endif
#ifndef GIVE_UPS
#define GIVE_UPS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef ANY_SIZE
#define ANY_SIZE 0      /* 1: every writer asks for one slot or for all; 0: the first for all */
#endif
#ifndef MUTANT
#define MUTANT 0
#endif
#define IDLE 0
#define WAITING 1
#define GRANTED 2
#define NEVER 255

byte state[NW + 1], ticket[NW + 1], units[NW + 1], first[NW + 1];
bit waiting[NW + 1];
byte next_ticket = 1, free = NS, held[NW + 1];
byte wake = 0;
bit eventfd = 0, dead[NW + 1], reaped[NW + 1];
byte give_ups = GIVE_UPS, crashes = CRASHES;

/* the sender's own memory */
byte partial = 0, partial_owner = 0, partial_ticket = 0;

/* ghosts */
bit announced[NW + 1];
byte at_scan[NW + 1];

#define ANY_BIT (waiting[1] || waiting[2] || waiting[NW])
#define WAITS(w) (announced[w] && state[w] == WAITING)
#define ANNOUNCED (WAITS(1) || WAITS(2) || WAITS(NW))
/* mp_anyone_waits: the bits first, then the states of those who have one */
#define LOOK \
  atomic { bit1 = waiting[1]; bit2 = waiting[2]; bit3 = waiting[NW]; barges = ANNOUNCED }; \
  atomic { \
    barges = barges && ANNOUNCED; \
    anyone = (bit1 && state[1] == WAITING) || (bit2 && state[2] == WAITING) || \
             (bit3 && state[NW] == WAITING); \
    bit1 = 0; bit2 = 0; bit3 = 0 \
  }
#define DIE if :: atomic { crashes > 0 -> crashes--; dead[me] = 1; goto stopped } :: skip fi
#define WAKE \
  seen = wake; \
  if \
  :: seen != 0 -> DIE; eventfd = 1; DIE; atomic { if :: wake == seen -> wake = 0 :: else fi } \
  :: else \
  fi

proctype Writer(byte me) {
  byte k = 0, seen = 0, want = 0;
  bit got = 0, barges = 0, anyone = 0, bit1 = 0, bit2 = 0, bit3 = 0;
again:
  if :: k == (me == 1 -> K : K2) -> goto stopped :: else fi;
#if ANY_SIZE
  if :: want = 1 :: want = NS fi;
#else
  want = (me == 1 -> NS : 1);
#endif
  LOOK;
  if :: anyone && MUTANT != 9 -> goto wait :: else fi;
  DIE;
  atomic {
    if :: free >= want -> assert(!barges); free = free - want; held[me] = want; goto use
       :: else fi
  }
wait:
  units[me] = want;
  DIE;
  atomic { ticket[me] = next_ticket; next_ticket++ }
  DIE;
  state[me] = WAITING;
  DIE;
  atomic { waiting[me] = 1; announced[me] = 1 }
  DIE;
  WAKE;
  DIE;
end_blocked:
  if
  :: state[me] == GRANTED
  :: atomic { give_ups > 0 -> give_ups-- }
  fi;
  DIE;
  atomic {
    announced[me] = 0;
    if
    :: state[me] == WAITING -> state[me] = IDLE; got = 0
    :: else ->
       assert(state[me] == GRANTED && first[me] == want);
       held[me] = first[me]; first[me] = 0; state[me] = IDLE; got = 1
    fi
  }
  DIE;
  waiting[me] = 0;
  if :: got -> goto use :: else fi;
  DIE;
  if :: MUTANT != 1 -> WAKE :: else fi;
  goto next;
use: /* the record is written; the memory comes back */
  DIE;
  atomic { free = free + held[me]; held[me] = 0 }
  DIE;
  LOOK;
  if :: anyone && MUTANT != 5 -> WAKE :: else fi;
next:
  atomic { k++; got = 0; seen = 0; barges = 0; anyone = 0; goto again }
stopped:
  announced[me] = 0
}

active proctype Sender() {
  byte epoch = 0, w = 0, best = 0, best_ticket = NEVER, sum = 0;
  bit bits[NW + 1], armed = 0;
awake:
  atomic {
    w = 1;
    do
    :: w <= NW ->
       at_scan[w] = (announced[w] && state[w] == WAITING -> ticket[w] : NEVER); w++
    :: else -> break
    od
  }
  atomic { w = 1; do :: w <= NW -> bits[w] = waiting[w]; w++ :: else -> break od; w = 1 }
  best = 0; best_ticket = NEVER;
  do
  :: w <= NW ->
     atomic {
       if :: bits[w] && state[w] == WAITING && ticket[w] < best_ticket ->
             best = w; best_ticket = ticket[w]
          :: else fi;
       w++
     }
  :: else -> break
  od;
  if
  :: best == 0 ->
     if :: MUTANT != 8 -> atomic { free = free + partial; partial = 0; partial_owner = 0 }
        :: else fi;
     goto sleep
  :: else
  fi;
  if
  :: partial_owner != best || partial_ticket != best_ticket ->
     atomic { free = free + partial; partial = 0 };
     partial_owner = best; partial_ticket = best_ticket
  :: else
  fi;
  do
  :: atomic { partial < units[best] ->
       if :: free > 0 -> free--; partial++ :: else -> goto sleep fi }
  :: else -> break
  od;
  atomic { /* grant */
    if
    :: MUTANT == 4 ||
       (state[best] == WAITING && (MUTANT == 3 || ticket[best] == best_ticket)) ->
       w = 1;
       do
       :: w <= NW ->
          assert(!(w != best && at_scan[w] < ticket[best] && state[w] == WAITING &&
                   ticket[w] == at_scan[w]));
          w++
       :: else -> break
       od;
       first[best] = partial; state[best] = GRANTED; partial = 0; partial_owner = 0;
       if :: armed -> wake = 0; armed = 0 :: else fi
    :: else
    fi;
    goto awake
  }

sleep:
  if :: armed -> armed = 0; goto blocked :: else fi;
  atomic { epoch++; wake = epoch }
  atomic {
    w = 1; sum = 0;
    do
    :: w <= NW ->
       if :: (waiting[w] && !bits[w]) || (MUTANT != 10 && !waiting[w] && bits[w]) -> sum++ :: else fi;
       w++
    :: else -> break
    od;
    if :: sum > 0 && MUTANT != 7 -> wake = 0; goto awake :: else fi;
    /* once more, now that whoever gives memory back sees the sleep */
    if :: MUTANT != 2 && ANY_BIT -> armed = 1; goto awake :: else fi
  }
blocked:
  if
  :: atomic { eventfd -> eventfd = 0; wake = 0 }; goto awake
  :: atomic { (dead[1] && !reaped[1]) || (dead[2] && !reaped[2]) || (dead[NW] && !reaped[NW]) ->
       wake = 0;
       w = 1; do :: dead[w] && !reaped[w] -> break :: else -> w++ od;
       reaped[w] = 1
     };
     atomic {
       if :: partial_owner == w -> free = free + partial; partial = 0; partial_owner = 0
          :: else fi;
       free = free + held[w] + (MUTANT == 6 -> 0 : first[w]);
       held[w] = 0; first[w] = 0; state[w] = IDLE; waiting[w] = 0
     };
     goto awake
  :: timeout ->
     w = 1;
     do
     :: w <= NW -> assert(dead[w] || state[w] == IDLE); w++
     :: else -> break
     od;
     assert(free == NS && partial == 0)
  fi
}

/* Memory is conserved at every moment. */
active proctype Monitor() {
end_watch:
  atomic {
    (MUTANT != 6 && free + partial + held[1] + first[1] + held[2] + first[2] +
       (NW > 2 -> held[NW] + first[NW] : 0) != NS) -> assert(0)
  }
}

init {
  byte w = 1;
  atomic { do :: w <= NW -> run Writer(w); w++ :: else -> break od }
}
