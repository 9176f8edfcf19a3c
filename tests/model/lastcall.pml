/* The protocol of lastcall: who may start a call, who may end it, and what survives a crash.
 * README.md maps each step to its procedure, and says what is left out.
 *
 * A transaction is one atomic step where it holds the batch's row lock from its first look at the batch to its commit.
 * Its reply is a step of its own, so that anything may happen between the commit and the reply.
 */

#ifndef CONTACTS
#define CONTACTS 1
#endif
#ifndef DIALERS
#define DIALERS 2
#endif
#ifndef LEASES
#define LEASES 2        /* claims in a run: the bound of the search */
#endif
#ifndef ENDS
#define ENDS 2          /* what the operator does, at most */
#endif
#ifndef TIME
#define TIME 2          /* the clock's last tick */
#endif
#ifndef CRASHES
#define CRASHES 0       /* crashes of the database, or failovers to a synchronous standby */
#endif
#define ATTEMPTS 2      /* max_attempts of a contact */
#define WINDOW 1        /* place_within_seconds, in ticks */

/* Statuses of the batch. */
#define PROCESSING 0
#define STOPPED 1       /* stopped or paused: it can be resumed */
#define CANCELLED 2

/* Statuses of a contact. */
#define ABSENT 0        /* not added yet */
#define READY 1         /* pending or scheduled */
#define QUEUED 2
#define IN_PROGRESS 3
#define COMPLETED 4
#define FAILED 5
#define SKIPPED 6

/* A call: a lease (LEASED) that start_call lets through (STARTED). */
#define NO_CALL 0
#define LEASED 1
#define STARTED 2

typedef Database {
  byte status;
  bit held;                    /* call_batches.is_held */
  bit hold;                    /* a row in holds */
  byte contact[CONTACTS];
  byte attempts[CONTACTS];
  byte call[CONTACTS];
  byte id[CONTACTS];
  byte lease[CONTACTS];
  byte place_by[CONTACTS];
  bit confirmed[CONTACTS];     /* calls.carrier_call_id is known */
  bit carrier_queued[CONTACTS];
  bit is_last[CONTACTS];
  byte next_id;
  byte total; byte queued; byte in_progress; byte completed; byte failed; byte skipped
}

Database db;                   /* what transactions see */
Database disk;                 /* what a crash leaves, and what the synchronous standby has */

byte now;
byte last_lease;               /* leases are random: no crash brings one back */
bit row_locked;                /* by a transaction of several steps */
byte admitted;                 /* transactions that may bring the batch to life */
bit closed;                    /* a hold is being placed or lifted */

/* The carrier's own record, by lease. */
bit arrived[LEASES + 1];
bit alive[LEASES + 1];
bit carrier_has_queued[LEASES + 1];
byte contact_of[LEASES + 1];
byte id_of[LEASES + 1];

/* For use within a step: no part of the state. */
hidden byte k; hidden byte n_total; hidden byte n_queued; hidden byte n_in_progress; hidden byte n_completed;
hidden byte n_failed; hidden byte n_skipped; hidden byte n_ready;

/* What replies have promised. Whatever undoes an end takes its promise back before it asks. */
bit promised_end;              /* cancel or stop was answered: no start passes */
bit promised_hold;             /* hold_calls was answered: no start passes */
bit promised_skip;             /* skip_contacts was answered: no start of contact 0 passes */
bit promised_silence;          /* a reply that waited: no call starts at the carrier */

inline copy(to, from) {
  to.status = from.status; to.held = from.held; to.hold = from.hold;
  for (k : 0 .. CONTACTS - 1) {
    to.contact[k] = from.contact[k]; to.attempts[k] = from.attempts[k];
    to.call[k] = from.call[k]; to.id[k] = from.id[k]; to.lease[k] = from.lease[k];
    to.place_by[k] = from.place_by[k]; to.confirmed[k] = from.confirmed[k];
    to.carrier_queued[k] = from.carrier_queued[k]; to.is_last[k] = from.is_last[k]
  }
  to.next_id = from.next_id; to.total = from.total; to.queued = from.queued; to.in_progress = from.in_progress;
  to.completed = from.completed; to.failed = from.failed; to.skipped = from.skipped
}

