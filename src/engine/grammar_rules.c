/*
 * Recursive descent, one function per syntactic level. The body of the rule being read lies in `scratch`; it moves to
 * `elements` when it is complete, so that groups and repetitions inside it, which become rules of their own, come to
 * lie before it.
 */
#include "grammar_rules.h"

#include "base/memory.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

#define UNDEFINED UINT32_MAX
#define HASH_SIZE 8192 /* more than GR_GRAMMAR_MAX_RULES, a power of two */

typedef struct name {
    const char *text;
    size_t length;
    uint32_t rule; /* UNDEFINED: free slot */
} name;

typedef struct parser {
    gr_rules *rules;
    const char *text, *at;
    gr_element *scratch;
    uint32_t n_scratch;
    name *names; /* hash table with linear probing */
    graft_error *err;
    int code; /* first error */
} parser;

/* ---- errors and room ---------------------------------------------------------------------------------- */

static bool fail(parser *p, const char *what) {
    if (p->code == 0) {
        int line = 1;
        for (const char *c = p->text; c < p->at; c++) {
            line += *c == '\n';
        }
        char quoted[GR_QUOTE_SIZE];
        size_t rest = strlen(p->at);
        p->code = gr_fail(p->err, GRAFT_E_BAD_GRAMMAR, "grammar, line %d: %s at %s", line, what,
                          gr_quote(quoted, p->at, rest < 24 ? rest : 24));
    }
    return false;
}

static bool push(parser *p, gr_element_kind kind, uint32_t value) {
    if (p->n_scratch == GR_GRAMMAR_MAX_ELEMENTS) {
        return fail(p, "the grammar is too large when its repetitions are written out");
    }
    p->scratch[p->n_scratch++] = (gr_element){kind, value};
    return true;
}

/* Copies scratch[from..from+n) to the end of the elements. */
static bool emit(parser *p, const gr_element *from, uint32_t n) {
    gr_rules *r = p->rules;
    if (n > GR_GRAMMAR_MAX_ELEMENTS - r->n_elements) {
        return fail(p, "the grammar is too large when its repetitions are written out");
    }
    memcpy(r->elements + r->n_elements, from, n * sizeof *from);
    r->n_elements += n;
    return true;
}

static bool emit_one(parser *p, gr_element_kind kind, uint32_t value) {
    gr_element e = {kind, value};
    return emit(p, &e, 1);
}

static bool new_rule(parser *p, uint32_t *id) {
    if (p->rules->n_rules == GR_GRAMMAR_MAX_RULES) {
        return fail(p, "too many rules, groups and repetitions");
    }
    *id = p->rules->n_rules++;
    p->rules->start[*id] = UNDEFINED;
    return true;
}

/* ---- words -------------------------------------------------------------------------------------------- */

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
}

static void skip_space(parser *p, bool newlines) {
    for (;; p->at++) {
        if (*p->at == '#') {
            p->at += strcspn(p->at, "\r\n");
        }
        if (*p->at != ' ' && *p->at != '\t' && !(newlines && (*p->at == '\r' || *p->at == '\n'))) {
            return;
        }
    }
}

static size_t name_length(const char *s) {
    size_t n = 0;
    while (is_name_char(s[n])) {
        n++;
    }
    return n;
}

/* The id of the named rule, which need not be defined yet. */
static bool rule_by_name(parser *p, const char *text, size_t length, uint32_t *id) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    }
    name *slot;
    for (;; hash++) {
        slot = &p->names[hash & (HASH_SIZE - 1)];
        if (slot->rule == UNDEFINED) {
            break;
        }
        if (slot->length == length && memcmp(slot->text, text, length) == 0) {
            *id = slot->rule;
            return true;
        }
    }
    if (!new_rule(p, id)) {
        return false;
    }
    *slot = (name){text, length, *id};
    return true;
}

static bool parse_hex(parser *p, int digits, uint32_t *out) {
    uint32_t value = 0;
    p->at += 2;
    for (int i = 0; i < digits; i++, p->at++) {
        char c = *p->at;
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16) {
            return fail(p, "expected a hexadecimal digit");
        }
        value = value << 4 | digit;
    }
    *out = value;
    return value <= 0x10FFFF || fail(p, "no such character (above U+10FFFF)");
}

