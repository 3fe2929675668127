/* Adapters from one form to another: opening and verifying as for loading, then writing. */
#include "api.h"

#include "model/export.h"

#include <sys/stat.h>

graft_convert_options graft_convert_options_default(void) {
    return (graft_convert_options){.size = sizeof(graft_convert_options), .max_adapter_bytes = (uint64_t)4 << 30};
}

static int check(const graft_convert_options *o, graft_error *err) {
    if (!o || o->size != sizeof *o) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_adapter_convert needs options from graft_convert_options_default");
    }
    if (!o->model || !*o->model || !o->adapter || !*o->adapter || !o->out || !*o->out) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_adapter_convert needs a model, an adapter and a path to write to");
    }
    if ((unsigned)o->to > GRAFT_FORMAT_PEFT || (unsigned)o->type > GRAFT_EXPORT_F16) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option to or type: no such form or type");
    }
    return 0;
}

static int convert(const graft_convert_options *o, const gr_base_model *base, const gr_log *log, graft_error *err) {
    gr_report report;
    gr_source *source = NULL;
    gr_plan *plan = NULL;
    gr_report_init(&report);
    graft_error why;
    int rc = gr_source_open(&source, o->adapter, (gr_source_limits){o->max_adapter_bytes, NULL}, &report, &why);
    rc = rc ? gr_report_end(&report, &why, err) : gr_verify(&plan, base, source, &report, err);
    if (!rc) {
        gr_export_options options = {.to = o->to,
                                     .type = o->type,
                                     .replace = o->replace,
                                     .progress = o->progress,
                                     .progress_user = o->progress_user,
                                     .log = log};
        if (o->to == GRAFT_FORMAT_OTHER) {
            options.to = source->format == GR_SOURCE_GGUF ? GRAFT_FORMAT_PEFT : GRAFT_FORMAT_GGUF;
        }
        gr_log_warnings(log, "", &report);
        rc = gr_export(plan, o->out, &options, err);
    }
    gr_plan_free(plan);
    gr_source_close(source);
    gr_report_finish(&report);
    return rc;
}

int graft_adapter_convert(const graft_convert_options *o, graft_error *err) {
    int rc = check(o, err);
    if (rc) {
        return rc;
    }
    struct stat st, out;
    if (stat(o->model, &st) == 0 && stat(o->out, &out) == 0 && st.st_dev == out.st_dev && st.st_ino == out.st_ino) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "the adapter cannot be written over the base model");
    }
    gr_log log = {o->log, o->log_user};
    gr_base_options options = {.vocab_only = true, .log = &log};
    gr_base_model *base = NULL;
    rc = gr_base_model_open(&base, o->model, &options, err);
    rc = rc ? rc : convert(o, base, &log, err);
    gr_base_model_close(base);
    return rc;
}
