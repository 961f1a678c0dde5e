/* The slot protocol with chains, as in mpproducer/_core: claim, link, acquire, extend, commit, seal,
 * drain, quarantine, release, reap. One partition, one record per slot: record 0 of a batch lies in
 * its head, record r in the r-th slot behind it. A worker may die before every shared write.
 *
 * A record here stands for a run of them: mp_append_run writes as many records as fit past the
 * committed end and commits them with one CAS, so that they are in the batch together or not at all,
 * as one is. Where a run needs several extensions, they are claimed, linked, counted, given back and
 * reaped each as the one here.
 *
 * What is checked, in every interleaving:
 *   - a drained record is whole, and is what its writer committed; nobody writes to it meanwhile
 *   - the records of a worker come out in order, each once; all that were committed come out
 *   - no slot is freed while somebody may write to it, none is freed twice, none is lost at the end
 *
 * Left out: generations (they only make a CAS fail more often), the compress word (compress.pml),
 * several partitions, memory grants (grant.pml), the wake word (wake.pml); one step is sequentially
 * consistent, memory order is tso.pml's matter and docs/MEMORY.md's.
 *
 * Each MUTANT breaks one rule and must fail:
 *   1 R2  a batch is freed although its word shows an owner that lives
 *   2     after a seal and a lost commit the writer believes its record committed
 *   3 R7  a dead worker's extension is freed without asking whether its batch counts it
 *   4     a batch frees the chain behind what it counts
 *   5     a writer does not check, once it owns the word, whose batch it is
 *   6     a writer whose commit lost never says that it has stopped writing (T6)
 *   7     commit is a store, not a CAS
 *   8 R4  the reaper does not look for batches that were linked since
 */
#ifndef NW
#define NW 2            /* workers */
#endif
#ifndef NS
#define NS 3            /* slots */
#endif
#ifndef K
#define K 2             /* records of the first worker */
#endif
#ifndef K2
#define K2 K            /* records of each other worker */
#endif
#ifndef CAP
#define CAP 2           /* records per batch */
#endif
#ifndef STEALS
#define STEALS 1        /* seals by workers that lost patience */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef MUTANT
#define MUTANT 0
#endif
#define NONE 15
#define TORN 255

typedef Slot {
  bit live; bit ext; bit seal; byte owner; byte n;     /* slot.word */
  byte batch; byte prev; byte next; byte tail;         /* head; batch also of an extension */
  byte pos; byte head;                                 /* extension */
  byte cell;                                           /* payload */
};
Slot S[NS];
byte open_seq = 0, open_slot = NONE;
bit dead[NW + 1];
bit ended[NW + 1];
byte steals = STEALS, crashes = CRASHES;

/* the sender's own memory */
byte next_seq = 1;
bit known[NS];       /* reported by new_batches, not released */
bit drained[NS];     /* walked: only its memory is still to come back */
byte counted[NS];

/* ghosts */
byte committed = 0, sent = 0;
byte last[NW + 1];

#define RECORD (me * 16 + k + 1)
#define IS_HEAD(s) (S[s].live && !S[s].ext)
#define GONE(w) (dead[w] && ended[w])
#define DIE if :: atomic { crashes > 0 -> crashes--; dead[me] = 1; goto stopped } :: skip fi

#define CLAIM(s, is_ext) \
  s = 0; \
  do :: s < NS && S[s].live -> s++ :: else -> break od; \
  if :: s < NS -> S[s].live = 1; S[s].ext = is_ext; S[s].seal = is_ext; S[s].owner = me; S[s].n = 0; \
                  if :: is_ext -> S[s].head = NONE :: else fi \
     :: else -> s = NONE fi

#define FREE(s) \
  assert(S[s].live); S[s].live = 0; S[s].ext = 0; S[s].seal = 0; S[s].owner = 0; S[s].n = 0

/* T6 */
#define ACKNOWLEDGE(s) assert(S[s].live && S[s].owner == me); S[s].owner = 0