/* commit_durably: the log is written in order, so everything before is durable, too. */
inline commit_durably() { copy(disk, db) }

/* check_counters, and that a batch that is over has nobody left to call. */
inline check_books() {
  n_total = 0; n_queued = 0; n_in_progress = 0; n_completed = 0; n_failed = 0; n_skipped = 0; n_ready = 0;
  for (k : 0 .. CONTACTS - 1) {
    if
    :: db.contact[k] == ABSENT -> skip
    :: db.contact[k] == READY -> n_ready++
    :: db.contact[k] == QUEUED -> n_queued++; assert(db.call[k] == LEASED)
    :: db.contact[k] == IN_PROGRESS -> n_in_progress++; assert(db.call[k] == STARTED)
    :: db.contact[k] == COMPLETED -> n_completed++
    :: db.contact[k] == FAILED -> n_failed++
    :: db.contact[k] == SKIPPED -> n_skipped++
    fi;
    if
    :: db.contact[k] != ABSENT -> n_total++
    :: else
    fi
  }
  assert(db.total == n_total && db.queued == n_queued && db.in_progress == n_in_progress);
  assert(db.completed == n_completed && db.failed == n_failed && db.skipped == n_skipped);
  assert(db.status != CANCELLED || n_ready + n_queued == 0)
}


/* Whether a call or its contact is named by id and lease. */
#ifdef IDS_WITHOUT_LEASES
#define IS_NAMED(c, i, l) (db.id[c] == i)
#else
#define IS_NAMED(c, i, l) (db.id[c] == i && db.lease[c] == l)
#endif

/* finish_call: told of call (i, l), by a dialer, a webhook or the look at open calls. */
inline finish_call(i, l, is_completed) {
  for (k : 0 .. CONTACTS - 1) {
    if
#ifdef FINISH_TWICE
    :: IS_NAMED(k, i, l) && (db.call[k] == STARTED || db.contact[k] == COMPLETED) ->
#else
    :: IS_NAMED(k, i, l) && db.call[k] == STARTED ->
#endif
       db.call[k] = NO_CALL; db.confirmed[k] = 0; db.carrier_queued[k] = 0;
       db.in_progress--;
       if
       :: is_completed -> db.contact[k] = COMPLETED; db.completed++
       :: !is_completed && db.attempts[k] < ATTEMPTS && db.status != CANCELLED && !db.is_last[k] ->
          db.contact[k] = READY
       :: else -> db.contact[k] = FAILED; db.failed++
       fi
    :: else
    fi
  }
  commit_durably();
  check_books()
}

/* confirm_call: the carrier has call (i, l), and may not have dialed it yet. */
inline confirm_call(i, l) {
  for (k : 0 .. CONTACTS - 1) {
    if
    :: IS_NAMED(k, i, l) && db.call[k] == STARTED ->
       db.confirmed[k] = 1; db.carrier_queued[k] = carrier_has_queued[l]
    :: else
    fi
  }
  commit_durably()
}

/* A call starts at the carrier: it rings. */
inline ring(l) {
  assert(!promised_silence);
  n_total = 0;
  for (k : 1 .. LEASES) {
    if
    :: alive[k] && contact_of[k] == contact_of[l] -> n_total++
    :: else
    fi
  }
  assert(n_total == 0);        /* nobody is called twice at a time */
  alive[l] = 1; carrier_has_queued[l] = 0
}

#define CLAIMABLE(c) \
  (!row_locked && last_lease < LEASES && db.status == PROCESSING && !db.held && db.contact[c] == READY)

