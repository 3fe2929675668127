/* A copy of the slots' figures for other threads. */
#include "slot_board.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

typedef struct gr_slot_names {
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1], generation[65];
} gr_slot_names;

struct gr_slot_board {
    int n;
    gr_mutex mutex; /* GR_RANK_SLOTS: the next two */
    graft_slot *slots;
    gr_slot_names *names;
};

/* What graft_slots gives away, in one block. */
typedef struct slot_copy {
    graft_slot_list list; /* first: it is what the caller frees */
    graft_slot *slots;
    gr_slot_names *names;
} slot_copy;

int gr_slot_board_create(gr_slot_board **out, int n, graft_error *err) {
    gr_slot_board *b = gr_zalloc(sizeof *b);
    if (!b) {
        return gr_fail_memory(err, sizeof *b);
    }
    gr_mutex_init(&b->mutex, GR_RANK_SLOTS);
    b->n = n;
    b->slots = gr_calloc((size_t)n, sizeof *b->slots);
    b->names = gr_calloc((size_t)n, sizeof *b->names);
    if (!b->slots || !b->names) {
        gr_slot_board_free(b);
        return gr_fail_memory(err, (size_t)n * sizeof *b->names);
    }
    for (int i = 0; i < n; i++) {
        b->slots[i] = (graft_slot){.slot = i, .state = "idle"};
    }
    *out = b;
    return 0;
}

void gr_slot_board_free(gr_slot_board *b) {
    if (b) {
        gr_mutex_finish(&b->mutex);
        gr_free(b->slots);
        gr_free(b->names);
        gr_free(b);
    }
}

/* Names stay as they are while a job is in its slot. */
static void copy_names(gr_slot_names *to, const graft_job *job) {
    const gr_want *first = job->supply ? gr_supply_want(job->supply, 0) : NULL;
    snprintf(to->project, sizeof to->project, "%s", first ? first->project : "");
    snprintf(to->adapter, sizeof to->adapter, "%s", first ? first->adapter : "");
    snprintf(to->generation, sizeof to->generation, "%s", job->spec.generation);
}

static void post_one(graft_slot *to, gr_slot_names *names, const gr_sequence *s) {
    const graft_job *job = s->job;
    if (!job) {
        *to = (graft_slot){.slot = to->slot, .state = "idle"};
        return;
    }
    if (to->job != job->id) {
        copy_names(names, job);
    }
    int of_prompt = s->n_past < job->spec.n_tokens ? s->n_past : job->spec.n_tokens;
    *to = (graft_slot){
        .slot = to->slot,
        .state = gr_sequence_generates(s) ? "decode" : "prompt",
        .job = job->id,
        .prompt_tokens = job->spec.n_tokens,
        .cached_tokens = job->result.cached_tokens,
        .evaluated_tokens = of_prompt - job->result.cached_tokens,
        .completion_tokens = job->result.completion_tokens,
    };
}

void gr_slot_board_post(gr_slot_board *b, const gr_sequence *slots) {
    gr_mutex_lock(&b->mutex);
    for (int i = 0; i < b->n; i++) {
        post_one(&b->slots[i], &b->names[i], &slots[i]);
    }
    gr_mutex_unlock(&b->mutex);
}

static slot_copy *new_copy(int n) {
    size_t slots = (size_t)n * sizeof(graft_slot), names = (size_t)n * sizeof(gr_slot_names);
    slot_copy *c = gr_zalloc(sizeof *c + slots + names);
    if (c) {
        c->slots = (graft_slot *)(void *)(c + 1);
        c->names = (gr_slot_names *)(void *)(c->slots + n);
        c->list = (graft_slot_list){c->slots, (size_t)n};
    }
    return c;
}

int gr_slot_board_read(graft_slot_list **out, gr_slot_board *b, graft_error *err) {
    slot_copy *c = new_copy(b->n);
    if (!c) {
        return gr_fail_memory(err, sizeof *c);
    }
    gr_mutex_lock(&b->mutex);
    memcpy(c->slots, b->slots, (size_t)b->n * sizeof *c->slots);
    memcpy(c->names, b->names, (size_t)b->n * sizeof *c->names);
    gr_mutex_unlock(&b->mutex);
    for (int i = 0; i < b->n; i++) {
        bool busy = c->slots[i].job != 0; /* an idle slot still has the names of who left it */
        c->slots[i].project = busy ? c->names[i].project : "";
        c->slots[i].adapter = busy ? c->names[i].adapter : "";
        c->slots[i].generation = busy ? c->names[i].generation : "";
    }
    *out = &c->list;
    return 0;
}

void graft_slot_list_free(graft_slot_list *list) {
    gr_free(list); /* the first member of its block */
}
