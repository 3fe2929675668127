/* adapter_config.json as mlx-lm writes it. The input is the file. */
#include "fuzz.h"

#include "base/memory.h"
#include "format/mlx_config.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t held = gr_memory_blocks();
    gr_mlx_config config;
    gr_report report;
    graft_error err = {0};
    gr_report_init(&report);
    int code = gr_mlx_config_parse(&config, (const char *)data, size, &report, &err);
    if (code) {
        fuzz_check_error(code, &err);
    } else {
        if (report.n_errors == 0) {
            FUZZ_REQUIRE(config.rank >= 1);
            FUZZ_REQUIRE(isfinite(config.scale) && config.scale != 0);
            FUZZ_REQUIRE(config.num_layers >= -1);
        }
        gr_mlx_config_finish(&config);
    }
    fuzz_check_report(&report);
    gr_report_finish(&report);
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}
