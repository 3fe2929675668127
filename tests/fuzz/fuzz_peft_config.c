/* adapter_config.json: parsed, then asked for what some modules have. The input is the file. */
#include "fuzz.h"

#include "base/memory.h"
#include "format/peft_config.h"

#include <math.h>

static const char *const paths[] = {
    "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "transformer.h.1.attn.c_attn",
    "lm_head",                         "model.embed_tokens",            "",
};

static void ask(gr_peft_config *c, bool usable) {
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        int rank = gr_peft_config_rank(c, paths[i]);
        double alpha = gr_peft_config_alpha(c, paths[i]);
        if (usable) {
            FUZZ_REQUIRE(rank >= 1);
            FUZZ_REQUIRE(isfinite(alpha) && alpha != 0);
            FUZZ_REQUIRE(isfinite(gr_peft_config_scale(c, alpha, rank)));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t held = gr_memory_blocks();
    gr_peft_config config;
    gr_report report;
    graft_error err = {0};
    gr_report_init(&report);
    int code = gr_peft_config_parse(&config, (const char *)data, size, &report, &err);
    if (code) {
        fuzz_check_error(code, &err);
    } else {
        ask(&config, report.n_errors == 0);
        gr_peft_config_report_unused(&config, &report);
        gr_peft_config_finish(&config);
    }
    fuzz_check_report(&report);
    gr_report_finish(&report);
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}
