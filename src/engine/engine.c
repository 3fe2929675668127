/* The decode thread: queue, slots, steps, and who is told when. README.md has the thread map. */
#include "engine.h"

#include "base/clock.h"
#include "base/memory.h"
#include "decoder.h"
#include "job.h"
#include "prefix_cache.h"
#include "scheduler.h"
#include "sequence.h"
#include "slot_board.h"
#include "turns.h"

#include <stdio.h>
#include <string.h>

#define HEAD_PATIENCE_US 500000 /* how long others may overtake a request for whose adapter there is no room */
#define STUCK_US 20000          /* how long there is no room while nobody runs, before others give back what they hold */
#define AHEAD 4                 /* requests beyond the slots that may hold or await the same adapters */
#define MOST_AHEAD 256          /* requests in the queue that may hold or await adapters at all */
#define LOOK_AHEAD 1024         /* how far into the queue is looked for them */
#define NAP_US 20000            /* sleep while requests wait for adapters: a cancel rings no bell */

struct gr_engine {
    gr_engine_options options;
    int n_slots;            /* with the probe slot, if there is one: the last */
    gr_base_model *base;
    gr_vocab vocab;
    gr_decoder *decoder;
    pthread_t thread;
    bool started;

    /* the decode thread's */
    gr_sequence slots[GR_MAX_SLOTS];
    gr_prefix prefixes[GR_MAX_SLOTS]; /* what the slots have in the KV cache */
    llama_token *tokens;    /* [slots][context]: the sequences' */
    int n_active;
    gr_sequence *alone;     /* a suspect that runs without company, or NULL */
    uint64_t admitted, left, step;
    gr_sharing sharing;
    gr_draw draw;
    gr_turns turns;         /* who gets the next free slot */
    gr_slot_board *board;   /* the slots, for other threads to look at */
    uint64_t cached;        /* tokens, since the last step */
    gr_span *spans;         /* [slots] */
    gr_farewell *leaving;   /* adapters whose last handle is gone */
    bool rows;              /* how this step applies adapters */

    /* under `mutex` */
    gr_mutex mutex;         /* GR_RANK_ENGINE_QUEUE */
    gr_cond wake;           /* something for the decode thread */
    gr_cond ready;          /* `opened` */
    graft_job *first, *last; /* waiting for a slot, oldest first */
    size_t n_waiting;
    bool news;              /* something came since the decode thread looked */
    int64_t step_began;     /* gr_now_us; 0 = idle */
    size_t n_running;       /* jobs in slots, as of the last look */
    gr_farewell *farewells; /* new ones */
    bool stop;
    bool ended;             /* the decode thread takes no more farewells */
    bool ever_grouped;      /* libllama may have twins of adapters */
    bool opened;            /* the self-test is over */
    int open_status;
    graft_error open_error;
    graft_apply apply;      /* ROWS or GROUPED */
    bool rows_work;
    const char *reason;     /* one of the next three, or a literal; their text never changes once set */
    char reason_opened[160], reason_broken[160];
    graft_stats stats;
};

/* ---- opening: which way to apply adapters -------------------------------------------------------------- */

static int judge_rows(gr_engine *e, graft_error *err) {
    e->rows_work = true;
    if (!e->base->arch) {
        snprintf(e->reason_opened, sizeof e->reason_opened, "no adapters on this architecture, nothing to test");
    } else if (e->base->offloaded) {
        e->rows_work = false;
        snprintf(e->reason_opened, sizeof e->reason_opened, "layers may lie on a GPU, whose memory is out of reach");
    } else if (!e->options.self_test) {
        snprintf(e->reason_opened, sizeof e->reason_opened, "not tested: the self-test is switched off");
    } else {
        graft_error why;
        int rc = gr_decoder_selftest(e->decoder, &e->rows_work, e->reason_opened, &why);
        if (rc == GRAFT_E_OUT_OF_MEMORY) {
            *err = why;
            return rc;
        }
        if (rc) {
            e->rows_work = false;
            snprintf(e->reason_opened, sizeof e->reason_opened, "%.150s", why.message);
        }
    }
    return 0;
}

static int refuse_rows(const gr_engine *e, graft_error *err) {
    return gr_fail(err, GRAFT_E_SELF_TEST_FAILED, "apply = rows: %s", e->reason_opened);
}

static void open_on_thread(gr_engine *e) {
    graft_error error = {0};
    int rc = judge_rows(e, &error);
    if (!rc && e->options.apply == GRAFT_APPLY_ROWS && !e->rows_work) {
        rc = refuse_rows(e, &error);
    }
    gr_mutex_lock(&e->mutex);
    bool grouped = e->options.apply == GRAFT_APPLY_GROUPED;
    e->apply = grouped || !e->rows_work ? GRAFT_APPLY_GROUPED : GRAFT_APPLY_ROWS;
    e->reason = grouped ? "asked for" : e->reason_opened;
    e->open_status = rc;
    e->open_error = error;
    e->opened = true;
    gr_cond_broadcast(&e->ready);
    gr_mutex_unlock(&e->mutex);
}

/* ---- ends ---------------------------------------------------------------------------------------------- */

static void say_gone(gr_engine *e, gr_farewell *f) {
    gr_mutex_lock(&e->mutex);
    f->gone = true;
    gr_cond_broadcast(&e->ready);
    gr_mutex_unlock(&e->mutex);
}

static void end_farewell(gr_farewell *f) {
    if (f->done) {
        f->done(f);
    } else {
        gr_free(f);
    }
}

