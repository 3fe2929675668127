/* JSON schema to GBNF: one rule rN for each schema within the schema. */
#include "schema.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH = 32, REFERENCES = 64, REPEAT = 1000, BYTES = 60 << 10 };

typedef struct conversion {
    gr_buffer *out;
    json_t *root;
    const char *param;
    srv_fault *f;
    int n_rules;
    struct {
        json_t *schema;
        int rule;
    } references[REFERENCES]; /* what $ref leads to, so that a schema may hold itself */
    int n_references;
} conversion;

static const char common[] =
    "ws      ::= | \" \" | \"\\n\" [ \\t]? [ \\t]? [ \\t]? [ \\t]?\n"
    "char    ::= [^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt/] | \"u\" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])\n"
    "string  ::= \"\\\"\" char* \"\\\"\" ws\n"
    "integer ::= \"-\"? (\"0\" | [1-9] [0-9]*) ws\n"
    "number  ::= \"-\"? (\"0\" | [1-9] [0-9]*) (\".\" [0-9]+)? ([eE] [-+]? [0-9]+)? ws\n"
    "boolean ::= (\"true\" | \"false\") ws\n"
    "null    ::= \"null\" ws\n"
    "value   ::= object | array | string | number | boolean | null\n"
    "object  ::= \"{\" ws (string \":\" ws value (\",\" ws string \":\" ws value)*)? \"}\" ws\n"
    "array   ::= \"[\" ws (value (\",\" ws value)*)? \"]\" ws\n";

static int convert(conversion *c, json_t *schema, int depth);

static bool refuse(conversion *c, const char *what, const char *why) {
    char quoted[GR_QUOTE_SIZE];
    return srv_fault_set(c->f, 400, "invalid_schema", c->param, "%s: schema: \"%s\" %s", c->param,
                         gr_quote(quoted, what, strlen(what)), why);
}

/* A value's JSON as a literal of the grammar. */
static bool put_literal(conversion *c, gr_buffer *b, json_t *value) {
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) {
        return refuse(c, "enum", "holds a value that cannot be written");
    }
    gr_buffer_puts(b, "\"");
    for (const char *at = text; *at; at++) {
        if (*at == '"' || *at == '\\') {
            gr_buffer_puts(b, "\\");
        }
        gr_buffer_append(b, at, 1);
    }
    gr_buffer_puts(b, "\"");
    free(text);
    return true;
}

/* A bound of lengths. *out stays if the keyword is absent. */
static bool take_bound(conversion *c, json_t *schema, const char *key, long *out) {
    json_t *v = json_object_get(schema, key);
    if (!v) {
        return true;
    }
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > REPEAT) {
        return refuse(c, key, "must be a whole number from 0 to 1000");
    }
    *out = (long)json_integer_value(v);
    return true;
}

/* {least,most}; most < 0: without an end */
static void put_repeat(gr_buffer *b, long least, long most) {
    if (most < 0) {
        gr_buffer_printf(b, "{%ld,}", least);
    } else {
        gr_buffer_printf(b, "{%ld,%ld}", least, most);
    }
}

static bool put_string(conversion *c, gr_buffer *b, json_t *schema) {
    long least = 0, most = -1;
    if (!take_bound(c, schema, "minLength", &least) || !take_bound(c, schema, "maxLength", &most)) {
        return false;
    }
    if (most >= 0 && most < least) {
        return refuse(c, "maxLength", "is less than minLength");
    }
    gr_buffer_puts(b, "\"\\\"\" ");
    if (most != 0) {
        gr_buffer_puts(b, "char");
        put_repeat(b, least, most);
    }
    gr_buffer_puts(b, " \"\\\"\" ws");
    return true;
}

