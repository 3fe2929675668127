/* A JSON schema turned into a grammar, and the grammar read and followed. The input is the schema. */
#include "fuzz.h"

#include "base/memory.h"
#include "engine/grammar.h"
#include "schema.h"

#include <string.h>

static void follow(const char *text) {
    gr_grammar *g;
    graft_error err = {0};
    int code = gr_grammar_create(&g, text, &err);
    if (code) {
        fuzz_check_error(code, &err); /* larger than a grammar may be */
        return;
    }
    static const char *const values[] = {"{\"a\": [1, ", "\"x\"", "-1.5e3", "null", "[true]"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        gr_grammar_take(g, values[i], strlen(values[i]));
        gr_grammar_complete(g);
    }
    gr_grammar_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t held = gr_memory_blocks();
    json_t *schema = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, NULL);
    if (!schema) {
        return 0;
    }
    gr_buffer grammar;
    srv_fault f = {0};
    gr_buffer_init(&grammar, 1 << 20);
    if (srv_schema_grammar(&grammar, schema, "schema", &f)) {
        follow(grammar.data);
    } else {
        FUZZ_REQUIRE(f.status == 400 && f.code && f.message[0]);
    }
    gr_buffer_finish(&grammar);
    json_decref(schema);
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}