/* Frees the adapters that nobody else holds any more. */
static void see_off(gr_engine *e, bool all) {
    gr_farewell **at = &e->leaving;
    while (*at) {
        gr_farewell *f = *at;
        if (!all && atomic_load(&f->adapter->references) > 1) {
            at = &f->next;
            continue;
        }
        *at = f->next;
        gr_decoder_forget_adapter(e->decoder, f->adapter);
        gr_adapter_release(f->adapter);
        if (f->awaited) {
            say_gone(e, f);
        } else {
            end_farewell(f);
        }
    }
}

static void log_end(const gr_engine *e, const graft_job *job, const gr_ending *ending) {
    const graft_result *r = &job->result;
    graft_log_entry about = {.level = job->spec.probe ? GRAFT_LOG_DEBUG : GRAFT_LOG_INFO,
                             .request = job->id,
                             .generation = r->generation,
                             .code = ending->error.code ? ending->error.code : r->fallback.code};
    if (job->supply) {
        about.project = gr_supply_want(job->supply, 0)->project;
        about.adapter = gr_supply_want(job->supply, 0)->adapter;
    }
    gr_log_about(e->options.log, &about, "%s %llu ended: %s, %d + %d tokens", job->spec.probe ? "probe" : "request",
                 (unsigned long long)job->id, graft_finish_name(ending->finish), r->prompt_tokens, r->completion_tokens);
}

/* Adapters first: who waits for the job may then see their memory gone. */
static void finish_job(gr_engine *e, graft_job *job, const gr_ending *ending) {
    log_end(e, job, ending);
    gr_job_conclude(job, ending);
    see_off(e, false);
    gr_job_announce(job);
}

/* What a sequence leaves behind stays in the cache if others may go on from it, and nothing is known to be wrong with it. */
static void leave_slot(gr_engine *e, const gr_sequence *s) {
    gr_prefix *p = &e->prefixes[s->slot];
    bool sound = s->ending.finish != GRAFT_FINISH_ERROR && !s->suspect;
    p->busy = false;
    p->n = s->shares && sound ? s->n_past : 0;
    p->used = ++e->left;
    if (p->n == 0) {
        gr_decoder_forget_sequence(e->decoder, s->slot);
    }
}

static void retire(gr_engine *e) {
    for (int i = 0; i < e->n_slots; i++) {
        gr_sequence *s = &e->slots[i];
        if (s->job && s->ended) {
            leave_slot(e, s);
            finish_job(e, s->job, &s->ending);
            s->job = NULL;
            e->n_active--;
            e->alone = e->alone == s ? NULL : e->alone;
        }
    }
}

static void cancel_active(gr_engine *e) {
    for (int i = 0; i < e->n_slots; i++) {
        gr_sequence *s = &e->slots[i];
        if (s->job && atomic_load(&s->job->cancelled)) {
            gr_sequence_cancel(s);
        }
    }
    retire(e);
}

/* ---- the queue ----------------------------------------------------------------------------------------- */

/* What to do with a job of the queue. */
typedef bool queue_test(const gr_engine *e, const graft_job *job);

/* Takes the jobs that pass the test out of the queue, at most `most`, as a list in their order. Under the mutex. */
static graft_job *take(gr_engine *e, queue_test *test, int most) {
    graft_job *taken = NULL, **end = &taken, **at = &e->first;
    e->last = NULL;
    while (*at) {
        graft_job *job = *at;
        if (most > 0 && test(e, job)) {
            *at = job->next;
            job->next = NULL;
            *end = job;
            end = &job->next;
            e->n_waiting--;
            most--;
        } else {
            e->last = job;
            at = &job->next;
        }
    }
    return taken;
}

static bool is_cancelled(const gr_engine *e, const graft_job *job) {
    (void)e;
    return atomic_load(&job->cancelled);
}

static bool has_no_adapters(const gr_engine *e, const graft_job *job) {
    (void)e;
    return job->supply && gr_supply_ready(job->supply) && gr_supply_error(job->supply)->code;
}

static bool may_run(const graft_job *job) {
    return !job->supply || (gr_supply_ready(job->supply) && !gr_supply_error(job->supply)->code);
}

static bool is_for_slots(const gr_engine *e, const graft_job *job) {
    return may_run(job) && !(job->spec.probe && e->options.probe_slot);
}

/* Requests with one key take turns with others: the same adapters by name, or the same handles; the base alone is 0. */
static uint64_t turn_key(const graft_job *job) {
    uint64_t key = job->supply ? gr_supply_key(job->supply) : 0;
    for (int i = 0; !job->supply && i < job->spec.adapters.n; i++) {
        key = (key + (uintptr_t)job->spec.adapters.adapters[i]) * UINT64_C(0x9e3779b97f4a7c15);
    }
    return key;
}

/* Takes the job whose turn it is out of the queue, or NULL. Looks at a bounded part of the queue. Under the mutex. */
static graft_job *take_turn(gr_engine *e) {
    graft_job **best = NULL, *before_best = NULL, *before = NULL;
    uint64_t least = UINT64_MAX, seen = UINT64_MAX;
    int looked = 0;
    for (graft_job **at = &e->first; *at && least > 0 && looked < LOOK_AHEAD; before = *at, at = &(*at)->next) {
        if (!is_for_slots(e, *at)) {
            continue;
        }
        looked++;
        uint64_t key = turn_key(*at);
        uint64_t rank = best && key == seen ? UINT64_MAX : gr_turns_rank(&e->turns, key); /* runs of one key are common */
        seen = key;
        if (rank < least) {
            least = rank;
            best = at;
            before_best = before;
        }
    }
    if (!best) {
        return NULL;
    }
    graft_job *job = *best;
    *best = job->next;
    job->next = NULL;
    e->last = e->last == job ? before_best : e->last;
    e->n_waiting--;
    gr_turns_began(&e->turns, turn_key(job));
    return job;
}

