/*
 * The life of a version, as src/loader has it (README.md there): the same questions, flights, waiters, budget and ends, with
 * everything else left out. What loader.c does with its mutex held is one atomic step here; what it does without it, is not.
 *
 * Two names. Three requesters: one without a deadline (it does not wait for room), one with a deadline that never comes, one
 * that may leave whenever it waits. Two loader threads; loads may fail. An operator, at any time and in any order, unloads the
 * first name, registers it anew, and evicts what nobody holds. The budget is two units (or one), each version takes one.
 *
 * Checked in every interleaving:
 *   memory under a lease is there, is of the right name and not of an older revision than was asked for   (assert in `use`)
 *   memory is given back once                                               (assert in `bury`)
 *   never more memory, nor more promised, than the budget                   (assert in `load` and `reserve`)
 *   never two flights for one name and revision that anybody could join     (assert in `looked up`)
 *   everybody who asks is answered: in the end, and there is an end, whoever is favoured: no fairness is needed  (ltl answered)
 *
 * tools/model.sh runs it. REACH=n asserts that place n is never reached, and must fail: the model is not empty. -DBUG=n leaves
 * out one thing that the loader does, and must fail as well: the assertions are not empty either.
 */
#ifndef BUG
#define BUG 0
#endif

#ifndef ROUNDS
#define ROUNDS 1 /* how often the first requester asks */
#endif

#ifndef BUDGET
#define BUDGET 2
#endif

#define NAMES 2
#define VERSIONS 4 /* that are not gone at the same time */
#define REQUESTERS 3
#define NONE 255

/* The states of gr_state_name in table.c; tools/model.sh compares. */
mtype:state = { absent, loading, resident, draining, failed };
mtype:answer = { nothing, lease, failure, busy };

c_decl {
    static int reach;
};
#define REACHED(n) assert(c_expr { reach - n })

typedef version {
    mtype:state state = absent;
    byte name, revision;
    bool looked;    /* the catalogue was asked: the revision is fixed */
    bool reserved, parked, unwanted;
    byte leases;
    byte waiters;   /* a bit for each requester */
    byte newer;     /* a bit for each version of the name that was begun later */
    bool memory;    /* the adapter's weights are there */
};

version v[VERSIONS];
byte of_name[NAMES] = NONE;    /* slot->resident */
byte flight[NAMES] = NONE;     /* slot->flight */
byte registered[NAMES] = 1;    /* the catalogue */
byte promised;                 /* resident + loading + draining */
byte taken;                    /* memory that is really there */
mtype:answer answer[REQUESTERS] = nothing;
byte given[REQUESTERS];        /* the version, if it is a lease */
byte done;
chan queue = [VERSIONS] of { byte };

#define BIT(i) (1 << (i))
#define PATIENT (BIT(1) | BIT(2)) /* those with a deadline */

/* ---- with the mutex held: inside an atomic ---------------------------------------------------------------- */

inline unpark() {
    d_step {
        k = 0;
        do
        :: k < VERSIONS ->
            if
            :: BUG != 5 && v[k].state == loading && v[k].parked -> v[k].parked = false; queue!k
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0
    }
}

/* No name reaches it any more. `dead`: nobody holds it, whoever did this has to free it. */
inline unreachable(x, dead) {
    v[x].state = draining;
    if
    :: of_name[v[x].name] == x -> of_name[v[x].name] = NONE
    :: else
    fi;
    if
    :: v[x].leases == 0 || BUG == 3 -> dead = x; REACHED(1)
    :: else -> REACHED(2) /* the last release frees it */
    fi
}

inline gone(x) {
    d_step {
        k = 0;
        do
        :: k < VERSIONS -> v[k].newer = v[k].newer & ~BIT(x); k++
        :: else -> break
        od;
        k = 0;
        v[x].state = absent; v[x].name = 0; v[x].revision = 0; v[x].looked = false; v[x].reserved = false; v[x].parked = false;
        v[x].unwanted = false; v[x].waiters = 0; v[x].newer = 0
    }
}

/* Everybody who waits for x gets the answer. */
inline resolve(x, what) {
    d_step {
        k = 0;
        do
        :: k < REQUESTERS ->
            if
            :: v[x].waiters & BIT(k) ->
                answer[k] = what;
                if
                :: what == lease -> given[k] = x; v[x].leases = v[x].leases + (BUG != 1)
                :: else
                fi
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0;
        v[x].waiters = 0
    }
}

inline evict(x, dead) {
    REACHED(3);
    unreachable(x, dead)
}