proctype Dialer() {
  byte c; byte id; byte lease; byte stamp; bit passed; bit is_processing; bit is_gone;
wait:
  do
  :: atomic {                  /* claim_contacts: its commit waits for no disk */
       if
       :: CLAIMABLE(0) -> c = 0
#if CONTACTS > 1
       :: CLAIMABLE(1) -> c = 1
#endif
       fi;
       db.contact[c] = QUEUED; db.queued++;
       db.call[c] = LEASED; db.next_id++; db.id[c] = db.next_id; last_lease++; db.lease[c] = last_lease;
       id = db.id[c]; lease = db.lease[c];
       check_books()
     }
     /* The dialer reads its clock before it asks. */
     stamp = now;
#ifdef STATUS_BEFORE_LOCK
     is_processing = (db.status == PROCESSING && !db.held);
#endif
     d_step {                  /* start_call */
       !row_locked ->
       passed = 0;
#ifndef STATUS_BEFORE_LOCK
       is_processing = (db.status == PROCESSING && !db.held);
#endif
       for (k : 0 .. CONTACTS - 1) {
         if
         :: is_processing && db.call[k] == LEASED && IS_NAMED(k, id, lease) ->
            passed = 1;
            db.call[k] = STARTED; db.place_by[k] = now + WINDOW;
            db.contact[k] = IN_PROGRESS; db.attempts[k]++; db.queued--; db.in_progress++;
            assert(!promised_end && !promised_hold && !(promised_skip && k == 0))
         :: else
         fi
       }
#ifndef START_WITHOUT_DISK
       commit_durably();
#endif
       check_books()
     }
     /* The answer is read, or lost. A dialer that crashes loses it, too. */
     if
     :: passed
     :: d_step { !row_locked -> finish_call(id, lease, 0) }      /* it tells that it placed nothing */
        goto wait
     :: goto wait
     fi;
#ifdef STAMP_AFTER_ANSWER
     stamp = now;
#endif
     is_gone = 0;
     if
     :: atomic {               /* the request leaves for the carrier, within the window */
          now < stamp + WINDOW ->
          contact_of[lease] = c; id_of[lease] = id;
          if
          :: skip ->
             assert(!promised_silence);
             arrived[lease] = 1;
#ifdef QUEUE
             carrier_has_queued[lease] = 1;
#ifndef QUEUE_UNHEARD
             confirm_call(id, lease)       /* see README.md: taken as heard at once */
#endif
#else
             ring(lease)
#endif
          :: skip              /* it never gets there, and nobody can tell */
          fi
        }
     :: now >= stamp + WINDOW -> is_gone = 1
     :: goto wait              /* the dialer crashes */
     fi;
     if
     :: is_gone ->
        d_step { !row_locked -> finish_call(id, lease, 0) }      /* not placed */
     :: !is_gone && arrived[lease] ->
        d_step { !row_locked -> confirm_call(id, lease) }
     :: !is_gone               /* it does not know, or crashes */
     fi
  :: break                     /* it stops for good */
  od
}

/* Calls end at the carrier, and its webhook tells so, once or twice. */
proctype Carrier() {
  byte l; bit completed;
end:
  do
#ifdef QUEUE
  :: atomic {
       if
       :: carrier_has_queued[1] -> l = 1
       :: carrier_has_queued[2] -> l = 2
       fi;
       ring(l);
       confirm_call(id_of[l], l)           /* call.started */
     }
#endif
  :: atomic {
       if
       :: alive[1] -> l = 1
       :: alive[2] -> l = 2
#if LEASES > 2
       :: alive[3] -> l = 3
#endif
       fi;
       alive[l] = 0
     }
     if
     :: completed = 1
     :: completed = 0
     fi;
     d_step { !row_locked -> finish_call(id_of[l], l, completed) };
     if
     :: d_step { !row_locked -> finish_call(id_of[l], l, completed) }
     :: skip
     fi
  od
}

/* The dialer's look at calls of which it has not heard: list_open_calls, the carrier's answer, finish_call. */
#ifdef RECONCILE_EARLY
#define IS_UNHEARD(c) (db.call[c] == STARTED)
#else
#define IS_UNHEARD(c) (db.call[c] == STARTED && now >= db.place_by[c])
#endif