/* At most `most` jobs, as a list. Under the mutex. */
static graft_job *take_by_turns(gr_engine *e, int most) {
    graft_job *taken = NULL, **end = &taken;
    gr_turns_look(&e->turns);
    for (int i = 0; i < e->options.slots; i++) {
        if (e->slots[i].job) {
            gr_turns_running(&e->turns, turn_key(e->slots[i].job));
        }
    }
    while (most-- > 0 && (*end = take_turn(e)) != NULL) {
        end = &(*end)->next;
    }
    return taken;
}

static bool is_for_probing(const gr_engine *e, const graft_job *job) {
    return may_run(job) && job->spec.probe && e->options.probe_slot;
}

/* Jobs that can run, no more than there are free slots, as two lists. Returns how many. Under the mutex. */
static int take_runnable(gr_engine *e, graft_job **jobs, graft_job **probe) {
    int free_slots = 0, n = 0;
    for (int i = 0; i < e->options.slots; i++) {
        free_slots += !e->slots[i].job;
    }
    bool probe_free = e->n_slots > e->options.slots && !e->slots[e->options.slots].job;
    *jobs = take_by_turns(e, free_slots);
    *probe = probe_free ? take(e, is_for_probing, 1) : NULL;
    for (const graft_job *job = *jobs; job; job = job->next) {
        n++;
    }
    return n + (*probe != NULL);
}

/* ---- slots and what they hold -------------------------------------------------------------------------- */

/* Makes the job's key; false if it shares nothing. */
static bool key_of(const gr_engine *e, const graft_job *job, gr_prefix_key *key) {
    return job->spec.kind == GR_JOB_GENERATE && job->spec.cache_prompt && e->sharing != GR_SHARE_NOTHING &&
           gr_prefix_key_make(key, &job->spec.adapters, job->starts, job->spec.cache_domain);
}

/* How far those that run have come. */
static void note_progress(gr_engine *e) {
    for (int i = 0; i < e->n_slots; i++) {
        const gr_sequence *s = &e->slots[i];
        if (s->job) {
            e->prefixes[i].n = s->shares && !s->suspect ? s->n_past : 0;
        }
    }
}

/* Nobody else would say so: the request is answered, by the base. */
static void log_idle_adapters(const gr_engine *e, const graft_job *job) {
    for (int i = 0; i < job->spec.adapters.n; i++) {
        if (job->starts[i] == GR_NEVER) {
            graft_log_entry about = {.level = GRAFT_LOG_INFO, .request = job->id,
                                     .generation = job->spec.adapters.adapters[i]->generation};
            gr_log_about(e->options.log, &about, "request %llu: the prompt does not have the adapter's invocation tokens, so it does nothing",
                         (unsigned long long)job->id);
        }
    }
}

static void enter_slot(gr_engine *e, graft_job *job, const gr_placement *at, const gr_prefix_key *key) {
    int n = at->n;
    if (n == 0) {
        gr_decoder_forget_sequence(e->decoder, at->slot);
    } else if (at->source != at->slot) {
        gr_decoder_copy(e->decoder, at->source, at->slot, n);
    } else if (!gr_decoder_cut(e->decoder, at->slot, n)) {
        n = 0;
    }
    gr_sequence *s = &e->slots[at->slot];
    gr_prefix *p = &e->prefixes[at->slot];
    gr_sequence_start(s, job, n);
    e->cached += (uint64_t)n;
    s->shares = key != NULL;
    p->busy = true;
    p->n = 0;
    if (key) {
        p->key = *key;
    }
    e->n_active++;
    log_idle_adapters(e, job);
    gr_job_start(job);
}

/* Puts the list's jobs into slots and returns those left: with `going_on` the ones that cannot go on in a slot as it is. */
static graft_job *place(gr_engine *e, graft_job *jobs, bool going_on) {
    graft_job *rest = NULL, **end = &rest;
    while (jobs) {
        graft_job *job = jobs;
        jobs = job->next;
        job->next = NULL;
        gr_prefix_key key;
        bool shares = key_of(e, job, &key);
        note_progress(e);
        gr_placement at = gr_prefix_place(e->prefixes, e->options.slots, shares ? &key : NULL, job->spec.tokens,
                                          job->spec.n_tokens, e->sharing == GR_SHARE_WHOLE);
        if (going_on && at.source != at.slot) {
            *end = job;
            end = &job->next;
        } else {
            enter_slot(e, job, &at, shares ? &key : NULL);
        }
    }
    return rest;
}

/* Gives the jobs their adapters by name. Ends those whose adapters cannot act together, and returns the others. */
static graft_job *equip(gr_engine *e, graft_job *jobs) {
    graft_job *rest = NULL, **end = &rest;
    while (jobs) {
        graft_job *job = jobs;
        gr_ending ending = {GRAFT_FINISH_ERROR, {0}};
        jobs = job->next;
        job->next = NULL;
        if (job->supply) {
            gr_job_equip(job);
        }
        if (job->supply && gr_job_check_adapters(&job->spec, job->supply, e->base, &ending.error)) {
            finish_job(e, job, &ending);
            gr_mutex_lock(&e->mutex);
            e->n_running--;
            gr_mutex_unlock(&e->mutex);
        } else {
            *end = job;
            end = &job->next;
        }
    }
    return rest;
}