proctype Worker(byte me) {
  byte k = 0, seq = 0, slot = NONE, n = 0, owner = 0, to = NONE, more = NONE;
  bit usable = 0;

again:
  if :: k == (me == 1 -> K : K2) -> goto stopped :: else fi;
retry:
  atomic {
    seq = open_seq; slot = open_slot; n = 0; owner = 0; to = NONE; more = NONE;
    if :: seq == 0 -> goto fresh :: else fi
  }
  /* append_open: the word, then the batch id beside it */
  atomic { usable = IS_HEAD(slot) && !S[slot].seal; owner = S[slot].owner; n = S[slot].n }
  atomic {
    if :: !usable || S[slot].batch != seq -> usable = 0; owner = 0; n = 0; goto fresh
       :: else -> usable = 0 fi
  }
  if
  :: owner != 0 ->   /* wait_for_owner */
     if
     :: goto retry
     :: atomic { steals > 0 -> steals-- };
        DIE;
        atomic {
          if :: IS_HEAD(slot) && !S[slot].seal && S[slot].owner == owner && S[slot].n == n ->
                S[slot].seal = 1
             :: else fi;
          goto retry
        }
     fi
  :: else
  fi;
  DIE;   /* T3 */
  atomic {
    if :: IS_HEAD(slot) && !S[slot].seal && S[slot].owner == 0 && S[slot].n == n ->
          S[slot].owner = me
       :: else -> goto retry fi
  }
  atomic { if :: S[slot].batch == seq || MUTANT == 5 -> goto owned :: else fi }
  DIE;   /* T4: somebody else's batch. Step back. */
  atomic {
    if :: IS_HEAD(slot) && !S[slot].seal && S[slot].owner == me && S[slot].n == n ->
          S[slot].owner = 0; goto fresh
       :: else fi
  }
  DIE;
  atomic { ACKNOWLEDGE(slot) }

fresh: /* append_new */
  n = 0;
  DIE;
  atomic { CLAIM(to, 0); if :: to == NONE -> goto wait :: else fi }
  DIE;
  atomic { S[to].batch = seq + 1; S[to].prev = slot; S[to].tail = to }
  DIE;
  S[to].cell = TORN;
  S[to].cell = RECORD;   /* torn means dead or stopped between the two */
  DIE;
  atomic {
    if :: open_seq == seq && open_slot == slot -> open_seq = seq + 1; open_slot = to; slot = to
       :: else -> goto lost_link fi
  }
  goto commit;

lost_link: /* the claimed slot is kept for the next turn in the code; given back here */
  DIE;
  atomic { assert(S[to].live && S[to].owner == me); FREE(to); goto retry }

owned:
  if
  :: n == 0 -> to = slot   /* cannot be: a linked batch is committed or sealed; see the assert */
  :: else ->
     DIE;
     atomic { CLAIM(more, 1); if :: more == NONE -> goto give_up :: else fi }
     DIE;
     atomic { S[more].batch = S[slot].batch; S[more].pos = n; S[more].head = slot }
     DIE;
     atomic { S[S[slot].tail].next = more; to = more }
  fi;
  DIE;
  S[to].cell = TORN;
  S[to].cell = RECORD;   /* torn means dead or stopped between the two */
  DIE;
  S[slot].tail = to;

commit: /* T2 */
  DIE;
  atomic {
    if
    :: MUTANT == 7 || (IS_HEAD(slot) && !S[slot].seal && S[slot].owner == me && S[slot].n == n) ->
       /* The batch is the one that the place was computed for: its partition, its offset delta. */
       assert(S[slot].batch == (n == 0 -> seq + 1 : seq));
       S[slot].n = n + 1; S[slot].owner = 0; S[slot].seal = (n + 1 == CAP);
       committed++; k++; goto again
    :: else -> assert(S[slot].live && S[slot].owner == me)
    fi
  }
  if :: MUTANT == 2 -> atomic { committed++; k++ } :: else fi;
  if
  :: more != NONE ->
     DIE;
     atomic { assert(S[more].live && S[more].ext && S[more].owner == me); FREE(more) }
  :: else
  fi;
  DIE;
  if :: MUTANT == 6 -> goto retry :: else fi;
  atomic { ACKNOWLEDGE(slot); goto again }

give_up: /* no memory: leave the batch as it was */
  DIE;
  atomic {
    if :: IS_HEAD(slot) && !S[slot].seal && S[slot].owner == me && S[slot].n == n ->
          S[slot].owner = 0; goto wait
       :: else fi
  }
  DIE;
  atomic { ACKNOWLEDGE(slot) }
wait:
  atomic { (!S[0].live || !S[1].live || !S[NS - 1].live || (NS > 3 && !S[2].live)) -> goto retry }

stopped:
  atomic {
    k = 0; seq = 0; slot = NONE; n = 0; owner = 0; to = NONE; more = NONE; usable = 0;
    ended[me] = 1
  }
}