#define FREE_TO_GO(x) (v[x].state == resident && v[x].leases == 0)

/* ---- without the mutex ------------------------------------------------------------------------------------ */

inline bury(x) {
    if
    :: x != NONE ->
        atomic { assert(v[x].memory); v[x].memory = false; taken-- };
        atomic { gone(x); promised--; unpark(); x = NONE }
    :: else
    fi
}

/* ---- who asks --------------------------------------------------------------------------------------------- */

inline begin(x, n, r, me) {
    x = 0;
    do
    :: x < VERSIONS && v[x].state != absent -> x++
    :: else -> break
    od;
    assert(x < VERSIONS);
    d_step {
        k = 0;
        do
        :: k < VERSIONS ->
            if
            :: v[k].state == loading && v[k].name == n -> v[k].newer = v[k].newer | BIT(x)
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0;
        v[x].state = loading; v[x].name = n; v[x].revision = r; flight[n] = x
    };
    REACHED(4);
    queue!x
}

inline use() {
    assert(v[x].memory && v[x].name == n && v[x].revision >= r);
    assert(v[x].state == resident || v[x].state == draining)
}

#define MAY_JOIN (flight[n] != NONE && (!v[flight[n]].looked || v[flight[n]].revision >= r || BUG == 2))
#define HIT (of_name[n] != NONE && (v[of_name[n]].revision >= r || BUG == 6))

inline forget() {
    answer[me] = nothing;
    given[me] = 0;
    x = 0;
    r = 0
}

proctype requester(byte me; byte n; byte rounds) {
    byte x, r, k, dead = NONE;
    do
    :: atomic { rounds > 0 -> rounds--; r = registered[n] }; /* catalogue.find: others may come before what follows */
        atomic {
            if
            :: HIT -> REACHED(5); x = of_name[n]; v[x].leases++; answer[me] = lease; given[me] = x
            :: else ->
                if
                :: MAY_JOIN ->
                    REACHED(6);
                    x = flight[n];
                    if
                    :: v[x].revision < r && BUG != 2 -> REACHED(7); v[x].revision = r
                    :: else
                    fi
                :: else -> begin(x, n, r, me)
                fi;
                v[x].waiters = v[x].waiters | BIT(me)
            fi
        };
        if
        :: atomic { answer[me] == lease -> x = given[me]; use() };
            atomic {
                use(); /* still */
                v[x].leases = v[x].leases - (BUG != 1);
                if
                :: v[x].state == draining && v[x].leases == 0 -> REACHED(10); dead = x
                :: else
                fi;
                unpark();
                forget()
            };
            bury(dead)
        :: atomic { answer[me] == failure || answer[me] == busy ->
                assert(answer[me] != busy || me == 0); /* who is patient is not told that there is no room */
                forget() }
        :: atomic { me == 2 && answer[me] == nothing -> /* the deadline */
                REACHED(8);
                v[x].waiters = v[x].waiters & ~BIT(me);
                if
                :: v[x].parked && !(v[x].waiters & PATIENT) -> REACHED(9); v[x].parked = false; queue!x
                :: else
                fi;
                forget() }
        fi
    :: atomic { rounds == 0 -> done++; break }
    od
}

/* ---- one loading ------------------------------------------------------------------------------------------ */

inline fail_flight(what) {
    atomic {
        true ->
        if
        :: flight[v[f].name] == f -> flight[v[f].name] = NONE
        :: else
        fi;
        resolve(f, what);
        v[f].state = failed;
        promised = promised - v[f].reserved;
        REACHED(11);
        gone(f);
        unpark()
    }
}

/* The catalogue said r. */
inline look_up() {
    if
    :: r >= v[f].revision -> v[f].revision = r; v[f].looked = true
    :: else -> REACHED(12) /* somebody joined who knows of a newer one: asks again */
    fi;
    d_step {
        k = 0;
        do
        :: k < VERSIONS ->
            assert(k == f || v[k].state != loading || v[f].unwanted || v[k].unwanted || !v[f].looked || !v[k].looked ||
                   v[k].name != v[f].name || v[k].revision != v[f].revision);
            k++
        :: else -> break
        od;
        k = 0;
        r = 0
    }
}

#define MOVES(x) (x != f && ((v[x].state == loading && v[x].reserved) || (v[x].state == draining && v[x].leases == 0)))