/* Those that go on where another ended choose first, or their slots might go to somebody who has no use for what they hold. */
static void admit(gr_engine *e, graft_job *jobs, graft_job *probe) {
    jobs = equip(e, jobs);
    for (graft_job *job = jobs; job; job = job->next) {
        job->age = ++e->admitted;
        gr_job_activate(job);
    }
    place(e, place(e, jobs, true), false);
    if (probe) {
        gr_placement last = {e->options.slots, -1, 0};
        probe->age = ++e->admitted;
        gr_job_activate(probe);
        enter_slot(e, probe, &last, NULL);
    }
}

/* ---- waiting for adapters ------------------------------------------------------------------------------ */

static bool awaits_adapters(const graft_job *job) {
    return job->supply && gr_supply_asked(job->supply) && !gr_supply_ready(job->supply);
}

/* How those who wait for adapters stand. */
typedef struct queue_state {
    bool patient; /* nobody has waited for room for long */
    bool stuck;   /* nobody runs, and all the same there is no room */
} queue_state;

/* Waiting for a load to end is no reason to keep others back; waiting for room is, since it is they who take it. Under the
 * mutex. */
static queue_state look_at_queue(const gr_engine *e) {
    const graft_job *job = e->first;
    while (job && !awaits_adapters(job)) {
        job = job->next;
    }
    int64_t starved = job ? gr_supply_starved_us(job->supply) : 0;
    return (queue_state){.patient = starved < HEAD_PATIENCE_US, .stuck = e->n_active == 0 && starved >= STUCK_US};
}

/*
 * Requests for several adapters may each hold one that another needs, and would wait until their time is up. So all but the first
 * of those who wait are to give back what they have. As a list by next_ask. Under the mutex.
 */
static graft_job *choose_yielding(gr_engine *e) {
    graft_job *list = NULL;
    bool first = true;
    for (graft_job *job = e->first; job; job = job->next) {
        if (awaits_adapters(job)) {
            if (!first && gr_supply_holds(job->supply)) {
                job->next_ask = list;
                list = job;
            }
            first = false;
        }
    }
    return list;
}

/* Jobs of the queue that have or await their adapters, by what they want. */
typedef struct ahead_list {
    struct ahead {
        uint64_t key;
        int jobs;
    } of[MOST_AHEAD];
    int n, jobs;
} ahead_list;

/* The place of a key, made if need be; NULL if there are too many. */
static struct ahead *find_ahead(ahead_list *list, uint64_t key) {
    for (int i = 0; i < list->n; i++) {
        if (list->of[i].key == key) {
            return &list->of[i];
        }
    }
    if (list->n == MOST_AHEAD) {
        return NULL;
    }
    list->of[list->n] = (struct ahead){key, 0};
    return &list->of[list->n++];
}

static void count_ahead(const gr_engine *e, ahead_list *list) {
    for (const graft_job *job = e->first; job && list->jobs < MOST_AHEAD; job = job->next) {
        struct ahead *a = job->supply && gr_supply_asked(job->supply) ? find_ahead(list, gr_supply_key(job->supply)) : NULL;
        if (a) {
            a->jobs++;
            list->jobs++;
        }
    }
}

/*
 * The jobs whose adapters are to be asked for now, in the queue's order, marked and linked by next_ask. Under the mutex.
 * Not for all at once: what waits in the queue would keep adapters in memory that nobody uses yet. So a few of each kind, and not
 * too many kinds. And not while somebody has lacked room for long: the adapters in use must come to an end. Who gave way asks
 * again when nobody before it waits.
 */
static graft_job *choose_asking(gr_engine *e, int64_t now) {
    graft_job *list = NULL, **end = &list;
    ahead_list ahead = {.n = 0};
    bool somebody = false;
    int looked_at = 0;
    count_ahead(e, &ahead);
    for (graft_job *job = e->first; job && ahead.jobs < MOST_AHEAD && looked_at < LOOK_AHEAD; job = job->next) {
        if (job->supply && !gr_supply_asked(job->supply) && !(somebody && gr_supply_gave_way(job->supply))) {
            struct ahead *a = find_ahead(&ahead, gr_supply_key(job->supply));
            looked_at++;
            if (a && a->jobs < e->options.slots + AHEAD) {
                gr_supply_mark(job->supply, now);
                job->next_ask = NULL;
                *end = job;
                end = &job->next_ask;
                a->jobs++;
                ahead.jobs++;
            }
        }
        somebody = somebody || awaits_adapters(job);
    }
    return list;
}

static void take_farewells(gr_engine *e) {
    while (e->farewells) {
        gr_farewell *f = e->farewells;
        e->farewells = f->next;
        f->next = e->leaving;
        e->leaving = f;
    }
}

/* Sleeps until there is something to do. Under the mutex. */
static void sleep_idle(gr_engine *e) {
    e->step_began = 0;
    while (!e->stop && e->n_active == 0 && !e->news) {
        if (!e->first) {
            gr_cond_wait(&e->wake, &e->mutex);
        } else if (!gr_cond_wait_until(&e->wake, &e->mutex, gr_now_us() + NAP_US)) {
            break;
        }
    }
    e->news = false;
    e->step_began = gr_now_us();
}

static void finish_list(gr_engine *e, graft_job *jobs, const gr_ending *ending) {
    while (jobs) {
        graft_job *job = jobs;
        jobs = job->next;
        gr_ending own = *ending;
        if (own.error.code == 0) {
            own.error = *gr_supply_error(job->supply);
        }
        finish_job(e, job, &own);
    }
}

/* Who asks for adapters, and who gives some back. The mutex is held, but not throughout: only this thread takes jobs out of the
 * queue. */
