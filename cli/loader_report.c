/* The loader's counters, its adapters and its memory, as tables and as JSON. */
#include "loader_report.h"
#include "registry_cli.h"

#include "base/memory.h"

#include <string.h>
#include <time.h>

const char *cli_short_name(char out[CLI_SHORT_NAME_SIZE], const char *project, const char *adapter) {
    bool plain = !*adapter || strcmp(adapter, "default") == 0;
    snprintf(out, CLI_SHORT_NAME_SIZE, "%s%s%s", project, plain ? "" : "/", plain ? "" : adapter);
    return out;
}

/* ---- what is asked -------------------------------------------------------------------------------------- */

typedef struct report {
    graft_registered_list *names;
    graft_loaded_list *loaded;
    graft_metrics metrics;
    graft_memory memory;
    graft_health health;
} report;

static void report_finish(report *r) {
    graft_registered_list_free(r->names);
    graft_loaded_list_free(r->loaded);
}

static int report_take(report *out, graft *g, graft_registry *registry) {
    graft_error err = {0};
    memset(out, 0, sizeof *out);
    if (graft_registry_adapter_list(&out->names, registry, NULL, NULL, &err) != 0 ||
        graft_loaded_adapters(&out->loaded, g, &err) != 0) {
        report_finish(out);
        return cli_error(&err);
    }
    graft_get_metrics(g, &out->metrics);
    graft_memory_report(g, &out->memory);
    graft_health_check(g, &out->health);
    return CLI_GO;
}

/* The version that the name reaches or will reach; NULL if it is not in memory. */
static const graft_loaded *loaded_of(const report *r, const graft_registered *a) {
    const graft_loaded *found = NULL;
    for (size_t i = 0; i < r->loaded->n; i++) {
        const graft_loaded *l = &r->loaded->items[i];
        if (strcmp(l->project, a->project) == 0 && strcmp(l->adapter, a->adapter) == 0 && strcmp(l->state, "draining") != 0) {
            found = l;
        }
    }
    return found;
}

/* In one word: where it is, or else what is known of its files. */
static const char *state_of(const graft_registered *a, const graft_loaded *l) {
    if (l) {
        return l->state;
    }
    return a->state == GRAFT_REGISTERED_READY ? "on disk" : graft_registered_state_name(a->state);
}

/* ---- for people ----------------------------------------------------------------------------------------- */

enum { COLUMNS = 8, CELL = 2 * GRAFT_NAME_SIZE };

static void last_use(char out[CELL], const graft_registered *a, const graft_loaded *l) {
    if (l && l->leases > 0) {
        snprintf(out, CELL, "now");
    } else if (l) {
        snprintf(out, CELL, "%.1f s ago", l->idle_ms / 1000);
    } else if (a->history.last_used) {
        snprintf(out, CELL, "%.0f s ago", difftime(time(NULL), (time_t)a->history.last_used));
    } else {
        snprintf(out, CELL, "-");
    }
}

static void fill_row(char cells[COLUMNS][CELL], const graft_registered *a, const graft_loaded *l) {
    char bytes[CLI_BYTES_SIZE];
    const graft_history *h = &a->history;
    cli_short_name(cells[0], a->project, a->adapter);
    snprintf(cells[1], CELL, "%s%s", state_of(a, l), a->pinned ? ", pinned" : "");
    snprintf(cells[2], CELL, "%s", l && l->bytes ? cli_bytes(bytes, l->bytes) : "-");
    snprintf(cells[3], CELL, "%llu", (unsigned long long)h->requests);
    snprintf(cells[4], CELL, "%llu", (unsigned long long)h->loads);
    snprintf(cells[5], CELL, "%llu", (unsigned long long)h->evictions);
    snprintf(cells[6], CELL, h->loads ? "%.1f" : "-", h->loads ? h->load_ms / (double)h->loads : 0);
    last_use(cells[7], a, l);
}

/* Characters of the row that one line of the table takes, if each adapter is one. */
static size_t width_of(const char *const *heads, char (*rows)[COLUMNS][CELL], size_t n) {
    size_t all = 0;
    for (int c = 0; c < COLUMNS; c++) {
        size_t widest = strlen(heads[c]);
        for (size_t i = 0; i < n; i++) {
            size_t length = strlen(rows[i][c]);
            widest = length > widest ? length : widest;
        }
        all += widest + (c ? 2 : 0);
    }
    return all;
}