proctype Reconciler() {
  byte c; byte id; byte lease; bit is_there;
end:
  do
  :: atomic {
       if
       :: IS_UNHEARD(0) -> c = 0
#if CONTACTS > 1
       :: IS_UNHEARD(1) -> c = 1
#endif
       fi;
       id = db.id[c]; lease = db.lease[c];
       is_there = arrived[lease]
     }
     if
     :: is_there
     :: !is_there ->
        d_step { !row_locked -> finish_call(id, lease, 0) }      /* missing: it was not placed */
     fi
  od
}

/* release_expired_leases: a lease may have expired at any time. */
proctype Releaser() {
 
end:
  do
  :: d_step {
       !row_locked && db.queued > 0 ->
       for (k : 0 .. CONTACTS - 1) {
         if
         :: db.call[k] == LEASED -> db.call[k] = NO_CALL; db.contact[k] = READY; db.queued--
         :: else
         fi
       }
       check_books()
     }
#ifdef RELEASE_STARTED
  :: d_step {
       !row_locked && db.in_progress > 0 ->
       for (k : 0 .. CONTACTS - 1) {
         if
         :: db.call[k] == STARTED -> db.call[k] = NO_CALL; db.contact[k] = READY; db.in_progress--
         :: else
         fi
       }
       check_books()
     }
#endif
  od
}

inline skip_contact(c) {
  if
  :: db.contact[c] == READY -> db.contact[c] = SKIPPED; db.skipped++
  :: db.contact[c] == QUEUED ->
     db.contact[c] = SKIPPED; db.call[c] = NO_CALL; db.queued--; db.skipped++
  :: else
  fi
}

/* batch_silence: no call of the batch can start. */
#ifdef SILENCE_IGNORES_QUEUE
#define CAN_START(c) (db.call[c] == STARTED && !db.confirmed[c] && db.place_by[c] > now)
#else
#define CAN_START(c) (db.call[c] == STARTED && (!db.confirmed[c] && db.place_by[c] > now || db.carrier_queued[c]))
#endif
#if CONTACTS > 1
#define IS_SILENT (db.status != PROCESSING && !CAN_START(0) && !CAN_START(1))
#else
#define IS_SILENT (db.status != PROCESSING && !CAN_START(0))
#endif

/* An operator of the batch: cancel, stop, resume, skip, in any order; the reply of an end may wait for silence. */
proctype Operator() {
  byte did;
  do
  :: did < ENDS -> did++;
     if
     :: d_step {               /* cancel_batch */
          !row_locked && db.status != CANCELLED ->
#ifndef CANCEL_WITHOUT_LOCK
          for (k : 0 .. CONTACTS - 1) { skip_contact(k) }
          db.status = CANCELLED;
#ifndef REPLY_BEFORE_DISK
          commit_durably();
#endif
          check_books()
        }
#else
          for (k : 0 .. CONTACTS - 1) { skip_contact(k) }
        }
        d_step { db.status = CANCELLED; commit_durably(); check_books() }
#endif
        promised_end = 1       /* the reply */
     :: d_step {               /* stop_batch, pause_batch */
          !row_locked && db.status == PROCESSING ->
          for (k : 0 .. CONTACTS - 1) {
            if
            :: db.contact[k] == QUEUED -> db.contact[k] = READY; db.call[k] = NO_CALL; db.queued--
            :: else
            fi
          }
          db.status = STOPPED;
#ifndef REPLY_BEFORE_DISK
          commit_durably();
#endif
          check_books()
        }
        promised_end = 1
     :: db.status == STOPPED ->
        atomic { promised_end = 0; promised_silence = 0 }
        d_step {               /* resume_batch */
          !row_locked ->
          if
          :: db.status == STOPPED -> db.status = PROCESSING
          :: else
          fi;
          commit_durably()
        }
        if
        :: atomic { db.status == CANCELLED -> promised_end = 1 }
        :: else
        fi
     :: d_step {               /* skip_contacts, opt_out: contact 0 */
          !row_locked && db.status != CANCELLED && !promised_skip ->
          skip_contact(0);
          db.is_last[0] = 1;
          commit_durably();
          check_books()
        }
        promised_skip = 1
     :: skip
     fi
  :: atomic {                  /* a reply that waited */
       promised_end && !promised_silence && IS_SILENT -> promised_silence = 1
     }
  :: break
  od
}

