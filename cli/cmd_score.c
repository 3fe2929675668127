/* graft score: how likely a model finds a text, token by token, and the logits behind it as a file. */
#include "cli.h"

#include "base/memory.h"

#include <errno.h>
#include <math.h>
#include <string.h>

typedef struct score {
    cli_settings set;
    cli_adapters adapters;
    const char *tokens_text, *text, *logits_path;
    int32_t *tokens;
    size_t n_tokens;
    FILE *logits;       /* open while scoring, or NULL */
    bool write_failed;
    int write_errno;
} score;

static int parse(score *s, int argc, char **argv) {
    const cli_option options[] = {
        {"adapter", 'a', "PATH[@SCALE]",
         "an adapter: a folder of PEFT or mlx-lm, a GGUF file, ollama:NAME or\n"
         "hf:ORG/NAME; several add up. Text after the last '@' is a scale\n"
         "(-100 to 100) only if it is a number",
         cli_take_adapter, &s->adapters, 0, 0},
        {"text", 0, "TEXT", "score this text", cli_take_string, &s->text, 0, 0},
        {"tokens", 0, "1,2,3", "score these token numbers", cli_take_string, &s->tokens_text, 0, 0},
        {"logits", 0, "FILE",
         "also write all logits: float32, little-endian, row-major,\n[number of tokens][vocabulary]",
         cli_take_string, &s->logits_path, 0, 0},
    };
    const cli_command command = {
        .usage = "graft score -m MODEL [-a PATH[@SCALE]]... (--text TEXT | --tokens 1,2,3) [options]",
        .about = "Prints the log-probability (natural) that the model gives each token after those before it, and\n"
                 "the perplexity, exp of minus their mean. Nothing precedes the first token: it has none. Because\n"
                 "scoring measures, adapters are kept in f32 here unless --adapter-type says otherwise.",
        .examples = "  graft score -m base.gguf --text \"The quick brown fox jumps over the lazy dog.\"\n"
                    "  graft score -m base.gguf -a projects/alder@0.5 --text \"It listens on port 7341.\" --json\n"
                    "  graft score -m base.gguf -a projects/alder --tokens 1,42,7 --kv f32 --logits out.f32\n"
                    "\n"
                    "--json: {\"tokens\":[{\"id\",\"text\",\"logprob\"}...],\"perplexity\",\"adapter\",\"adapters\"};\n"
                    "  logprob of the first token, perplexity of one token and adapter of the base are null\n",
        .failures = "the model, an adapter or the tokens were refused, or FILE could not be written",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &s->set,
        .uses = CLI_SET_MODEL | CLI_SET(CONTEXT) | CLI_SET(APPLY),
    };
    return cli_parse(&command, argc, argv, NULL);
}

static int parse_tokens(score *s) {
    cli_ints list = {0};
    char why[512];
    const cli_option o = {.name = "tokens", .target = &list, .min = 0, .max = INT32_MAX};
    if (!cli_take_ints(&o, s->tokens_text, why, sizeof why)) {
        gr_free(list.items);
        return cli_usage("--tokens: %s", why);
    }
    s->tokens = cli_alloc(list.n, sizeof *s->tokens);
    for (size_t i = 0; i < list.n; i++) {
        s->tokens[i] = list.items[i];
    }
    s->n_tokens = list.n;
    gr_free(list.items);
    return CLI_GO;
}

static int check_options(score *s) {
    if (!s->set.model) {
        return cli_usage("-m MODEL (or the setting `model`) is needed; see graft score --help");
    }
    if (!s->text == !s->tokens_text) {
        return cli_usage("either --text TEXT or --tokens 1,2,3 is needed; see graft score --help");
    }
    return s->tokens_text ? parse_tokens(s) : CLI_GO;
}

/* A token is at least a byte, and a template may add a few; so the KV cache needs no more than this. Small
 * values are raised, since backends round up anyway. */
static int context_for(const score *s) {
    enum { SPARE = 8, LEAST = 64, MOST = 1 << 20 };
    size_t n = (s->tokens ? s->n_tokens : strlen(s->text)) + SPARE;
    if (!s->tokens && n > 4096) {
        return 0; /* rather the model's own: a token is usually several bytes */
    }
    return n < LEAST ? LEAST : n > MOST ? MOST : (int)n;
}

/* On the decode thread. */
static void write_logits(const float *logits, size_t first, size_t count, int n_vocab, void *user) {
    score *s = user;
    unsigned char bytes[4096];
    size_t used = 0, n = count * (size_t)n_vocab;
    (void)first; /* they come in order */
    for (size_t i = 0; i < n && !s->write_failed; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        for (int k = 0; k < 4; k++) {
            bytes[used++] = (unsigned char)(bits >> (8 * k)); /* little-endian on every machine */
        }
        if ((used == sizeof bytes || i + 1 == n) && fwrite(bytes, 1, used, s->logits) != used) {
            s->write_failed = true;
            s->write_errno = errno;
        }
        used = used == sizeof bytes ? 0 : used;
    }
}

