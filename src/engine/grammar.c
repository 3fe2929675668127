/*
 * A stack is a linked list of nodes from its top down, and nodes are interned: two stacks with the same content are
 * the same node, and stacks share their tails. A node's element is the next thing to be read; 0 is the empty stack.
 * In a set of stacks every top is a character or a class: references to rules are unfolded at once.
 */
#include "grammar.h"

#include "base/memory.h"
#include "grammar_rules.h"

#include <string.h>

#define EMPTY 0u
#define BUCKETS 16384u /* a power of two */

typedef struct node {
    uint32_t element, parent;
    uint32_t next;  /* in the bucket */
    uint32_t stamp; /* of the last set it was added to */
} node;

typedef struct stack_set {
    uint32_t tops[GR_GRAMMAR_MAX_STACKS];
    uint32_t n;
    bool complete; /* the empty stack is among them */
} stack_set;

/* A character of which some bytes are still to come. */
typedef struct partial {
    uint32_t value, least; /* bits so far; smallest value that this length may encode */
    int missing;           /* bytes; 0 = at a character's border */
} partial;

struct gr_grammar {
    gr_rules rules;
    node *nodes; /* [0] stands for the empty stack */
    uint32_t n_nodes, capacity;
    uint32_t *buckets;
    uint32_t *todo; /* nodes to unfold */
    uint32_t stamp, work;
    bool exhausted;
    stack_set now, scratch[2];
    partial cut;
};

/* ---- nodes -------------------------------------------------------------------------------------------- */

static uint32_t *bucket_of(gr_grammar *g, uint32_t element, uint32_t parent) {
    uint32_t hash = (element * 2654435761u) ^ (parent * 2246822519u);
    return &g->buckets[(hash ^ hash >> 15) & (BUCKETS - 1)];
}

static bool grow(gr_grammar *g) {
    uint32_t capacity = g->capacity ? g->capacity * 2 : 1024;
    node *nodes = capacity > GR_GRAMMAR_MAX_NODES ? NULL : gr_realloc(g->nodes, capacity * sizeof *nodes);
    uint32_t *todo = nodes ? gr_realloc(g->todo, capacity * sizeof *todo) : NULL;
    if (nodes) {
        g->nodes = nodes;
    }
    if (!todo) {
        g->exhausted = true;
        return false;
    }
    g->todo = todo; /* a node is unfolded at most once per stamp, so this always suffices */
    g->capacity = capacity;
    return true;
}

static uint32_t intern(gr_grammar *g, uint32_t element, uint32_t parent) {
    uint32_t *bucket = bucket_of(g, element, parent);
    for (uint32_t i = *bucket; i != 0; i = g->nodes[i].next) {
        if (g->nodes[i].element == element && g->nodes[i].parent == parent) {
            return i;
        }
    }
    if (g->n_nodes == g->capacity && !grow(g)) {
        return EMPTY;
    }
    g->nodes[g->n_nodes] = (node){element, parent, *bucket, 0};
    *bucket = g->n_nodes;
    return g->n_nodes++;
}

/* Forgets all nodes from `mark` on. Newer nodes come first in their buckets, so going backwards unlinks heads only. */
static void forget_from(gr_grammar *g, uint32_t mark) {
    while (g->n_nodes > mark) {
        const node *n = &g->nodes[--g->n_nodes];
        *bucket_of(g, n->element, n->parent) = n->next;
    }
}

/* The stack on which `element` is the next thing to read; at the end of an alternative that is what lies below. */
static uint32_t stack_of(gr_grammar *g, uint32_t element, uint32_t parent) {
    return gr_element_ends(&g->rules.elements[element]) ? parent : intern(g, element, parent);
}

/* ---- sets --------------------------------------------------------------------------------------------- */

static void note(gr_grammar *g, uint32_t stack, uint32_t *n_todo, stack_set *set) {
    if (stack == EMPTY) {
        set->complete = !g->exhausted;
    } else if (g->nodes[stack].stamp != g->stamp) {
        g->nodes[stack].stamp = g->stamp;
        g->todo[(*n_todo)++] = stack;
    }
}