static void print_rows(const char *const *heads, char (*rows)[COLUMNS][CELL], size_t n) {
    cli_table t;
    cli_table_init(&t, COLUMNS, heads, 0xfc);
    for (size_t i = 0; i < n * COLUMNS; i++) {
        cli_table_cell(&t, "%s", rows[i / COLUMNS][i % COLUMNS]);
    }
    cli_table_print(&t, 0);
    cli_table_finish(&t);
}

/* A block for each adapter, for narrow terminals. */
static void print_blocks(const char *const *heads, char (*rows)[COLUMNS][CELL], size_t n) {
    for (size_t i = 0; i < n; i++) {
        printf("%s: %s, %s\n", rows[i][0], rows[i][1], strcmp(rows[i][2], "-") == 0 ? "not in memory" : rows[i][2]);
        printf("   ");
        for (int c = 3; c < COLUMNS; c++) {
            printf(" %s %s%s", heads[c], rows[i][c], c + 1 < COLUMNS ? "," : "\n");
        }
    }
}

static void print_adapters(const report *r) {
    static const char *const heads[COLUMNS] = {"adapter", "state", "in memory", "requests", "loads", "evictions",
                                               "ms a load", "last used"};
    char(*rows)[COLUMNS][CELL] = cli_alloc(r->names->n + 1, sizeof *rows);
    for (size_t i = 0; i < r->names->n; i++) {
        fill_row(rows[i], &r->names->items[i], loaded_of(r, &r->names->items[i]));
    }
    if (width_of(heads, rows, r->names->n) <= cli_width()) {
        print_rows(heads, rows, r->names->n);
    } else {
        print_blocks(heads, rows, r->names->n);
    }
    gr_free(rows);
}

static void part(cli_table *t, const char *what, uint64_t bytes, uint64_t limit) {
    char text[CLI_BYTES_SIZE];
    cli_table_cell(t, "%s", what);
    cli_table_cell(t, "%s", cli_bytes(text, bytes));
    if (limit) {
        cli_table_cell(t, "%.1f %%", (double)bytes * 100 / (double)limit);
    } else {
        cli_table_cell(t, "%s", "");
    }
}

static void part_if(cli_table *t, const char *what, uint64_t bytes, uint64_t limit) {
    if (bytes) {
        part(t, what, bytes, limit);
    }
}

static void print_memory(const graft_memory *m) {
    static const char *const heads[] = {"memory", "measured", "of the limit"};
    cli_table t;
    cli_table_init(&t, CLI_COUNT(heads), heads, 6);
    part(&t, "base: weights", m->weights, m->limit);
    part(&t, "base: KV cache and buffers", m->context, m->limit);
    part(&t, "adapters by name", m->resident, m->limit);
    part_if(&t, "adapters being loaded", m->loading, m->limit);
    part_if(&t, "adapters on their way out", m->draining, m->limit);
    part_if(&t, "adapters by path", m->by_path, m->limit);
    part(&t, "graft's own", m->own, m->limit);
    part(&t, "together", m->counted, m->limit);
    part(&t, "limit", m->limit, m->limit);
    if (m->process) {
        part(&t, "the whole process has", m->process, 0);
    }
    cli_table_print(&t, 0);
    cli_table_finish(&t);
}

static void counted(const char *what, uint64_t n, const char *plural, const char *after) {
    printf("%llu %s%s%s", (unsigned long long)n, what, n == 1 ? "" : plural, after);
}

static void print_totals(const report *r) {
    const graft_metrics *m = &r->metrics;
    uint64_t asked = m->hits + m->misses;
    printf("loader: ");
    counted("hit", m->hits, "s", ", ");
    counted("miss", m->misses, "es", "");
    printf(" (%.0f %% hits), ", asked ? (double)m->hits * 100 / (double)asked : 0);
    counted("load", m->loads, "s", ", ");
    counted("eviction", m->evictions, "s", ", ");
    counted("fallback", m->fallbacks, "s", "\n");
    printf("health: %s\n", graft_health_name(r->health.state));
    for (size_t i = 0; i < r->health.n_reasons; i++) {
        printf("  %s: %s\n", r->health.reasons[i].name, r->health.reasons[i].text);
    }
}