static void deal_out(gr_engine *e, bool go_on) {
    int64_t now = gr_now_us();
    queue_state w = look_at_queue(e);
    graft_job *yielding = w.patient && !w.stuck ? NULL : choose_yielding(e);
    graft_job *asking = go_on && w.patient ? choose_asking(e, now) : NULL;
    gr_mutex_unlock(&e->mutex);
    for (; yielding; yielding = yielding->next_ask) {
        gr_supply_yield(yielding->supply);
    }
    while (asking) {
        graft_job *next = asking->next_ask;
        gr_supply_ask(asking->supply); /* adapters in memory arrive before this returns */
        asking = next;
    }
    gr_mutex_lock(&e->mutex);
}

/* Waits for something to do, then brings in what came. False when the engine is to stop. */
static bool collect(gr_engine *e) {
    gr_mutex_lock(&e->mutex);
    sleep_idle(e);
    bool go_on = !e->stop;
    take_farewells(e);
    graft_job *cancelled = take(e, is_cancelled, GR_MAX_QUEUE);
    deal_out(e, go_on);
    graft_job *failed = take(e, has_no_adapters, GR_MAX_QUEUE);
    graft_job *jobs = NULL, *probe = NULL;
    int n_running = e->n_active + (go_on ? take_runnable(e, &jobs, &probe) : 0);
    e->n_running = (size_t)n_running;
    e->rows = e->apply == GRAFT_APPLY_ROWS;
    e->ever_grouped |= !e->rows && n_running > 0;
    gr_mutex_unlock(&e->mutex);

    admit(e, jobs, probe);
    gr_ending ending = {GRAFT_FINISH_CANCELLED, {0}};
    gr_fail(&ending.error, GRAFT_E_CANCELLED, "the request was cancelled before it began");
    finish_list(e, cancelled, &ending);
    finish_list(e, failed, &(gr_ending){GRAFT_FINISH_ERROR, {0}});
    see_off(e, false);
    return go_on;
}

/* ---- suspects ------------------------------------------------------------------------------------------ */

/*
 * NaN and infinity do not stay where they arise. Attention runs over all cells of the cache and masks those of other
 * sequences afterwards, and NaN times a weight of zero is NaN; so one sequence's overflow can show in any other, and
 * in later ones through cells that are free again. Therefore nobody is blamed for bad logits at once: the cache is
 * cleared, and each suspect runs alone, from its first token on, until its logits say who it was. The others wait and
 * are computed anew afterwards. It costs some prompts' worth of time, and only when an adapter overflows.
 */
static void clear_cache(gr_engine *e) {
    gr_decoder_clear(e->decoder);
    for (int i = 0; i < e->n_slots; i++) {
        e->slots[i].n_past = 0;
        e->prefixes[i].n = 0;
        if (e->slots[i].job) {
            e->slots[i].job->result.cached_tokens = 0;
        }
    }
}

/* The next suspect, oldest first, gets the cache for itself. */
static void isolate_suspect(gr_engine *e) {
    gr_sequence *oldest = NULL;
    for (int i = 0; i < e->n_slots; i++) {
        gr_sequence *s = &e->slots[i];
        if (s->job && s->suspect && (!oldest || s->age < oldest->age)) {
            oldest = s;
        }
    }
    if (oldest) {
        clear_cache(e);
        e->alone = oldest;
    }
}

static void judge(gr_engine *e, gr_sequence *s) {
    if (s->verdict == GR_LOGITS_GOOD) {
        s->suspect = false;
        e->alone = e->alone == s ? NULL : e->alone;
    } else if (s->verdict == GR_LOGITS_BAD && e->alone == s) {
        gr_sequence_convict(s);
        clear_cache(e);
    } else if (s->verdict == GR_LOGITS_BAD) {
        gr_log_line(e->options.log, GRAFT_LOG_WARN, "logits hold NaN or infinity; looking for the request that did it");
        s->suspect = true;
    }
}

/* ---- one step ------------------------------------------------------------------------------------------ */

static bool embeds(const gr_sequence *s) {
    return s->job->spec.kind == GR_JOB_EMBED;
}

/* libllama computes hidden states for all rows of a decode or for none, so who wants them takes turns with the others.
 * Returns how many remain. */
static int take_turns(const gr_engine *e, gr_sequence **of, int n) {
    int n_embed = 0, kept = 0;
    for (int i = 0; i < n; i++) {
        n_embed += embeds(of[i]);
    }
    bool turn = n_embed == n || (n_embed > 0 && e->step % 2);
    for (int i = 0; i < n; i++) {
        if (embeds(of[i]) == turn) {
            of[kept++] = of[i];
        }
    }
    return kept;
}

/* Who takes part in the step. */
static int choose(gr_engine *e, gr_sequence **of) {
    int n = 0;
    if (!e->alone) {
        isolate_suspect(e);
    }
    for (int i = 0; i < e->n_slots; i++) {
        gr_sequence *s = &e->slots[i];
        if (s->job && (!e->alone || e->alone == s)) {
            of[n++] = s;
        }
    }
    return take_turns(e, of, n);
}

/* Who gets how many rows; the answer as spans. Returns how many spans. */
static int plan_step(gr_engine *e) {
    gr_sched_item items[GR_MAX_SLOTS];
    gr_sequence *of[GR_MAX_SLOTS];
    int n = choose(e, of), n_spans = 0;
    for (int i = 0; i < n; i++) {
        items[i] = gr_sequence_item(of[i]);
    }
    gr_schedule(items, n, e->options.batch, gr_decoder_max_outputs(e->decoder));
    int64_t now = gr_now_us();
    e->step++;
    for (int i = 0; i < n; i++) {
        if (items[i].rows > 0) {
            e->spans[n_spans++] = gr_sequence_span(of[i], items[i].rows);
            of[i]->served = e->step;
            of[i]->job->first_row = of[i]->job->first_row ? of[i]->job->first_row : now;
        }
    }
    return n_spans;
}