static bool put_array(conversion *c, gr_buffer *b, json_t *schema, int depth) {
    json_t *items = json_object_get(schema, "items");
    long least = 0, most = -1;
    int item = items ? convert(c, items, depth) : -1;
    char name[24];
    if ((items && item < 0) || !take_bound(c, schema, "minItems", &least) || !take_bound(c, schema, "maxItems", &most)) {
        return false;
    }
    if (most >= 0 && most < least) {
        return refuse(c, "maxItems", "is less than minItems");
    }
    if (items) {
        snprintf(name, sizeof name, "r%d", item);
    } else {
        snprintf(name, sizeof name, "value");
    }
    gr_buffer_puts(b, "\"[\" ws ");
    if (most != 0) {
        gr_buffer_printf(b, "(%s (\",\" ws %s)", name, name);
        put_repeat(b, least > 0 ? least - 1 : 0, most > 0 ? most - 1 : -1);
        gr_buffer_puts(b, least > 0 ? ") " : ")? ");
    }
    gr_buffer_puts(b, "\"]\" ws");
    return true;
}

/* The names in `required` as an object's keys, so that looking one up costs nothing; NULL with the fault set. */
static json_t *take_required(conversion *c, json_t *schema) {
    json_t *list = json_object_get(schema, "required"), *properties = json_object_get(schema, "properties");
    json_t *set = json_object();
    for (size_t i = 0; set && i < json_array_size(list); i++) {
        const char *key = json_string_value(json_array_get(list, i));
        bool known = key && json_object_get(properties, key);
        if (!known || json_object_get(set, key) || json_object_set_new(set, key, json_true()) != 0) {
            refuse(c, "required", known ? "names one twice" : "names what is not among the properties");
            json_decref(set);
            return NULL;
        }
    }
    if (!set) {
        refuse(c, "required", "is too large");
    }
    return set;
}

static void put_property(gr_buffer *out, int rule, int i, int n, const char *pair, bool required) {
    char then[32] = "", without[32] = ""; /* what follows, if anything does */
    if (i + 1 < n) {
        snprintf(then, sizeof then, "r%d-%d-c", rule, i + 1);
        snprintf(without, sizeof without, "r%d-%d", rule, i + 1);
    }
    gr_buffer_printf(out, "r%d-%d ::= %s%s%s %s\n", rule, i, required ? "" : without, required ? "" : " | ", pair, then);
    gr_buffer_printf(out, "r%d-%d-c ::= (\",\" ws %s)%s %s\n", rule, i, pair, required ? "" : "?", then);
}

/*
 * Commas stand between properties that are there, and optional ones may not be: two rules for each position, rN-i while
 * nothing was written yet and rN-i-c after something was.
 */
static bool put_properties(conversion *c, json_t *schema, json_t *required, int rule, int depth) {
    json_t *properties = json_object_get(schema, "properties"), *value;
    const char *key;
    int i = 0, n = (int)json_object_size(properties);
    json_object_foreach(properties, key, value) {
        int id = convert(c, value, depth);
        bool good = id >= 0;
        gr_buffer pair;
        json_t *name = json_string(key);
        gr_buffer_init(&pair, BYTES);
        good = good && name && put_literal(c, &pair, name);
        gr_buffer_printf(&pair, " ws \":\" ws r%d", id);
        if (good) {
            put_property(c->out, rule, i, n, pair.data, json_object_get(required, key) != NULL);
        }
        good = good && !pair.failed;
        gr_buffer_finish(&pair);
        json_decref(name);
        if (!good) {
            return c->f->status ? false : refuse(c, "properties", "are too large");
        }
        i++;
    }
    return true;
}

static bool put_object(conversion *c, gr_buffer *b, json_t *schema, int rule, int depth) {
    json_t *properties = json_object_get(schema, "properties"), *more = json_object_get(schema, "additionalProperties");
    if (properties && !json_is_object(properties)) {
        return refuse(c, "properties", "must be an object");
    }
    json_t *required = take_required(c, schema);
    if (required && json_object_size(properties) > 0) {
        gr_buffer_printf(b, "\"{\" ws r%d-0 \"}\" ws", rule);
        bool good = put_properties(c, schema, required, rule, depth);
        json_decref(required);
        return good;
    }
    json_decref(required);
    if (!required) {
        return false;
    }
    if (json_is_false(more)) {
        gr_buffer_puts(b, "\"{\" ws \"}\" ws");
    } else if (json_is_object(more)) {
        int id = convert(c, more, depth);
        gr_buffer_printf(b, "\"{\" ws (string \":\" ws r%d (\",\" ws string \":\" ws r%d)*)? \"}\" ws", id, id);
        return id >= 0;
    } else {
        gr_buffer_puts(b, "object");
    }
    return true;
}