static uint32_t decode(const char *s, size_t width) {
    const unsigned char *u = (const unsigned char *)s;
    uint32_t c = width == 1 ? u[0] : u[0] & (0xFFu >> (width + 1));
    for (size_t i = 1; i < width; i++) {
        c = c << 6 | (u[i] & 0x3Fu);
    }
    return c;
}

static bool parse_char(parser *p, uint32_t *out) {
    if (*p->at == '\0') {
        return fail(p, "unexpected end");
    }
    if (*p->at != '\\') {
        size_t width = gr_utf8_char(p->at, strnlen(p->at, 4));
        *out = decode(p->at, width);
        p->at += width;
        return true;
    }
    switch (p->at[1]) {
    case 'x': return parse_hex(p, 2, out);
    case 'u': return parse_hex(p, 4, out);
    case 'U': return parse_hex(p, 8, out);
    case 't': *out = '\t'; break;
    case 'r': *out = '\r'; break;
    case 'n': *out = '\n'; break;
    case '\\': case '"': case '[': case ']': case '-': *out = (unsigned char)p->at[1]; break;
    default: return fail(p, "unknown escape");
    }
    p->at += 2;
    return true;
}

static bool parse_number(parser *p, uint32_t *out) {
    if (*p->at < '0' || *p->at > '9') {
        return fail(p, "expected a number");
    }
    uint32_t value = 0;
    for (; *p->at >= '0' && *p->at <= '9'; p->at++) {
        value = value * 10 + (uint32_t)(*p->at - '0');
        if (value > GR_GRAMMAR_MAX_REPEAT) {
            return fail(p, "a repetition above 2000");
        }
    }
    *out = value;
    return true;
}

/* ---- classes ------------------------------------------------------------------------------------------ */