static void on_logits(void *user, gr_span *span, int row, int count, const float *logits) {
    gr_engine *e = user;
    gr_sequence_logits(span->user, &e->draw, row, count, logits);
}

/* What a step did, for the statistics. */
typedef struct step_count {
    uint64_t generating, prompt; /* rows */
    uint64_t adapters, drawn;
    double ms;
} step_count;

/* How many different adapters the spans have. */
static uint64_t count_adapters(const gr_engine *e, int n_spans) {
    const gr_adapter *seen[GR_MAX_SLOTS * GR_MAX_USES];
    int n = 0;
    for (int i = 0; i < n_spans; i++) {
        const gr_span *span = &e->spans[i];
        const gr_adapter_set *set = gr_activation_at(span->active, span->start + span->n - 1); /* the others are part of it */
        for (int k = 0; k < set->n; k++) {
            int at = 0;
            while (at < n && seen[at] != set->adapters[k]) {
                at++;
            }
            seen[at] = set->adapters[k];
            n += at == n;
        }
    }
    return (uint64_t)n;
}

/* Tokens that the spans' sequences have generated so far. */
static uint64_t count_drawn(const gr_engine *e, int n_spans) {
    uint64_t n = 0;
    for (int i = 0; i < n_spans; i++) {
        const gr_sequence *s = e->spans[i].user;
        n += (uint64_t)s->job->result.completion_tokens;
    }
    return n;
}

/* Before the sequences move on. */
static step_count count_rows(const gr_engine *e, int n_spans) {
    step_count c = {.adapters = count_adapters(e, n_spans), .drawn = count_drawn(e, n_spans)};
    for (int i = 0; i < n_spans; i++) {
        bool generates = gr_sequence_generates(e->spans[i].user);
        *(generates ? &c.generating : &c.prompt) += (uint64_t)e->spans[i].n;
    }
    return c;
}

/* The bucket of graft_stats' histograms. */
static int step_bucket(uint64_t n) {
    int bucket = n > 0;
    while (bucket > 0 && bucket < GRAFT_STEP_BUCKETS - 1 && n > UINT64_C(1) << (bucket - 1)) {
        bucket++;
    }
    return bucket;
}

static void add_step(graft_stats *s, const step_count *c) {
    s->decode_tokens += c->generating;
    s->prompt_tokens += c->prompt;
    s->completion_tokens += c->drawn;
    if (c->prompt > 0) {
        s->prompt_steps++;
        s->prompt_ms += c->ms;
    } else {
        s->decode_steps++;
        s->decode_ms += c->ms;
    }
    s->last_rows = c->generating + c->prompt;
    s->last_adapters = c->adapters;
    s->step_rows += s->last_rows;
    s->step_adapters += s->last_adapters;
    s->rows_per_step[step_bucket(s->last_rows)]++;
    s->adapters_per_step[step_bucket(s->last_adapters)]++;
}

static void note_step(gr_engine *e, const step_count *c, bool rows_work) {
    gr_decoder_stats of_decoder = gr_decoder_get_stats(e->decoder);
    gr_mutex_lock(&e->mutex);
    graft_stats *s = &e->stats;
    add_step(s, c);
    s->cached_tokens += e->cached;
    e->cached = 0;
    s->largest_batch = of_decoder.largest_batch;
    s->most_adapters = of_decoder.most_adapters;
    s->retried_steps = of_decoder.retried_steps;
    if (!rows_work && e->rows_work) {
        e->rows_work = false;
        e->ever_grouped = true;
        e->apply = GRAFT_APPLY_GROUPED;
        snprintf(e->reason_broken, sizeof e->reason_broken, "rows stopped working while running; the log says why");
        e->reason = e->reason_broken;
    }
    gr_mutex_unlock(&e->mutex);
}

static void step(gr_engine *e) {
    int n = plan_step(e);
    step_count c = count_rows(e, n);
    int64_t begin = gr_now_us();
    bool rows_work = gr_decoder_run(e->decoder, e->spans, n, e->rows, on_logits, e);
    c.ms = (double)(gr_now_us() - begin) / 1e3;
    c.drawn = count_drawn(e, n) - c.drawn;
    for (int i = 0; i < n; i++) {
        gr_sequence *s = e->spans[i].user;
        if (e->spans[i].error.code) {
            gr_sequence_end(s, GRAFT_FINISH_ERROR, &e->spans[i].error);
        } else {
            s->n_past += e->spans[i].n;
            judge(e, s);
        }
    }
    note_step(e, &c, rows_work);
    retire(e);
    gr_slot_board_post(e->board, e->slots);
}

/* ---- the thread ---------------------------------------------------------------------------------------- */

static void end_all(gr_engine *e) {
    gr_ending ending = {GRAFT_FINISH_ERROR, {0}};
    gr_fail(&ending.error, GRAFT_E_SHUTTING_DOWN, "the instance was closed before the request ended");
    for (int i = 0; i < e->n_slots; i++) {
        if (e->slots[i].job) {
            gr_sequence_end(&e->slots[i], GRAFT_FINISH_ERROR, &ending.error);
        }
    }
    retire(e);
    gr_mutex_lock(&e->mutex);
    graft_job *jobs = e->first;
    e->first = e->last = NULL;
    e->n_waiting = 0;
    take_farewells(e);
    e->ended = true;
    gr_mutex_unlock(&e->mutex);
    finish_list(e, jobs, &ending);
    see_off(e, true);
}

