/* graft doctor: whether all that graft needs is in order, and what to do where it is not. The checks are in doctor_*.c. */
#include "doctor.h"

#include <string.h>

static const char *const states[] = {"ok", "warn", "fail"};

static void print_line(const char *name, doctor_state state, const char *text, const char *fix) {
    gr_buffer line;
    gr_buffer_init(&line, 1 << 16);
    cli_clean(&line, text, strlen(text), false);
    cli_buffer_check(&line);
    printf("%-5s %-16s %s\n", states[state], name, line.data ? line.data : "");
    if (fix) {
        printf("%-22s -> %s\n", "", fix);
    }
    fflush(stdout);
    gr_buffer_finish(&line);
}

void doctor_say(doctor *d, doctor_state state, const char *name, const char *fix, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_progress_end();
    d->n[state]++;
    if (!cli_json()) {
        print_line(name, state, text, fix);
        return;
    }
    json_t *check = cli_json_object();
    cli_json_set(check, "name", cli_json_string(name));
    cli_json_set(check, "state", cli_json_string(states[state]));
    cli_json_set(check, "text", cli_json_string(text));
    cli_json_set(check, "fix", cli_json_string(fix));
    cli_json_append(d->checks, check);
}

static int parse(doctor *d, int argc, char **argv) {
    const cli_option options[] = {
        {"quick", 0, NULL, "do not open the model", cli_take_flag, &d->quick, 0, 0},
    };
    const cli_command command = {
        .usage = "graft doctor [-m MODEL] [--quick] [options]",
        .about = "Looks at the machine, the settings, the model (which is opened and tested, unless --quick), "
                 "the registry and the files of\n"
                 "every registered adapter, the disk, the key, TLS, and the server or the port where one would listen. "
                 "Changes nothing.\n"
                 "Each line is ok, warn (it works, but) or fail, with what to do about it. "
                 "What a system does not tell is \"unknown\".",
        .examples = "  graft doctor\n"
                    "  graft doctor --quick --json\n"
                    "\n"
                    "--json: {\"checks\":[{\"name\",\"state\" (ok, warn, fail),\"text\",\"fix\" (or null)}...],\"ok\","
                    "\"warn\",\"fail\"}\n",
        .failures = "at least one line is fail",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &d->set,
        .uses = CLI_SET_MODEL | CLI_SET(APPLY) | CLI_SET(REGISTRY) | CLI_SET(REGISTRY_WAIT_MS) | CLI_SET(HOST) | CLI_SET(PORT) |
                CLI_SET(TLS_CERT) | CLI_SET(TLS_KEY) | CLI_SET_REMOTE,
        .bad_settings = &d->bad_settings,
    };
    return cli_parse(&command, argc, argv, NULL);
}

static void check_settings(doctor *d) {
    if (d->bad_settings.code) {
        doctor_say(d, DOCTOR_FAIL, "settings", "correct it; `graft config` shows all settings and what they allow", "%s",
                   d->bad_settings.message);
    } else if (d->set.file) {
        doctor_say(d, DOCTOR_OK, "settings", NULL, "%.*s", CLI_PATH_SHOWN, d->set.file);
    } else {
        doctor_say(d, DOCTOR_OK, "settings", NULL, "no file; `graft config` shows what is in force");
    }
}

static void check_versions(doctor *d) {
    bool same = strcmp(graft_version(), GRAFT_VERSION) == 0;
    doctor_say(d, same ? DOCTOR_OK : DOCTOR_WARN, "graft",
               same ? NULL : "the command and libgraft are of different installations",
               "%s, libgraft %s", GRAFT_VERSION, graft_version());
    doctor_say(d, DOCTOR_OK, "libllama", NULL, "%s", *graft_llama_version() ? graft_llama_version() : "unknown");
}

static void sum_up(doctor *d) {
    if (!cli_json()) {
        printf("\n%zu ok, %zu warn, %zu fail\n", d->n[DOCTOR_OK], d->n[DOCTOR_WARN], d->n[DOCTOR_FAIL]);
        return;
    }
    json_t *o = cli_json_object();
    cli_json_set(o, "checks", d->checks);
    for (size_t i = 0; i < CLI_COUNT(states); i++) {
        cli_json_set(o, states[i], cli_json_integer((int64_t)d->n[i]));
    }
    cli_json_print(o);
}

int cmd_doctor(int argc, char **argv) {
    doctor d = {.set = cli_settings_default()};
    int status = parse(&d, argc, argv);
    if (status != CLI_GO) {
        return status;
    }
    d.checks = cli_json() ? cli_json_array() : NULL;
    check_versions(&d);
    doctor_machine(&d);
    check_settings(&d);
    doctor_model(&d);
    doctor_registry(&d);
    doctor_key(&d);
    doctor_tls(&d);
    doctor_server(&d);
    sum_up(&d);
    return d.n[DOCTOR_FAIL] ? CLI_FAILED : CLI_OK;
}