static int range_order(const void *a, const void *b) {
    const gr_char_range *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* Sorts and joins the class's ranges, the last ones in the array. */
static void normalise(gr_rules *r, gr_char_class *c) {
    gr_char_range *range = r->ranges + c->first;
    qsort(range, c->n, sizeof *range, range_order);
    uint32_t kept = 0;
    for (uint32_t i = 1; i < c->n; i++) {
        if (range[i].low <= range[kept].high + 1) {
            range[kept].high = range[i].high > range[kept].high ? range[i].high : range[kept].high;
        } else {
            range[++kept] = range[i];
        }
    }
    c->n = c->n ? kept + 1 : 0;
    r->n_ranges = c->first + c->n;
}

static bool add_range(parser *p) {
    gr_rules *r = p->rules;
    gr_char_range range;
    if (r->n_ranges == GR_GRAMMAR_MAX_BYTES) {
        return fail(p, "too many character ranges");
    }
    if (!parse_char(p, &range.low)) {
        return false;
    }
    range.high = range.low;
    if (p->at[0] == '-' && p->at[1] != ']') {
        p->at++;
        if (!parse_char(p, &range.high)) {
            return false;
        }
    }
    if (range.low > range.high) {
        return fail(p, "a character range that runs backwards");
    }
    r->ranges[r->n_ranges++] = range;
    return true;
}

static bool push_class(parser *p, gr_char_class c) {
    gr_rules *r = p->rules;
    normalise(r, &c);
    if (r->n_classes == GR_GRAMMAR_MAX_ELEMENTS) {
        return fail(p, "too many character classes");
    }
    r->classes[r->n_classes++] = c;
    return push(p, GR_ELEMENT_CLASS, r->n_classes - 1);
}

static bool parse_class(parser *p) {
    gr_char_class c = {false, p->rules->n_ranges, 0};
    p->at++;
    if (*p->at == '^') {
        c.negated = true;
        p->at++;
    }
    while (*p->at != ']') {
        if (!add_range(p)) {
            return false;
        }
        c.n++;
    }
    if (c.n == 0) {
        return fail(p, "an empty character class");
    }
    p->at++;
    return push_class(p, c);
}

static bool parse_literal(parser *p) {
    p->at++;
    while (*p->at != '"') {
        uint32_t c;
        if (!parse_char(p, &c) || !push(p, GR_ELEMENT_CHAR, c)) {
            return false;
        }
    }
    p->at++;
    return true;
}

/* ---- repetitions -------------------------------------------------------------------------------------- */

/* x{m,} becomes x (m times) R with R ::= x R | nothing. x{m,n} becomes x (m times) R1 with
 * R1 ::= x R2 | nothing, and so on (n-m rules). `x` is scratch[from..]. */
static bool repeat(parser *p, uint32_t from, uint32_t min, uint32_t max, bool unbounded) {
    uint32_t length = p->n_scratch - from;
    uint32_t n_rules = unbounded ? 1 : max - min, last = UNDEFINED;
    for (uint32_t i = 0; i < n_rules; i++) {
        uint32_t id;
        if (!new_rule(p, &id)) {
            return false;
        }
        p->rules->start[id] = p->rules->n_elements;
        uint32_t next = unbounded ? id : last;
        if (!emit(p, p->scratch + from, length) ||
            (next != UNDEFINED && !emit_one(p, GR_ELEMENT_RULE, next)) ||
            !emit_one(p, GR_ELEMENT_ALT, 0) || !emit_one(p, GR_ELEMENT_END, 0)) {
            return false;
        }
        last = id;
    }
    for (uint32_t i = 1; i < min; i++) {
        for (uint32_t j = 0; j < length; j++) {
            gr_element e = p->scratch[from + j];
            if (!push(p, e.kind, e.value)) {
                return false;
            }
        }
    }
    if (min == 0) {
        p->n_scratch = from;
    }
    return last == UNDEFINED || push(p, GR_ELEMENT_RULE, last);
}

static bool parse_braces(parser *p, uint32_t from, bool nested) {
    uint32_t min, max;
    bool unbounded = false;
    p->at++;
    skip_space(p, nested);
    if (!parse_number(p, &min)) {
        return false;
    }
    max = min;
    skip_space(p, nested);
    if (*p->at == ',') {
        p->at++;
        skip_space(p, nested);
        unbounded = *p->at == '}';
        if (!unbounded && !parse_number(p, &max)) {
            return false;
        }
        skip_space(p, nested);
    }
    if (*p->at != '}') {
        return fail(p, "expected }");
    }
    if (!unbounded && max < min) {
        return fail(p, "a repetition whose most is below its least");
    }
    p->at++;
    return repeat(p, from, min, max, unbounded);
}

/* ---- rules -------------------------------------------------------------------------------------------- */

static bool parse_alternatives(parser *p, uint32_t id, int depth);

static bool parse_group(parser *p, int depth) {
    uint32_t id;
    if (depth == GR_GRAMMAR_MAX_DEPTH) {
        return fail(p, "nested too deeply");
    }
    p->at++;
    skip_space(p, true);
    if (!new_rule(p, &id) || !parse_alternatives(p, id, depth + 1)) {
        return false;
    }
    if (*p->at != ')') {
        return fail(p, "expected )");
    }
    p->at++;
    return push(p, GR_ELEMENT_RULE, id);
}

static bool parse_reference(parser *p) {
    uint32_t id;
    size_t length = name_length(p->at);
    if (!rule_by_name(p, p->at, length, &id)) {
        return false;
    }
    p->at += length;
    return push(p, GR_ELEMENT_RULE, id);
}

static bool parse_repetition(parser *p, uint32_t from, bool nested) {
    if (from == p->n_scratch) {
        return fail(p, "nothing to repeat");
    }
    switch (*p->at) {
    case '*': p->at++; return repeat(p, from, 0, 0, true);
    case '+': p->at++; return repeat(p, from, 1, 1, true);
    case '?': p->at++; return repeat(p, from, 0, 1, false);
    default: return parse_braces(p, from, nested);
    }
}

static bool parse_item(parser *p, uint32_t *from, int depth, bool *end) {
    char c = *p->at;
    if (c != '\0' && strchr("*+?{", c)) {
        return parse_repetition(p, *from, depth > 0);
    }
    *from = p->n_scratch;
    switch (c) {
    case '"': return parse_literal(p);
    case '[': return parse_class(p);
    case '(': return parse_group(p, depth);
    case '.': p->at++; return push_class(p, (gr_char_class){true, p->rules->n_ranges, 0});
    case '<': case '!': return fail(p, "token references are not supported");
    default:
        if (is_name_char(c)) {
            return parse_reference(p);
        }
        *end = true;
        return true;
    }
}

static bool parse_sequence(parser *p, int depth) {
    uint32_t from = p->n_scratch;
    for (bool end = false; !end; skip_space(p, depth > 0)) {
        if (!parse_item(p, &from, depth, &end)) {
            return false;
        }
    }
    return true;
}

static bool parse_alternatives(parser *p, uint32_t id, int depth) {
    uint32_t base = p->n_scratch;
    if (!parse_sequence(p, depth)) {
        return false;
    }
    while (*p->at == '|') {
        p->at++;
        skip_space(p, true);
        if (!push(p, GR_ELEMENT_ALT, 0) || !parse_sequence(p, depth)) {
            return false;
        }
    }
    if (!push(p, GR_ELEMENT_END, 0)) {
        return false;
    }
    p->rules->start[id] = p->rules->n_elements;
    bool ok = emit(p, p->scratch + base, p->n_scratch - base);
    p->n_scratch = base;
    return ok;
}

static bool parse_rule(parser *p) {
    uint32_t id;
    size_t length = name_length(p->at);
    if (length == 0) {
        return fail(p, "expected a rule's name");
    }
    if (!rule_by_name(p, p->at, length, &id)) {
        return false;
    }
    if (p->rules->start[id] != UNDEFINED) {
        return fail(p, "a rule that is defined twice");
    }
    p->at += length;
    skip_space(p, false);
    if (strncmp(p->at, "::=", 3) != 0) {
        return fail(p, "expected ::=");
    }
    p->at += 3;
    skip_space(p, true);
    if (!parse_alternatives(p, id, 0)) {
        return false;
    }
    if (*p->at != '\0' && *p->at != '\r' && *p->at != '\n') {
        return fail(p, "expected the end of the line");
    }
    skip_space(p, true);
    return true;
}

/* ---- checks of the whole ------------------------------------------------------------------------------ */

static bool check_defined(parser *p) {
    bool has_root = false;
    for (size_t i = 0; i < HASH_SIZE; i++) {
        const name *n = &p->names[i];
        if (n->rule == UNDEFINED) {
            continue;
        }
        if (p->rules->start[n->rule] == UNDEFINED) {
            p->at = n->text;
            return fail(p, "a rule that is not defined");
        }
        if (n->length == 4 && memcmp(n->text, "root", 4) == 0) {
            p->rules->root = n->rule;
            has_root = true;
        }
    }
    return has_root || fail(p, "no rule named root");
}

/* Whether some alternative of the rule consists of rules marked in `can_be_empty` only. */
static bool derives_empty(const gr_rules *r, uint32_t rule, const bool *can_be_empty) {
    bool all = true;
    for (const gr_element *e = r->elements + r->start[rule];; e++) {
        if (gr_element_ends(e)) {
            if (all) {
                return true;
            }
            if (e->kind == GR_ELEMENT_END) {
                return false;
            }
            all = true;
        } else {
            all = all && e->kind == GR_ELEMENT_RULE && can_be_empty[e->value];
        }
    }
}

/* Whether the rule can begin with a rule that is still `open`. */
static bool begins_with_open(const gr_rules *r, uint32_t rule, const bool *can_be_empty, const bool *open) {
    bool leftmost = true;
    for (const gr_element *e = r->elements + r->start[rule]; e->kind != GR_ELEMENT_END; e++) {
        if (e->kind == GR_ELEMENT_ALT) {
            leftmost = true;
        } else if (leftmost && e->kind == GR_ELEMENT_RULE) {
            if (open[e->value]) {
                return true;
            }
            leftmost = can_be_empty[e->value];
        } else {
            leftmost = false;
        }
    }
    return false;
}

/* Left recursion would let the matcher unfold for ever. A rule is closed once all rules that it can begin with are;
 * what never closes is part of a cycle or leads into one. */
static bool check_left_recursion(parser *p) {
    const gr_rules *r = p->rules;
    bool *can_be_empty = gr_calloc(r->n_rules, sizeof *can_be_empty);
    bool *open = gr_calloc(r->n_rules, sizeof *open);
    if (!can_be_empty || !open) {
        gr_free(can_be_empty);
        gr_free(open);
        p->code = gr_fail_memory(p->err, r->n_rules);
        return false;
    }
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < r->n_rules; i++) {
            if (!can_be_empty[i] && derives_empty(r, i, can_be_empty)) {
                can_be_empty[i] = changed = true;
            }
        }
    }
    memset(open, 1, r->n_rules);
    uint32_t n_open = r->n_rules;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < r->n_rules; i++) {
            if (open[i] && !begins_with_open(r, i, can_be_empty, open)) {
                open[i] = false;
                changed = true;
                n_open--;
            }
        }
    }
    gr_free(can_be_empty);
    gr_free(open);
    p->at = p->text;
    return n_open == 0 || fail(p, "a rule that begins with itself (left recursion) in the grammar that begins");
}