#if CONTACTS > 1
/* add_contacts: contact 1. */
proctype Adder() {
  bit is_live;
#ifdef ADD_WITHOUT_LOCK
  is_live = (db.status != CANCELLED);
#endif
  d_step {
    !row_locked ->
#ifndef ADD_WITHOUT_LOCK
    is_live = (db.status != CANCELLED);
#endif
    if
    :: is_live -> db.contact[1] = READY; db.total++
    :: else
    fi;
    commit_durably();
    check_books()
  }
}
#endif

#ifdef HOLDS
/* Whoever brings a batch to life asks to be admitted before it locks the batch: admit_live. */
inline admit_live() {
  atomic { !closed -> admitted++ }
}

/* One operator pauses and resumes; the other holds and lifts. Each transaction has several steps. */
proctype Resumer() {
  byte did; bit seen;
  do
  :: did < ENDS -> did++;
     if
     :: d_step {               /* pause_batch */
          !row_locked && db.status == PROCESSING ->
          for (k : 0 .. CONTACTS - 1) {
            if
            :: db.contact[k] == QUEUED -> db.contact[k] = READY; db.call[k] = NO_CALL; db.queued--
            :: else
            fi
          }
          db.status = STOPPED;
          commit_durably()
        }
     :: db.status == STOPPED ->   /* resume_batch, start_batch, process_batches */
#ifdef FENCE_AFTER_LOCK
        atomic { !row_locked -> row_locked = 1 }
        admit_live();
#else
#ifndef RESUME_WITHOUT_FENCE
        admit_live();
#endif
        atomic { !row_locked -> row_locked = 1 }
#endif
        seen = db.hold;        /* find_mark */
        d_step {
          db.status = PROCESSING; db.held = seen;
          commit_durably();
          row_locked = 0;
#ifndef RESUME_WITHOUT_FENCE
          admitted--
#endif
        }
     :: skip
     fi
  :: break
  od
}

proctype Holder() {
  byte did; bit is_live;
  do
  :: did < ENDS -> did++;
     if
     :: !promised_hold ->      /* hold_calls */
#ifdef HOLD_SCANS_BEFORE_FENCE
        is_live = (db.status == PROCESSING);
        atomic { !admitted && !closed -> closed = 1 }
#else
        atomic { !admitted && !closed -> closed = 1 }
        is_live = (db.status == PROCESSING);
#endif
        if
        :: is_live -> atomic { !row_locked -> row_locked = 1 }
        :: !is_live
        fi;
        d_step {               /* mark_held: a batch that was ended meanwhile is no longer dialed */
          db.hold = 1;
          if
          :: is_live && db.status == PROCESSING -> db.held = 1
          :: else
          fi;
          commit_durably();
          if
          :: is_live -> row_locked = 0
          :: else
          fi;
          closed = 0
        }
        promised_hold = 1
     :: promised_hold ->
        promised_hold = 0;
        atomic { !admitted && !closed -> closed = 1 }
        atomic { !row_locked -> row_locked = 1 }
        d_step {               /* lift_hold */
          db.hold = 0; db.held = 0;
          commit_durably();
          row_locked = 0; closed = 0
        }
     fi
  :: break
  od
}
#endif

proctype Clock() {
end:
  do
  :: now < TIME -> now++
  od
}

#if CRASHES > 0
/* A crash of the database, or a failover to its synchronous standby: what no disk has is taken back. */
proctype Crash() {
  byte did;
  do
  :: did < CRASHES -> d_step { did++; copy(db, disk) }
  :: break
  od
}
#endif

init {
 
  atomic {
    db.contact[0] = READY; db.total = 1;
    copy(disk, db);
    for (k : 1 .. DIALERS) { run Dialer() }
    run Carrier();
    run Reconciler();
    run Releaser();
#ifdef HOLDS
    run Resumer();
    run Holder();
#else
    run Operator();
#endif
#if CONTACTS > 1
    run Adder();
#endif
    run Clock();
#if CRASHES > 0
    run Crash();
#endif
    check_books()
  }
}