/* Adds to `set` all stacks that `stack` unfolds to. Ends because no rule can begin with itself. */
static void add(gr_grammar *g, stack_set *set, uint32_t stack) {
    uint32_t n_todo = 0;
    note(g, stack, &n_todo, set);
    while (n_todo > 0 && !g->exhausted) {
        uint32_t top = g->todo[--n_todo];
        uint32_t element = g->nodes[top].element, parent = g->nodes[top].parent;
        g->exhausted = ++g->work > GR_GRAMMAR_MAX_WORK;
        if (g->rules.elements[element].kind != GR_ELEMENT_RULE) {
            if (set->n == GR_GRAMMAR_MAX_STACKS) {
                g->exhausted = true;
                return;
            }
            set->tops[set->n++] = top;
            continue;
        }
        uint32_t below = stack_of(g, element + 1, parent);
        uint32_t at = g->rules.start[g->rules.elements[element].value];
        for (;; at++) { /* each alternative */
            note(g, stack_of(g, at, below), &n_todo, set);
            while (!gr_element_ends(&g->rules.elements[at])) {
                at++;
            }
            if (g->rules.elements[at].kind == GR_ELEMENT_END) {
                break;
            }
        }
    }
}

static void begin_set(gr_grammar *g, stack_set *set) {
    set->n = 0;
    set->complete = false;
    g->stamp++;
}

/* Whether the element can read some character in low..high. */
static bool reads(const gr_rules *r, const gr_element *e, uint32_t low, uint32_t high) {
    if (e->kind == GR_ELEMENT_CHAR) {
        return low <= e->value && e->value <= high;
    }
    const gr_char_class *c = &r->classes[e->value];
    for (uint32_t i = 0; i < c->n; i++) {
        gr_char_range range = r->ranges[c->first + i];
        if (c->negated) {
            if (low < range.low) {
                return true;
            }
            if (low <= range.high) {
                if (high <= range.high) {
                    return false;
                }
                low = range.high + 1;
            }
        } else if (range.low <= high && low <= range.high) {
            return true;
        }
    }
    return c->negated;
}

static void advance(gr_grammar *g, const stack_set *from, stack_set *to, uint32_t c) {
    begin_set(g, to);
    for (uint32_t i = 0; i < from->n && !g->exhausted; i++) {
        uint32_t element = g->nodes[from->tops[i]].element, parent = g->nodes[from->tops[i]].parent;
        g->exhausted = ++g->work > GR_GRAMMAR_MAX_WORK;
        if (reads(&g->rules, &g->rules.elements[element], c, c)) {
            add(g, to, stack_of(g, element + 1, parent));
        }
    }
}

/* ---- characters --------------------------------------------------------------------------------------- */

/* One more byte; false if no character has it there. NUL is none: no grammar means it, and it would cut texts. */
static bool feed(partial *p, unsigned char byte) {
    if (p->missing > 0) {
        p->value = p->value << 6 | (byte & 0x3Fu);
        p->missing--;
        return (byte & 0xC0) == 0x80;
    }
    *p = (partial){byte, 0, 0};
    if (byte >= 0xC2 && byte <= 0xDF) {
        *p = (partial){byte & 0x1Fu, 0x80, 1};
    } else if (byte >= 0xE0 && byte <= 0xEF) {
        *p = (partial){byte & 0x0Fu, 0x800, 2};
    } else if (byte >= 0xF0 && byte <= 0xF4) {
        *p = (partial){byte & 0x07u, 0x10000, 3};
    } else {
        return byte > 0 && byte < 0x80;
    }
    return true;
}

/* Whether some stack can read a character that the partial one may become. */
static bool may_continue(const gr_grammar *g, const stack_set *set, const partial *p) {
    uint32_t low = p->value << (6 * p->missing), high = low | ((1u << (6 * p->missing)) - 1);
    low = low < p->least ? p->least : low;
    high = high > 0x10FFFF ? 0x10FFFF : high;
    for (uint32_t i = 0; i < set->n; i++) {
        if (low <= high && reads(&g->rules, &g->rules.elements[g->nodes[set->tops[i]].element], low, high)) {
            return true;
        }
    }
    return false;
}