static void *decode_thread(void *arg) {
    gr_engine *e = arg;
    open_on_thread(e);
    while (collect(e)) {
        cancel_active(e);
        gr_slot_board_post(e->board, e->slots);
        if (e->n_active > 0) {
            step(e);
        }
    }
    end_all(e);
    return NULL;
}

/* ---- making and freeing -------------------------------------------------------------------------------- */

/* Full size from the beginning: what graft holds then changes with adapters and requests only. */
static int make_piece_buffer(gr_buffer *piece, size_t longest, graft_error *err) {
    gr_buffer_init(piece, longest);
    for (size_t i = 0; i < longest; i++) {
        gr_buffer_append(piece, "", 1);
    }
    return piece->failed ? gr_fail_memory(err, longest) : 0;
}

static int make_parts(gr_engine *e, graft_error *err) {
    int rc = gr_vocab_init(&e->vocab, e->base->vocab, err);
    if (rc) {
        return rc;
    }
    e->draw.vocab = &e->vocab;
    e->draw.context = e->options.context;
    rc = make_piece_buffer(&e->draw.piece, (size_t)e->vocab.longest_piece, err);
    if (rc) {
        return rc;
    }
    rc = make_piece_buffer(&e->draw.shown, (1 + GR_MAX_TOP) * (size_t)e->vocab.longest_piece, err);
    if (rc) {
        return rc;
    }
    e->draw.scratch = gr_calloc((size_t)e->vocab.n_tokens, sizeof *e->draw.scratch);
    e->spans = gr_calloc((size_t)e->n_slots, sizeof *e->spans);
    e->tokens = gr_calloc((size_t)e->n_slots * (size_t)e->options.context, sizeof *e->tokens);
    if (!e->draw.scratch || !e->spans || !e->tokens) {
        return gr_fail_memory(err, (size_t)e->vocab.n_tokens * sizeof *e->draw.scratch);
    }
    for (int i = 0; i < e->n_slots; i++) {
        e->slots[i].slot = i;
        e->slots[i].tokens = e->tokens + (size_t)i * (size_t)e->options.context;
        e->prefixes[i].tokens = e->slots[i].tokens;
    }
    rc = gr_slot_board_create(&e->board, e->options.slots, err);
    if (rc) {
        return rc;
    }
    const gr_engine_options *o = &e->options;
    gr_decoder_options decoder = {o->slots, o->context, o->batch, o->threads, o->kv_type, e->n_slots > o->slots, o->log};
    rc = gr_decoder_create(&e->decoder, e->base, &decoder, err);
    e->draw.n_embd = rc ? 0 : gr_decoder_n_embd(e->decoder);
    e->sharing = rc ? GR_SHARE_NOTHING : gr_decoder_sharing(e->decoder);
    return rc;
}

/* Waits for the decode thread's verdict on the base. */
static int wait_opened(gr_engine *e, graft_error *err) {
    gr_mutex_lock(&e->mutex);
    while (!e->opened) {
        gr_cond_wait(&e->ready, &e->mutex);
    }
    int rc = e->open_status;
    if (rc && err) {
        *err = e->open_error;
    }
    gr_mutex_unlock(&e->mutex);
    return rc;
}

int gr_engine_create(gr_engine **out, gr_base_model *base, const gr_engine_options *options, graft_error *err) {
    gr_engine *e = gr_zalloc(sizeof *e);
    if (!e) {
        return gr_fail_memory(err, sizeof *e);
    }
    e->options = *options;
    e->options.probe_slot = options->probe_slot && options->slots < GR_MAX_SLOTS;
    e->n_slots = options->slots + e->options.probe_slot;
    e->base = base;
    gr_mutex_init(&e->mutex, GR_RANK_ENGINE_QUEUE);
    gr_cond_init(&e->wake);
    gr_cond_init(&e->ready);
    int rc = make_parts(e, err);
    if (!rc) {
        int no_thread = gr_thread_start(&e->thread, decode_thread, e);
        e->started = !no_thread;
        rc = no_thread ? gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "cannot start the decode thread: %s", strerror(no_thread))
                       : wait_opened(e, err);
    }
    if (rc) {
        gr_engine_free(e);
        return rc;
    }
    *out = e;
    return 0;
}

void gr_engine_stop(gr_engine *e) {
    if (e->started) {
        gr_mutex_lock(&e->mutex);
        e->stop = true;
        gr_cond_signal(&e->wake);
        gr_mutex_unlock(&e->mutex);
        gr_thread_join(e->thread);
        e->started = false;
    }
}

void gr_engine_free(gr_engine *e) {
    if (!e) {
        return;
    }
    gr_engine_stop(e);
    gr_decoder_free(e->decoder);
    gr_slot_board_free(e->board);
    gr_free(e->spans);
    gr_free(e->tokens);
    gr_free(e->draw.scratch);
    gr_buffer_finish(&e->draw.piece);
    gr_buffer_finish(&e->draw.shown);
    gr_vocab_finish(&e->vocab);
    gr_cond_finish(&e->ready);
    gr_cond_finish(&e->wake);
    gr_mutex_finish(&e->mutex);
    gr_free(e);
}

/* ---- from other threads -------------------------------------------------------------------------------- */

static void append(gr_engine *e, graft_job *job, int64_t now) {
    job->done = false; /* nobody else has the job yet */
    job->submitted = now;
    job->next = NULL;
    if (e->last) {
        e->last->next = job;
    } else {
        e->first = job;
    }
    e->last = job;
    e->n_waiting++;
}