int cli_loader_print(graft *g, graft_registry *registry) {
    report r;
    int status = report_take(&r, g, registry);
    if (status == CLI_GO) {
        print_adapters(&r);
        putchar('\n');
        print_memory(&r.memory);
        putchar('\n');
        print_totals(&r);
        report_finish(&r);
    }
    return status;
}

/* ---- for scripts ---------------------------------------------------------------------------------------- */

static json_t *loaded_json(const graft_loaded *l) {
    if (!l) {
        return json_null();
    }
    json_t *o = cli_json_object();
    cli_json_set(o, "state", cli_json_string(l->state));
    cli_json_set(o, "bytes", cli_json_integer((int64_t)l->bytes));
    cli_json_set(o, "leases", cli_json_integer(l->leases));
    cli_json_set(o, "hits", cli_json_integer((int64_t)l->hits));
    cli_json_set(o, "load_ms", cli_json_number(l->load_ms));
    cli_json_set(o, "idle_ms", cli_json_number(l->idle_ms));
    return o;
}

static json_t *adapters_json(const report *r) {
    json_t *list = cli_json_array();
    for (size_t i = 0; i < r->names->n; i++) {
        const graft_registered *a = &r->names->items[i];
        json_t *o = cli_registered_json(a);
        cli_json_set(o, "loaded", loaded_json(loaded_of(r, a)));
        cli_json_append(list, o);
    }
    return list;
}

static json_t *metrics_json(const graft_metrics *m) {
    json_t *o = cli_json_object();
    cli_json_set(o, "hits", cli_json_integer((int64_t)m->hits));
    cli_json_set(o, "misses", cli_json_integer((int64_t)m->misses));
    cli_json_set(o, "loads", cli_json_integer((int64_t)m->loads));
    cli_json_set(o, "load_bytes", cli_json_integer((int64_t)m->load_bytes));
    cli_json_set(o, "evictions", cli_json_integer((int64_t)m->evictions));
    cli_json_set(o, "unloads", cli_json_integer((int64_t)m->unloads));
    cli_json_set(o, "fallbacks", cli_json_integer((int64_t)m->fallbacks));
    cli_json_set(o, "busy", cli_json_integer((int64_t)m->busy));
    return o;
}

static json_t *memory_json(const graft_memory *m) {
    const struct {
        const char *key;
        uint64_t bytes;
    } parts[] = {{"limit", m->limit}, {"machine", m->machine}, {"weights", m->weights}, {"context", m->context}, {"own", m->own},
                 {"resident", m->resident}, {"loading", m->loading}, {"draining", m->draining}, {"by_path", m->by_path},
                 {"twins", m->twins}, {"counted", m->counted}, {"process", m->process}, {"n_resident", m->n_resident},
                 {"max_adapters", m->max_adapters}};
    json_t *o = cli_json_object();
    for (size_t i = 0; i < CLI_COUNT(parts); i++) {
        cli_json_set(o, parts[i].key, cli_json_integer((int64_t)parts[i].bytes));
    }
    return o;
}

static json_t *health_json(const graft_health *h) {
    json_t *o = cli_json_object(), *reasons = cli_json_array();
    for (size_t i = 0; i < h->n_reasons; i++) {
        json_t *reason = cli_json_object();
        cli_json_set(reason, "state", cli_json_string(graft_health_name(h->reasons[i].state)));
        cli_json_set(reason, "name", cli_json_string(h->reasons[i].name));
        cli_json_set(reason, "text", cli_json_string(h->reasons[i].text));
        cli_json_append(reasons, reason);
    }
    cli_json_set(o, "state", cli_json_string(graft_health_name(h->state)));
    cli_json_set(o, "reasons", reasons);
    return o;
}

int cli_loader_json(json_t *object, graft *g, graft_registry *registry) {
    report r;
    int status = report_take(&r, g, registry);
    if (status == CLI_GO) {
        cli_json_set(object, "adapters", adapters_json(&r));
        cli_json_set(object, "loader", metrics_json(&r.metrics));
        cli_json_set(object, "memory", memory_json(&r.memory));
        cli_json_set(object, "health", health_json(&r.health));
        report_finish(&r);
    }
    return status;
}