static bool put_type(conversion *c, gr_buffer *b, json_t *schema, const char *type, int rule, int depth) {
    static const char *const plain[] = {"integer", "number", "boolean", "null"};
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (strcmp(type, plain[i]) == 0) {
            gr_buffer_puts(b, type);
            return true;
        }
    }
    if (strcmp(type, "string") == 0) {
        return put_string(c, b, schema);
    }
    if (strcmp(type, "array") == 0) {
        return put_array(c, b, schema, depth);
    }
    return strcmp(type, "object") == 0 ? put_object(c, b, schema, rule, depth) : refuse(c, type, "is no type");
}

static bool put_types(conversion *c, gr_buffer *b, json_t *schema, json_t *types, int rule, int depth) {
    if (json_is_string(types)) {
        return put_type(c, b, schema, json_string_value(types), rule, depth);
    }
    for (size_t i = 0; i < json_array_size(types); i++) {
        json_t *type = json_array_get(types, i);
        gr_buffer_puts(b, i ? " | " : "");
        if (!json_is_string(type) || !put_type(c, b, schema, json_string_value(type), rule, depth)) {
            return c->f->status ? false : refuse(c, "type", "must be a name or a list of names");
        }
    }
    return json_array_size(types) > 0 || refuse(c, "type", "must be a name or a list of names");
}

static bool put_enum(conversion *c, gr_buffer *b, json_t *values) {
    for (size_t i = 0; i < json_array_size(values); i++) {
        gr_buffer_puts(b, i ? " | " : "(");
        if (!put_literal(c, b, json_array_get(values, i))) {
            return false;
        }
    }
    gr_buffer_puts(b, ") ws");
    return json_array_size(values) > 0 || refuse(c, "enum", "must be a list that is not empty");
}

static bool put_choices(conversion *c, gr_buffer *b, json_t *schemas, int depth) {
    for (size_t i = 0; i < json_array_size(schemas); i++) {
        int id = convert(c, json_array_get(schemas, i), depth);
        if (id < 0) {
            return false;
        }
        gr_buffer_printf(b, "%sr%d", i ? " | " : "", id);
    }
    return json_array_size(schemas) > 0 || refuse(c, "anyOf", "must be a list that is not empty");
}

/* What "#", "#/$defs/NAME" or "#/definitions/NAME" leads to; NULL if to nothing. */
static json_t *follow(const conversion *c, const char *reference) {
    static const char *const places[] = {"$defs", "definitions"};
    char prefix[32];
    if (strcmp(reference, "#") == 0) {
        return c->root;
    }
    for (size_t i = 0; i < 2; i++) {
        int n = snprintf(prefix, sizeof prefix, "#/%s/", places[i]);
        if (strncmp(reference, prefix, (size_t)n) == 0) {
            return json_object_get(json_object_get(c->root, places[i]), reference + n);
        }
    }
    return NULL;
}

/* Past references to references; NULL if they go round. */
static json_t *follow_all(const conversion *c, const char *reference) {
    json_t *target = follow(c, reference);
    for (int i = 0; i < REFERENCES; i++) {
        const char *next = json_string_value(json_object_get(target, "$ref"));
        if (!next) {
            return target;
        }
        target = follow(c, next);
    }
    return NULL;
}