/* room: 0 = evicted something, again; 1 = reserved; 2 = parked; 3 = busy */
inline find_room() {
    do
    :: atomic {
        true ->
        if
        :: promised < BUDGET || BUG == 4 -> promised++; v[f].reserved = true; room = 1
        :: else ->
            if
            :: FREE_TO_GO(0) -> evict(0, dead); room = 0
            :: FREE_TO_GO(1) -> evict(1, dead); room = 0
            :: FREE_TO_GO(2) -> evict(2, dead); room = 0
            :: FREE_TO_GO(3) -> evict(3, dead); room = 0
            :: else ->
                if
                :: MOVES(0) || MOVES(1) || MOVES(2) || MOVES(3) -> REACHED(13); v[f].parked = true; room = 2
                :: else ->
                    if
                    :: v[f].waiters & PATIENT -> REACHED(14); v[f].parked = true; room = 2
                    :: else ->
                        REACHED(15);
                        room = 3;
                        v[f].unwanted = true; /* only for the assertion in look_up: it is as good as gone */
                        if
                        :: flight[v[f].name] == f && BUG != 7 -> flight[v[f].name] = NONE
                        :: else
                        fi
                    fi
                fi
            fi
        fi
      };
      bury(dead);
      if
      :: room == 0
      :: else -> break
      fi
    od
}

inline landed() {
    atomic {
        n = v[f].name;
        if
        :: flight[n] == f -> flight[n] = NONE
        :: else
        fi;
        v[f].reserved = false;
        old = of_name[n];
        if
        :: v[f].unwanted -> REACHED(16); old = NONE; v[f].state = draining
        :: !v[f].unwanted && old != NONE && (v[f].newer & BIT(old)) -> REACHED(17); old = NONE; v[f].state = draining
        :: else -> REACHED(18); v[f].state = resident
        fi;
        if
        :: v[f].state == resident ->
            if
            :: old != NONE -> REACHED(19); unreachable(old, dead)
            :: else
            fi;
            of_name[n] = f
        :: else
        fi;
        resolve(f, lease);
        if
        :: v[f].state == draining && v[f].leases == 0 -> REACHED(20); dead2 = f
        :: else
        fi;
        old = NONE;
        n = 0;
        unpark()
    }
}

proctype loader() {
    byte f, r, k, n, room, dead = NONE, dead2 = NONE, old = NONE;
end:
    do
    :: atomic { queue?f -> r = registered[v[f].name] };
        do
        :: atomic { v[f].looked -> r = 0; break }
        :: atomic { !v[f].looked && r > 0 -> look_up() }
        :: atomic { !v[f].looked && r == 0 -> r = registered[v[f].name] }
        od;
        if
        :: fail_flight(failure) /* it cannot be read */
        :: find_room();
            if
            :: atomic { room == 1 -> assert(!v[f].memory); v[f].memory = true; taken++; assert(taken <= BUDGET) };
                if
                :: atomic { REACHED(21); v[f].memory = false; taken--; fail_flight(failure) }
                :: landed();
                    bury(dead);
                    bury(dead2)
                fi
            :: room == 2
            :: room == 3 -> fail_flight(busy)
            fi
        fi;
        d_step { f = 0; room = 0 }
    od
}

/* ---- what is done to names -------------------------------------------------------------------------------- */

/* One of each, in any order. */
proctype operator() {
    byte k, x, dead = NONE;
    bool unloaded, registered_anew, evicted;
    do
    :: atomic { !unloaded -> unloaded = true;
            if
            :: flight[0] != NONE -> REACHED(22); v[flight[0]].unwanted = true; flight[0] = NONE
            :: else
            fi;
            if
            :: of_name[0] != NONE -> REACHED(23); x = of_name[0]; unreachable(x, dead); x = 0
            :: else
            fi };
        bury(dead)
    :: d_step { !registered_anew -> registered_anew = true; registered[0] = 2 }
    :: atomic { !evicted -> evicted = true;
            if
            :: FREE_TO_GO(0) -> evict(0, dead)
            :: FREE_TO_GO(1) -> evict(1, dead)
            :: FREE_TO_GO(2) -> evict(2, dead)
            :: FREE_TO_GO(3) -> evict(3, dead)
            :: else
            fi };
        bury(dead)
    :: atomic { unloaded && registered_anew && evicted -> break }
    od
}

init {
    atomic {
        c_code { reach = getenv("REACH") ? atoi(getenv("REACH")) : 0; };
        run requester(0, 0, ROUNDS);
        run requester(1, 1, 1);
        run requester(2, 0, 1);
        run loader();
        run loader();
        run operator()
    }
}

ltl answered { <> (done == REQUESTERS) }