static bool parse(parser *p) {
    skip_space(p, true);
    while (*p->at) {
        if (!parse_rule(p)) {
            return false;
        }
    }
    return check_defined(p) && check_left_recursion(p);
}

/* Rules mostly need a small part of the limits; give the rest back. */
static void *shrink(void *block, size_t size) {
    void *smaller = gr_realloc(block, size ? size : 1);
    return smaller ? smaller : block;
}

int gr_rules_parse(gr_rules *out, const char *text, graft_error *err) {
    size_t length = strlen(text);
    if (length > GR_GRAMMAR_MAX_BYTES) {
        return gr_fail(err, GRAFT_E_BAD_GRAMMAR, "grammar: %zu bytes, at most %zu are allowed", length,
                       GR_GRAMMAR_MAX_BYTES);
    }
    if (!gr_utf8_valid(text, length)) {
        return gr_fail(err, GRAFT_E_BAD_GRAMMAR, "grammar: not valid UTF-8");
    }
    gr_rules r = {0};
    parser p = {.rules = &r, .text = text, .at = text, .err = err};
    r.elements = gr_calloc(GR_GRAMMAR_MAX_ELEMENTS, sizeof *r.elements);
    r.start = gr_calloc(GR_GRAMMAR_MAX_RULES, sizeof *r.start);
    r.classes = gr_calloc(GR_GRAMMAR_MAX_ELEMENTS, sizeof *r.classes);
    r.ranges = gr_calloc(GR_GRAMMAR_MAX_BYTES, sizeof *r.ranges);
    p.scratch = gr_calloc(GR_GRAMMAR_MAX_ELEMENTS, sizeof *p.scratch);
    p.names = gr_calloc(HASH_SIZE, sizeof *p.names);
    if (!r.elements || !r.start || !r.classes || !r.ranges || !p.scratch || !p.names) {
        p.code = gr_fail_memory(err, GR_GRAMMAR_MAX_ELEMENTS * sizeof(gr_element));
    } else {
        for (size_t i = 0; i < HASH_SIZE; i++) {
            p.names[i].rule = UNDEFINED;
        }
        parse(&p);
    }
    gr_free(p.names);
    gr_free(p.scratch);
    if (p.code) {
        gr_rules_finish(&r);
        return p.code;
    }
    r.elements = shrink(r.elements, r.n_elements * sizeof *r.elements);
    r.start = shrink(r.start, r.n_rules * sizeof *r.start);
    r.classes = shrink(r.classes, r.n_classes * sizeof *r.classes);
    r.ranges = shrink(r.ranges, r.n_ranges * sizeof *r.ranges);
    *out = r;
    return 0;
}

void gr_rules_finish(gr_rules *r) {
    gr_free(r->elements);
    gr_free(r->start);
    gr_free(r->classes);
    gr_free(r->ranges);
    memset(r, 0, sizeof *r);
}