/* The rule of what a reference leads to: made at the first one. */
static int reference_rule(conversion *c, const char *reference, int depth) {
    json_t *target = follow_all(c, reference);
    for (int i = 0; i < c->n_references; i++) {
        if (c->references[i].schema == target) {
            return c->references[i].rule;
        }
    }
    if (!target || c->n_references == REFERENCES) {
        refuse(c, reference, target ? "is one reference too many" : "leads to nothing");
        return -1;
    }
    c->references[c->n_references].schema = target; /* before it is converted: it may refer to itself */
    c->references[c->n_references++].rule = c->n_rules;
    return convert(c, target, depth);
}

/* Every keyword is known: those that say nothing about values, and those that are turned into rules. */
static bool check_keys(conversion *c, json_t *schema) {
    static const char *const known[] = {"type", "properties", "required", "additionalProperties", "items", "minItems",
                                        "maxItems", "enum", "const", "anyOf", "oneOf", "$ref", "minLength", "maxLength",
                                        "$defs", "definitions", "title", "description", "default", "examples", "$schema",
                                        "$id", "$comment", "deprecated", "readOnly", "writeOnly", "format"};
    const char *key;
    json_t *value;
    json_object_foreach(schema, key, value) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
            found = found || strcmp(key, known[i]) == 0;
        }
        if (!found) {
            return refuse(c, key, "is not supported");
        }
    }
    return true;
}

static bool put_schema(conversion *c, gr_buffer *b, json_t *schema, int rule, int depth) {
    json_t *reference = json_object_get(schema, "$ref"), *type = json_object_get(schema, "type");
    json_t *values = json_object_get(schema, "enum"), *value = json_object_get(schema, "const");
    json_t *any = json_object_get(schema, "anyOf"), *one = json_object_get(schema, "oneOf");
    if (reference) {
        if (!json_is_string(reference)) {
            return refuse(c, "$ref", "must be a string");
        }
        int id = reference_rule(c, json_string_value(reference), depth);
        gr_buffer_printf(b, "r%d", id);
        return id >= 0;
    }
    if (value) {
        bool good = put_literal(c, b, value);
        gr_buffer_puts(b, " ws");
        return good;
    }
    if (values) {
        return put_enum(c, b, values);
    }
    if (any || one) {
        return put_choices(c, b, any ? any : one, depth);
    }
    if (type) {
        return put_types(c, b, schema, type, rule, depth);
    }
    if (json_object_get(schema, "properties")) {
        return put_object(c, b, schema, rule, depth);
    }
    gr_buffer_puts(b, "value");
    return true;
}

/* The number of the schema's rule, or -1 with the fault set. */
static int convert(conversion *c, json_t *schema, int depth) {
    int rule = c->n_rules++;
    gr_buffer body;
    if (c->out->length > BYTES || c->out->failed) {
        refuse(c, "schema", "is too large");
        return -1;
    }
    if (json_is_true(schema)) {
        gr_buffer_printf(c->out, "r%d ::= value\n", rule);
        return rule;
    }
    if (!json_is_object(schema) || depth >= DEPTH) {
        refuse(c, "schema", json_is_object(schema) ? "is too deep" : "holds what is no schema");
        return -1;
    }
    if (!check_keys(c, schema)) {
        return -1;
    }
    gr_buffer_init(&body, BYTES);
    bool good = put_schema(c, &body, schema, rule, depth + 1);
    if (good) {
        gr_buffer_printf(c->out, "r%d ::= %s\n", rule, body.data ? body.data : "");
        good = !body.failed && !c->out->failed;
    }
    gr_buffer_finish(&body);
    if (!good && !c->f->status) {
        refuse(c, "schema", "is too large");
    }
    return good ? rule : -1;
}

bool srv_schema_grammar(gr_buffer *out, json_t *schema, const char *param, srv_fault *f) {
    conversion c = {.out = out, .root = schema, .param = param, .f = f, .references = {{schema, 0}}, .n_references = 1};
    *f = (srv_fault){0};
    gr_buffer_puts(out, "root ::= r0\n");
    gr_buffer_puts(out, common);
    return convert(&c, schema, 0) >= 0;
}
