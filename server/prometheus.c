/* Prometheus' text format. */
#include "prometheus.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void srv_spread_add(srv_spread *s, const srv_borders *b, double seconds) {
    int bucket = 0;
    double value = seconds > 0 ? seconds : 0; /* NaN too */
    while (bucket < b->n && value > b->at[bucket]) {
        bucket++;
    }
    s->buckets[bucket]++;
    s->count++;
    s->sum += value;
}

void srv_prom_family(gr_buffer *b, const char *name, const char *type, const char *help) {
    gr_buffer_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_value(gr_buffer *b, const char *text) {
    bool utf8 = gr_utf8_valid(text, strlen(text));
    for (const char *c = text; *c; c++) {
        if (*c == '\\' || *c == '"') {
            gr_buffer_append(b, "\\", 1);
        }
        if (*c == '\n') {
            gr_buffer_puts(b, "\\n");
        } else {
            gr_buffer_append(b, !utf8 && (unsigned char)*c >= 0x80 ? "?" : c, 1);
        }
    }
}

static void put_name(gr_buffer *b, const char *name, const srv_label *labels) {
    gr_buffer_puts(b, name);
    for (const srv_label *l = labels; l && l->name; l++) {
        gr_buffer_printf(b, "%s%s=\"", l == labels ? "{" : ",", l->name);
        put_value(b, l->value);
        gr_buffer_puts(b, "\"");
    }
    gr_buffer_puts(b, labels && labels->name ? "} " : " ");
}

void srv_prom_count(gr_buffer *b, const char *name, const srv_label *labels, uint64_t n) {
    put_name(b, name, labels);
    gr_buffer_printf(b, "%" PRIu64 "\n", n);
}

void srv_prom_value(gr_buffer *b, const char *name, const srv_label *labels, double value) {
    put_name(b, name, labels);
    gr_buffer_printf(b, "%.15g\n", value);
}

/* NAME_bucket, NAME_sum, NAME_count: names come from this program and are short. */
static const char *part(char out[128], const char *name, const char *suffix) {
    snprintf(out, 128, "%s_%s", name, suffix);
    return out;
}

void srv_prom_histogram(gr_buffer *b, const char *name, srv_label label, const double *borders,
                        const uint64_t *buckets, int n, double sum) {
    char full[128], le[32];
    uint64_t count = 0;
    srv_label own[2] = {label, {0}};
    for (int i = 0; i <= n; i++) {
        srv_label labels[3] = {label, {"le", le}, {0}};
        count += buckets[i];
        if (i < n) {
            snprintf(le, sizeof le, "%.9g", borders[i]);
        } else {
            snprintf(le, sizeof le, "+Inf");
        }
        srv_prom_count(b, part(full, name, "bucket"), label.name ? labels : labels + 1, count);
    }
    srv_prom_value(b, part(full, name, "sum"), own, sum);
    srv_prom_count(b, part(full, name, "count"), own, count);
}
