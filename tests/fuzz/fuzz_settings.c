/*
 * A settings file. The input is the file. What the command keeps until it ends (cli_keep) is given
 * back after each input here.
 */
#include "fuzz.h"

#include "base/memory.h"
#include "cli.h"

static char *kept[4 * CLI_N_SETTINGS];
static size_t n_kept;

const char *cli_keep(char *text) {
    FUZZ_REQUIRE(n_kept < sizeof kept / sizeof *kept);
    return kept[n_kept++] = text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t held = gr_memory_blocks();
    cli_settings s = cli_settings_default();
    graft_error err = {0};
    int code = cli_settings_read_text(&s, "/folder/graft.ini", (const char *)data, size, &err);
    if (code) {
        FUZZ_REQUIRE(code == GRAFT_E_BAD_SETTING);
        fuzz_check_error(code, &err);
    } else {
        FUZZ_REQUIRE(s.port >= 0 && s.port <= 65535 && s.slots >= 0 && s.batch > 0);
    }
    while (n_kept > 0) {
        gr_free(kept[--n_kept]);
    }
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}