int gr_engine_submit(gr_engine *e, graft_job *const *jobs, size_t n, graft_error *err) {
    int64_t now = gr_now_us();
    int rc = 0;
    gr_mutex_lock(&e->mutex);
    if (e->stop) {
        rc = gr_fail(err, GRAFT_E_SHUTTING_DOWN, "the instance is closing");
    } else if (!jobs[0]->spec.probe && e->n_waiting + n > GR_MAX_QUEUE) { /* a load must not fail for a full queue */
        rc = gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "the queue is full: %zu requests wait, at most %d may", e->n_waiting,
                     GR_MAX_QUEUE);
    } else {
        for (size_t i = 0; i < n; i++) {
            append(e, jobs[i], now);
        }
        e->news = true;
        gr_cond_signal(&e->wake);
    }
    gr_mutex_unlock(&e->mutex);
    return rc;
}

void gr_engine_forget(gr_engine *e, gr_farewell *f) {
    gr_mutex_lock(&e->mutex);
    /* A job takes its references before the handle goes, so a count of one cannot rise again. */
    bool now = !e->ever_grouped && atomic_load(&f->adapter->references) == 1;
    if (!now) {
        f->next = e->farewells;
        e->farewells = f;
        e->news = true;
        gr_cond_signal(&e->wake);
    }
    gr_mutex_unlock(&e->mutex);
    if (now) {
        gr_adapter_release(f->adapter);
        end_farewell(f);
    }
}

void gr_engine_drop(gr_engine *e, gr_adapter *adapter) {
    gr_farewell f = {.adapter = adapter, .awaited = true};
    gr_mutex_lock(&e->mutex);
    bool twins = e->ever_grouped, ended = e->ended;
    if (twins && !ended) {
        f.next = e->farewells;
        e->farewells = &f;
        e->news = true;
        gr_cond_signal(&e->wake);
        while (!f.gone) {
            gr_cond_wait(&e->ready, &e->mutex);
        }
    }
    gr_mutex_unlock(&e->mutex);
    if (f.gone) {
        return;
    }
    if (twins) { /* the decode thread is no more, and who closes the instance is the only one here */
        gr_decoder_forget_adapter(e->decoder, adapter);
    }
    gr_adapter_release(adapter);
}

int gr_engine_set_apply(gr_engine *e, graft_apply apply, graft_error *err) {
    int rc = 0;
    gr_mutex_lock(&e->mutex);
    if (apply == GRAFT_APPLY_ROWS && !e->rows_work) {
        rc = gr_fail(err, GRAFT_E_SELF_TEST_FAILED, "apply = rows: %s",
                     e->reason_broken[0] ? e->reason_broken : e->reason_opened);
    } else {
        bool grouped = apply == GRAFT_APPLY_GROUPED;
        e->apply = grouped || !e->rows_work ? GRAFT_APPLY_GROUPED : GRAFT_APPLY_ROWS;
        e->reason = grouped ? "asked for" : e->reason_broken[0] ? e->reason_broken : e->reason_opened;
    }
    gr_mutex_unlock(&e->mutex);
    return rc;
}

/* The getters' engine is const for the caller; the mutex is not part of what it sees. */
static gr_mutex *mutex_of(const gr_engine *e) {
    return &((gr_engine *)e)->mutex;
}

graft_apply gr_engine_apply(const gr_engine *e) {
    gr_mutex_lock(mutex_of(e));
    graft_apply apply = e->apply;
    gr_mutex_unlock(mutex_of(e));
    return apply;
}

const char *gr_engine_apply_reason(const gr_engine *e) {
    gr_mutex_lock(mutex_of(e));
    const char *reason = e->reason;
    gr_mutex_unlock(mutex_of(e));
    return reason;
}

uint64_t gr_engine_twin_bytes(const gr_engine *e) {
    return gr_decoder_twin_bytes(e->decoder);
}

int64_t gr_engine_stalled_us(const gr_engine *e) {
    gr_mutex_lock(mutex_of(e));
    int64_t began = e->step_began;
    gr_mutex_unlock(mutex_of(e));
    return began ? gr_now_us() - began : 0;
}

bool gr_engine_rows_work(const gr_engine *e) {
    gr_mutex_lock(mutex_of(e));
    bool work = e->rows_work;
    gr_mutex_unlock(mutex_of(e));
    return work;
}

void gr_engine_load(const gr_engine *e, size_t *waiting, size_t *active) {
    gr_mutex_lock(mutex_of(e));
    *waiting = e->n_waiting;
    *active = e->n_running;
    gr_mutex_unlock(mutex_of(e));
}

void gr_engine_bell(gr_engine *e, gr_mutex **mutex, gr_cond **bell, bool **news) {
    *mutex = &e->mutex;
    *bell = &e->wake;
    *news = &e->news;
}

void gr_engine_stats(const gr_engine *e, graft_stats *out) {
    gr_mutex_lock(mutex_of(e));
    *out = e->stats;
    out->waiting = e->n_waiting;
    if (e->step_began) {
        out->running = e->n_running;
    } else { /* idle: these are of the last step */
        out->last_rows = out->last_adapters = 0;
    }
    gr_mutex_unlock(mutex_of(e));
}

int gr_engine_slots(graft_slot_list **out, const gr_engine *e, graft_error *err) {
    return gr_slot_board_read(out, e->board, err);
}

const char *gr_engine_kernels(const gr_engine *e) {
    return gr_decoder_kernels(e->decoder);
}

uint64_t gr_engine_context_bytes(const gr_engine *e) {
    return gr_decoder_context_bytes(e->decoder);
}

int gr_engine_n_embd(const gr_engine *e) {
    return e->draw.n_embd;
}

const gr_vocab *gr_engine_vocab(const gr_engine *e) {
    return &e->vocab;
}
