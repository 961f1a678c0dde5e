/* The bits of free slots, as in mpproducer/_core: region.c take, mp_claim, mp_show_free, mp_unclaim;
 * pool.c set_free, mp_reap, mp_grant; wait.c mp_wait_begin, mp_drop_stash.
 *
 * Workers claim a slot, hold it and give it back, again and again; one that finds nothing waits, and
 * the sender claims for it. A worker may die or be stopped for ever before every shared step.
 * Generations are counted, so that a CAS that comes late fails as in the code.
 *
 * What is checked, in every interleaving:
 *   - a slot has one holder at a time
 *   - when nothing moves any more, every slot is free and shown (R8), but for at most one per stopped
 *     worker, and nobody waits while a free slot is shown
 *
 * Each MUTANT breaks one rule and must fail:
 *   1  the bit is set before the word is FREE: who takes it finds the slot in use, and it is lost
 *   2  the reaper does not show what the dead left between bit and word
 *   3  a claimer looks at the word before it takes the bit
 *   4  who frees a slot looks for waiters before it shows the bit
 *   5  a bit is taken by a load and a store: a bit set between them is lost
 *   6  the word is stored, not compared: the bit would have to be more than a hint
 *   7  after a death only waiters are served, and what the dead held is not freed
 *   8  a writer that begins to wait does not have the sender look once more
 */
#ifndef NW
#define NW 2            /* workers */
#endif
#ifndef NS
#define NS 2            /* slots */
#endif
#ifndef K
#define K 2             /* claims per worker */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef STOPS
#define STOPS 1
#endif
#ifndef MUTANT
#define MUTANT 0
#endif

#define BIT(i) (1 << (i))
#define ALL ((1 << NS) - 1)

byte owner[NS];         /* slot.word: 0 is FREE */
byte gen[NS];
byte free = ALL;
byte waiting = 0;       /* waiting[]: a bit for each worker */
bit dead[NW + 1], reaped[NW + 1];
byte granted[NW + 1];   /* slot + 1 */
bit wake = 0;           /* the eventfd */
byte crashes = CRASHES, stops = STOPS;

/* ghosts */
byte holder[NS];
byte between = 0;       /* workers that were stopped */
byte over = 0;          /* workers that finished */
byte ended = 0;         /* workers that died and were reaped */

#define MAY_END \
  if \
  :: atomic { crashes > 0 -> crashes--; dead[me] = 1; wake = 1; goto gone } \
  :: atomic { stops > 0 -> stops--; between++; goto gone } \
  :: skip \
  fi

/* `got` is the slot + 1 that `by` took, or 0; the cursor says where to begin. `DIE` comes before each
 * shared step. */
#define CLAIM(by, DIE) \
  n = 0; got = 0; \
  if :: i = 0 :: i = NS - 1 fi; \
  do \
  :: got || n == NS -> break \
  :: else -> \
     DIE; \
     seen = free; \
     if \
     :: seen & BIT(i) -> \
        if :: MUTANT == 3 -> atomic { word = owner[i]; life = gen[i] } :: else fi; \
        DIE; \
        if \
        :: MUTANT == 5 -> taken = 1; free = seen & (ALL - BIT(i)) \
        :: else -> atomic { taken = (free & BIT(i)) != 0; free = free & (ALL - BIT(i)) } \
        fi; \
        if \
        :: taken -> \
           if :: MUTANT != 3 -> atomic { word = owner[i]; life = gen[i] } :: else fi; \
           DIE; \
           atomic { \
             if \
             :: word == 0 && ((owner[i] == 0 && gen[i] == life) || MUTANT == 6) -> \
                assert(holder[i] == 0); \
                owner[i] = by; holder[i] = by; gen[i]++; got = i + 1 \
             :: else \
             fi \
           } \
        :: else \
        fi \
     :: else \
     fi; \
     n++; \
     i = (i + 1) % NS \
  od

proctype Worker(byte me) {
  byte i = 0, n = 0, got = 0, seen = 0, word = 0, life = 0, k = 0;
  bit taken = 0, anyone = 0;
next:
  if :: k == K -> atomic { over++; goto gone } :: else -> k++ fi;
  CLAIM(me, MAY_END);
  if
  :: got -> skip
  :: else ->
     MAY_END;
     waiting = waiting | BIT(me);
     MAY_END;
     if :: MUTANT == 8 -> skip :: else -> wake = 1 fi;
     MAY_END;
     granted[me] > 0;
     got = granted[me];
     MAY_END;
     waiting = waiting & (255 - BIT(me));
     granted[me] = 0
  fi;
  /* T9, or the sender's T8 of a batch of ours */
  i = got - 1;
  MAY_END;
  if :: MUTANT == 1 -> free = free | BIT(i); MAY_END :: else fi;
  atomic { owner[i] = 0; holder[i] = 0 };
  if :: MUTANT == 4 -> anyone = waiting != 0; MAY_END :: else fi;
  MAY_END;
  if :: MUTANT == 1 -> skip :: else -> free = free | BIT(i) fi;
  MAY_END;
  if :: MUTANT == 4 -> skip :: else -> anyone = waiting != 0 fi;
  if :: anyone -> MAY_END; wake = 1 :: else fi;
  atomic { i = 0; n = 0; got = 0; seen = 0; word = 0; life = 0; taken = 0; anyone = 0; goto next };
gone:
  skip
}

active proctype Sender() {
  byte i = 0, n = 0, got = 0, seen = 0, word = 0, life = 0, w = 0;
  bit taken = 0;
asleep:
  if
  :: atomic { wake -> wake = 0 }
  :: timeout -> goto rest
  fi;
  /* the dead first: what they held is freed, what they were about to take or show is shown */
  w = 1;
  do
  :: w > NW -> break
  :: else ->
     if
     :: dead[w] && !reaped[w] ->
        i = 0;
        do
        :: i == NS || MUTANT == 7 -> break
        :: else ->
           word = owner[i];
           if
           :: word == 0 && MUTANT != 2 -> free = free | BIT(i)
           :: word == w ->
              atomic { owner[i] = 0; holder[i] = 0 };
              free = free | BIT(i)
           :: else
           fi;
           i++
        od;
        atomic { waiting = waiting & (255 - BIT(w)); reaped[w] = 1; ended++ }
     :: else
     fi;
     w++
  od;
  /* then whoever waits */
  w = 1;
  do
  :: w > NW -> break
  :: else ->
     if
     :: waiting & BIT(w) && !granted[w] ->
        CLAIM(w, skip);
        if :: got -> granted[w] = got :: else fi
     :: else
     fi;
     w++
  od;
  atomic { i = 0; n = 0; got = 0; seen = 0; word = 0; life = 0; taken = 0; w = 0; goto asleep };
rest:
  w = 0;
  i = 0;
  do
  :: i == NS -> break
  :: else -> w = w + (owner[i] != 0 || !(free & BIT(i))); i++
  od;
  assert(w <= between);
  assert(over + between + ended == NW)
}

init {
  byte w = 1;
  atomic { do :: w <= NW -> run Worker(w); w++ :: else -> break od }
}