/* Reads the bytes from where the grammar stands. Where that leads is in *set and *cut. */
static gr_grammar_answer read_bytes(gr_grammar *g, const char *bytes, size_t n, const stack_set **set, partial *cut) {
    const stack_set *from = &g->now;
    *cut = g->cut;
    for (size_t i = 0; i < n; i++) {
        if (!feed(cut, (unsigned char)bytes[i])) {
            return GR_GRAMMAR_NO;
        }
        if (cut->missing > 0) {
            continue;
        }
        if (cut->value < cut->least || cut->value > 0x10FFFF || (cut->value >= 0xD800 && cut->value <= 0xDFFF)) {
            return GR_GRAMMAR_NO;
        }
        stack_set *to = from == &g->scratch[0] ? &g->scratch[1] : &g->scratch[0];
        advance(g, from, to, cut->value);
        from = to;
        if (g->exhausted || (from->n == 0 && !from->complete)) {
            break;
        }
    }
    *set = from;
    if (g->exhausted) {
        return GR_GRAMMAR_EXHAUSTED;
    }
    if (n == 0 || (from->n == 0 && !from->complete) || (cut->missing > 0 && !may_continue(g, from, cut))) {
        return GR_GRAMMAR_NO;
    }
    return GR_GRAMMAR_YES;
}

gr_grammar_answer gr_grammar_accepts(gr_grammar *g, const char *bytes, size_t n) {
    const stack_set *set;
    partial cut;
    uint32_t mark = g->n_nodes;
    gr_grammar_answer answer = read_bytes(g, bytes, n, &set, &cut);
    forget_from(g, mark);
    return answer;
}

gr_grammar_answer gr_grammar_take(gr_grammar *g, const char *bytes, size_t n) {
    const stack_set *set;
    partial cut;
    uint32_t mark = g->n_nodes;
    gr_grammar_answer answer = read_bytes(g, bytes, n, &set, &cut);
    if (answer != GR_GRAMMAR_YES) {
        forget_from(g, mark);
        return answer;
    }
    if (set != &g->now) {
        g->now = *set;
    }
    g->cut = cut;
    g->work = 0;
    return answer;
}

bool gr_grammar_complete(const gr_grammar *g) {
    return g->now.complete && g->cut.missing == 0;
}

int gr_grammar_create(gr_grammar **out, const char *text, graft_error *err) {
    gr_rules rules;
    int rc = gr_rules_parse(&rules, text, err);
    if (rc) {
        return rc;
    }
    gr_grammar *g = gr_zalloc(sizeof *g);
    if (!g) {
        gr_rules_finish(&rules);
        return gr_fail_memory(err, sizeof *g);
    }
    g->rules = rules;
    g->buckets = gr_calloc(BUCKETS, sizeof *g->buckets);
    if (!g->buckets || !grow(g)) {
        gr_grammar_free(g);
        return gr_fail_memory(err, BUCKETS * sizeof *g->buckets);
    }
    memset(g->nodes, 0, sizeof *g->nodes);
    g->n_nodes = 1;
    begin_set(g, &g->now);
    /* A place that refers to the root rule does not exist in the grammar, so unfold its alternatives here. */
    for (uint32_t at = g->rules.start[g->rules.root];; at++) {
        add(g, &g->now, stack_of(g, at, EMPTY));
        while (!gr_element_ends(&g->rules.elements[at])) {
            at++;
        }
        if (g->rules.elements[at].kind == GR_ELEMENT_END) {
            break;
        }
    }
    if (g->exhausted) {
        gr_grammar_free(g);
        return gr_fail(err, GRAFT_E_BAD_GRAMMAR, "grammar: more than %d ways to begin", GR_GRAMMAR_MAX_STACKS);
    }
    *out = g;
    return 0;
}

void gr_grammar_free(gr_grammar *g) {
    if (g) {
        gr_rules_finish(&g->rules);
        gr_free(g->nodes);
        gr_free(g->todo);
        gr_free(g->buckets);
        gr_free(g);
    }
}