static int close_logits(score *s) {
    if (fclose(s->logits) != 0 && !s->write_failed) {
        s->write_failed = true;
        s->write_errno = errno;
    }
    s->logits = NULL;
    if (!s->write_failed) {
        return CLI_GO;
    }
    return cli_fail(GRAFT_E_IO_ERROR, "%.*s: %s", CLI_PATH_SHOWN, s->logits_path, strerror(s->write_errno));
}

/* The adapters as they were given, "a@0.5 + b", or NULL for the base. Its memory goes with *out. */
static const char *adapters_label(const score *s, gr_buffer *out) {
    gr_buffer_init(out, 1 << 20);
    for (size_t i = 0; i < s->adapters.n; i++) {
        const cli_adapter *a = &s->adapters.items[i];
        gr_buffer_printf(out, "%s%s", i ? " + " : "", a->path);
        if (a->scale != 1) {
            gr_buffer_printf(out, "@%g", (double)a->scale);
        }
    }
    cli_buffer_check(out);
    return out->data;
}

static void print_json(const score *s, const graft_score_result *result) {
    gr_buffer label;
    json_t *tokens = cli_json_array(), *o = cli_json_object();
    for (size_t i = 0; i < result->n_tokens; i++) {
        json_t *t = cli_json_object();
        cli_json_set(t, "id", cli_json_integer(result->tokens[i]));
        cli_json_set(t, "text", cli_json_string(result->pieces[i]));
        cli_json_set(t, "logprob", cli_json_number((double)result->logprobs[i]));
        cli_json_append(tokens, t);
    }
    cli_json_set(o, "tokens", tokens);
    cli_json_set(o, "perplexity", cli_json_number(result->perplexity));
    cli_json_set(o, "adapter", cli_json_string(adapters_label(s, &label)));
    cli_json_set(o, "adapters", cli_adapters_json(&s->adapters));
    cli_json_print(o);
    gr_buffer_finish(&label);
}

static void print_table(const score *s, const graft_score_result *result) {
    static const char *const heads[] = {"#", "id", "logprob", "token"};
    gr_buffer label;
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 7);
    for (size_t i = 0; i < result->n_tokens; i++) {
        char quoted[GR_QUOTE_SIZE];
        cli_table_cell(&table, "%zu", i);
        cli_table_cell(&table, "%d", (int)result->tokens[i]);
        cli_table_cell(&table, isnan(result->logprobs[i]) ? "-" : "%.4f", (double)result->logprobs[i]);
        cli_table_cell(&table, "\"%s\"", gr_quote(quoted, result->pieces[i], strlen(result->pieces[i])));
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
    const char *adapters = adapters_label(s, &label);
    printf("\nperplexity %.4f, %zu tokens, adapter: %s\n", result->perplexity, result->n_tokens,
           adapters ? adapters : "none");
    gr_buffer_finish(&label);
}

static int score_with(score *s, graft *g, const graft_adapter_use *uses) {
    graft_error err = {0};
    graft_score_result *result = NULL;
    graft_score_request request = graft_score_request_default();
    request.adapters = s->adapters.n ? uses : NULL;
    request.n_adapters = s->adapters.n;
    request.text = s->text;
    request.tokens = s->tokens;
    request.n_tokens = s->n_tokens;
    if (s->logits_path) {
        s->logits = fopen(s->logits_path, "wb");
        if (!s->logits) {
            return cli_fail(GRAFT_E_IO_ERROR, "%.*s: %s", CLI_PATH_SHOWN, s->logits_path, strerror(errno));
        }
        request.on_logits = write_logits;
        request.user = s;
    }
    int code = graft_score(&result, g, &request, &err);
    int status = code ? cli_error(&err) : CLI_GO;
    if (s->logits) {
        int closed = close_logits(s);
        status = status == CLI_GO ? closed : status;
    }
    if (status == CLI_GO) {
        (cli_json() ? print_json : print_table)(s, result);
        status = CLI_OK;
    }
    graft_score_result_free(result);
    return status;
}

static int score_all(score *s, graft *g) {
    int status = cli_adapters_load(&s->adapters, g, &s->set);
    if (status != CLI_GO) {
        return status;
    }
    graft_adapter_use *uses = cli_alloc(s->adapters.n + 1, sizeof *uses);
    for (size_t i = 0; i < s->adapters.n; i++) {
        uses[i] = (graft_adapter_use){.adapter = s->adapters.items[i].handle, .scale = s->adapters.items[i].scale};
    }
    status = score_with(s, g, uses);
    gr_free(uses);
    return status;
}

int cmd_score(int argc, char **argv) {
    score s = {.set = cli_settings_default()};
    graft *g = NULL;
    s.set.adapter_type = GRAFT_TYPE_F32;
    int status = parse(&s, argc, argv);
    if (status == CLI_GO) status = check_options(&s);
    if (status == CLI_GO) {
        s.set.slots = 1;
        s.set.context = s.set.context ? s.set.context : context_for(&s);
        status = cli_model_open(&g, &s.set, NULL);
    }
    if (status == CLI_GO) status = score_all(&s, g);
    cli_adapters_finish(&s.adapters);
    graft_close(g);
    gr_free(s.tokens);
    return status;
}