active proctype Sender() {
  byte seq = 0, cur = NONE, at = NONE, i = 0, s = 0, w = 0;
  byte seen[CAP];

top:
  atomic { seq = 0; cur = NONE; at = NONE; i = 0; s = 0; w = 0 }
  if
  :: goto collect
  :: goto release
  :: goto reap_head
  :: goto reap_extension
  :: atomic { ended[1] && ended[NW] && (NW < 3 || ended[2]) && open_seq < next_seq -> goto done }
  fi;

collect: /* new_batches, seal, walk of the oldest batch */
  atomic {
    seq = open_seq; cur = open_slot;
    if :: seq < next_seq -> goto top :: else fi;
    do
    :: seq > next_seq -> assert(IS_HEAD(cur) && S[cur].batch == seq); cur = S[cur].prev; seq--
    :: else -> break
    od;
    assert(IS_HEAD(cur) && S[cur].batch == seq && !drained[cur]);
    known[cur] = 1;
    /* R1 */
    if :: !S[cur].seal && S[cur].n == 0 && S[cur].owner != 0 && !GONE(S[cur].owner) -> goto top
       :: else fi
  }
  atomic { S[cur].seal = 1; counted[cur] = S[cur].n }
  /* the walk reads, and the request reads once more: nothing may change between them */
  atomic {
    at = cur; i = 0;
    do
    :: i < counted[cur] ->
       assert(S[at].live && (i == 0 || (S[at].ext && S[at].batch == seq && S[at].pos == i)));
       seen[i] = S[at].cell; at = S[at].next; i++
    :: else -> break
    od
  }
  atomic {
    at = cur; i = 0;
    do
    :: i < counted[cur] ->
       assert(S[at].cell == seen[i] && seen[i] != TORN && seen[i] != 0);
       w = (seen[i] - 1) / 16;
       assert((seen[i] - 1) % 16 + 1 > last[w]);
       last[w] = (seen[i] - 1) % 16 + 1;
       sent++; seen[i] = 0; at = S[at].next; i++
    :: else -> break
    od;
    assert(IS_HEAD(cur) && S[cur].seal && S[cur].n == counted[cur]);
    drained[cur] = 1; next_seq++; goto top
  }

release: /* R2: quarantine */
  atomic {
    s = 0;
    do
    :: s < NS && !(drained[s] && (MUTANT == 1 || S[s].owner == 0 || GONE(S[s].owner))) -> s++
    :: else -> break
    od;
    if :: s == NS -> goto top :: else fi;
    at = S[s].next; i = 1;
    do
    :: i < counted[s] || (MUTANT == 4 && i < CAP && at < NS && S[at].live) ->
       assert(S[at].ext && S[at].pos == i && S[at].head == s);
       cur = S[at].next; S[at].cell = 0; FREE(at); at = cur; i++
    :: else -> break
    od
  }
  atomic { S[s].cell = 0; FREE(s); known[s] = 0; drained[s] = 0; counted[s] = 0; goto top }

reap_head: /* a head that a dead worker claimed and never linked */
  atomic {
    s = 0;
    do
    :: s < NS && !(IS_HEAD(s) && !known[s] && S[s].owner != 0 && GONE(S[s].owner)) -> s++
    :: else -> break
    od;
    if :: s == NS -> goto top :: else fi;
    /* R4: batches linked before the death are collected first */
    if
    :: MUTANT != 8 ->
       cur = open_slot; seq = open_seq;
       do
       :: seq >= next_seq -> if :: cur == s -> goto top :: else fi; cur = S[cur].prev; seq--
       :: else -> break
       od
    :: else
    fi;
    assert(S[s].n == 0);
    S[s].cell = 0; FREE(s); goto top
  }

reap_extension: /* R7 */
  atomic {
    s = 0;
    do
    :: s < NS && !(S[s].live && S[s].ext && GONE(S[s].owner) &&
                   (MUTANT == 3 ||
                    !(S[s].head != NONE && IS_HEAD(S[s].head) &&
                      S[S[s].head].batch == S[s].batch && S[s].pos < S[S[s].head].n))) -> s++
    :: else -> break
    od;
    if :: s < NS -> S[s].cell = 0; FREE(s) :: else fi;
    goto top
  }

done:
  atomic {
    assert(sent == committed);
    s = 0;
    do
    :: s < NS ->
       /* what is still held can be released: nobody alive owns it, or it is counted by a batch */
       if
       :: S[s].live && S[s].ext ->
          assert(GONE(S[s].owner) || (IS_HEAD(S[s].head) && drained[S[s].head]))
       :: IS_HEAD(s) && drained[s] -> assert(S[s].owner == 0 || GONE(S[s].owner))
       :: IS_HEAD(s) && !drained[s] -> assert(S[s].n == 0 && GONE(S[s].owner))
       :: else
       fi;
       s++
    :: else -> break
    od
  }
}

init {
  byte w = 1;
  atomic { do :: w <= NW -> run Worker(w); w++ :: else -> break od }
}
