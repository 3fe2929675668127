/*
 * Loading an adapter while the machine fails: every allocation, every open, fstat and read in turn, once and from there on;
 * and while somebody else cuts, grows, rewrites, replaces or deletes the files between any two reads. The answer is a
 * typed error or the adapter whole; nothing is left behind, and the same load goes through afterwards.
 */
#include "format_helpers.h"
#include "make_adapter.h"
#include "system_calls.h"

#include "model/adapter.h"

#include <unistd.h>

#define GOLDEN GRAFT_TEST_DATA "/oracle/golden/"
#define WEIGHTS "adapter_model.safetensors"
#define CONFIG "adapter_config.json"

/* One of each kind that can be loaded on golden's base. */
static const char *const names[] = {"plain", "f16", "bf16", "dora", "lora-bias", "lm-head", "embed-copy", "modules-to-save",
                                    "modules-to-save-norm", "trainable-tokens", "alora"};
enum { NAMES = sizeof names / sizeof *names };

static gr_base_model *base;

/* One load, and what came of it. */
typedef struct attempt {
    const char *path;
    graft_adapter_type type;
    char generation[65];
} attempt;

static int load(void *data, graft_error *err) {
    attempt *t = data;
    gr_adapter *a = NULL;
    int code = gr_adapter_open(&a, base, t->path, t->type, UINT64_MAX, NULL, err);
    t->generation[0] = '\0';
    if (code) {
        assert_null(a);
    } else {
        memcpy(t->generation, a->generation, sizeof t->generation);
    }
    gr_adapter_release(a);
    return code;
}

static const char *path_of(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, GOLDEN "adapters/llama/%s", name);
    return path;
}

static void allocations(void **state) {
    (void)state;
    static const graft_adapter_type types[] = {GRAFT_TYPE_F16, GRAFT_TYPE_F32, GRAFT_TYPE_Q8_0};
    int fds = test_open_fds();
    for (int i = 0; i < NAMES; i++) {
        for (int t = 0; t < 3; t++) {
            torture(names[i], load, &(attempt){.path = path_of(names[i]), .type = types[t]});
        }
    }
    assert_int_equal(test_open_fds(), fds);
}

/* ---- calls that fail ------------------------------------------------------------------------------------ */

/* Strikes the 1st, 2nd, … call until a load has fewer. `passes`: the load must go through all the same. */
static void strike(const char *path, system_fault fault, bool passes, int allowed, int or_allowed) {
    graft_error err;
    attempt whole = {.path = path}, t = {.path = path};
    assert_int_equal(load(&whole, &err), 0);
    int fds = test_open_fds(), n_calls = 0;
    uint64_t blocks = gr_memory_blocks();
    for (fault.at = 1; fault.at == 1 || fault.at <= n_calls; fault.at++) {
        err = (graft_error){0};
        system_calls_arm(&fault);
        int code = load(&t, &err);
        n_calls = system_calls_disarm();
        assert_true(n_calls > 0 && n_calls < 100000);
        assert_int_equal(gr_memory_blocks(), blocks);
        assert_int_equal(test_open_fds(), fds);
        if (fault.at > n_calls) {
            break;
        }
        if (passes) {
            expect_code(path, code, 0, &err);
            assert_string_equal(t.generation, whole.generation);
        } else if (code != or_allowed) {
            expect_code(path, code, allowed, &err);
        }
    }
    assert_int_equal(load(&t, &err), 0);
    assert_string_equal(t.generation, whole.generation);
}

static void strike_all(system_fault fault, bool passes, int allowed, int or_allowed) {
    for (int i = 0; i < NAMES; i++) {
        strike(path_of(names[i]), fault, passes, allowed, or_allowed);
    }
}

static void calls_that_fail(void **state) {
    (void)state;
    for (int forever = 0; forever < 2; forever++) {
        bool f = forever;
        strike_all((system_fault){.calls = CALL_OPEN, .forever = f, .error = EIO}, false, GRAFT_E_IO_ERROR, 0);
        strike_all((system_fault){.calls = CALL_OPEN, .forever = f, .error = EMFILE}, false, GRAFT_E_IO_ERROR, 0);
        strike_all((system_fault){.calls = CALL_OPEN, .forever = f, .error = ENOMEM}, false, GRAFT_E_OUT_OF_MEMORY, 0);
        /* the folder itself, or its config */
        strike_all((system_fault){.calls = CALL_OPEN, .forever = f, .error = EACCES}, false, GRAFT_E_NOT_READABLE,
                   GRAFT_E_NOT_REGULAR_FILE);
        strike_all((system_fault){.calls = CALL_STAT, .forever = f, .error = EIO}, false, GRAFT_E_IO_ERROR, 0);
        strike_all((system_fault){.calls = CALL_STAT, .forever = f, .error = ESTALE}, false, GRAFT_E_IO_ERROR, 0);
        strike_all((system_fault){.calls = CALL_READ, .forever = f, .error = EIO}, false, GRAFT_E_IO_ERROR, 0);
        strike_all((system_fault){.calls = CALL_READ, .forever = f, .error = ESTALE}, false, GRAFT_E_IO_ERROR, 0);
        strike_all((system_fault){.calls = CALL_READ, .forever = f, .end = true}, false, GRAFT_E_CHANGED_WHILE_READING, 0);
        strike_all((system_fault){.calls = CALL_READ, .forever = f, .less = true}, true, 0, 0);
    }
}

static void calls_that_are_interrupted(void **state) {
    (void)state;
    strike_all((system_fault){.calls = CALL_OPEN, .error = EINTR}, true, 0, 0);
    strike_all((system_fault){.calls = CALL_READ, .error = EINTR}, true, 0, 0);
}

/* ---- files that change ---------------------------------------------------------------------------------- */

/* A folder whose files are put back before each load, and what somebody does to one of them meanwhile. */
typedef struct victim {
    test_dir dir, spare;
    const char *file;
    enum { CUT, EMPTY, GROW, REWRITE, REPLACE, DELETE, ACTS } act;
} victim;

static const char *const acts[] = {"cut", "emptied", "grown", "rewritten", "replaced", "deleted"};

static void copy_file(const char *from, const char *to) {
    char bytes[8192];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(in >= 0 && out >= 0);
    for (ssize_t n; (n = read(in, bytes, sizeof bytes)) > 0;) {
        assert_int_equal(write(out, bytes, (size_t)n), n);
    }
    /* long ago, so that a change now shows whatever the clock's grain */
    assert_int_equal(futimens(out, (struct timespec[2]){{.tv_sec = 1000000000}, {.tv_sec = 1000000000}}), 0);
    close(in);
    close(out);
}

static void put_back(const victim *v) {
    copy_file(GOLDEN "adapters/llama/plain/" WEIGHTS, test_path(&v->dir, WEIGHTS));
    copy_file(GOLDEN "adapters/llama/plain/" CONFIG, test_path(&v->dir, CONFIG));
    copy_file(GOLDEN "adapters/llama/f16/" WEIGHTS, test_path(&v->spare, WEIGHTS));
    copy_file(GOLDEN "adapters/llama/f16/" CONFIG, test_path(&v->spare, CONFIG));
}

static void act(void *user) {
    const victim *v = user;
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s", test_path(&v->dir, v->file));
    assert_int_equal(stat(path, &st), 0);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    switch (v->act) {
    case CUT: assert_int_equal(ftruncate(fd, st.st_size / 2), 0); break;
    case EMPTY: assert_int_equal(ftruncate(fd, 0), 0); break;
    case GROW: assert_int_equal(pwrite(fd, "  ", 2, st.st_size), 2); break;
    case REWRITE: /* at two places: a load that sees only the second change would be a mix */
        assert_int_equal(pwrite(fd, " ", 1, st.st_size / 2), 1);
        assert_int_equal(pwrite(fd, " ", 1, st.st_size - 1), 1);
        break;
    case REPLACE: assert_int_equal(rename(test_path(&v->spare, v->file), path), 0); break;
    case DELETE:
    default: assert_int_equal(unlink(path), 0); break;
    }
    close(fd);
}

/* With the change made before load's n-th call, for all n. What loads must be the files of before, or those of after. */
static void change_between(victim *v, int calls) {
    graft_error err;
    attempt t = {.path = v->dir.path}, before = t, after = t;
    put_back(v);
    assert_int_equal(load(&before, &err), 0);
    act(v);
    int code_after = load(&after, &err);
    int fds = test_open_fds(), n_calls = 1;
    for (int n = 1; n <= n_calls; n++) {
        put_back(v);
        err = (graft_error){0};
        system_calls_arm(&(system_fault){.calls = calls, .at = n, .before = act, .user = v});
        int code = load(&t, &err);
        n_calls = system_calls_disarm();
        assert_int_equal(test_open_fds(), fds);
        bool right = code == 0 ? strcmp(t.generation, before.generation) == 0 ||
                                     (code_after == 0 && strcmp(t.generation, after.generation) == 0)
                               : code == GRAFT_E_CHANGED_WHILE_READING || code == code_after;
        if (!right) {
            print_error("%s %s before call %d of %d: code %s (%s), generation %s\n", v->file, acts[v->act], n, n_calls,
                        graft_error_name(code), err.message, t.generation);
        }
        assert_true(right);
    }
}

static void files_that_change(void **state) {
    (void)state;
    static const char *const files[] = {WEIGHTS, CONFIG};
    victim v = {.dir = test_dir_make(), .spare = test_dir_make()};
    for (int f = 0; f < 2; f++) {
        for (int a = 0; a < ACTS; a++) {
            v.file = files[f];
            v.act = a;
            change_between(&v, CALL_READ);
            change_between(&v, CALL_OPEN);
            change_between(&v, CALL_STAT);
        }
    }
    test_dir_remove(&v.dir);
    test_dir_remove(&v.spare);
}

static int open_base(void **state) {
    (void)state;
    graft_error err;
    return gr_base_model_open(&base, GOLDEN "bases/llama.gguf", &(gr_base_options){0}, &err);
}

static int close_base(void **state) {
    (void)state;
    gr_base_model_close(base);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations),
        cmocka_unit_test(calls_that_fail),
        cmocka_unit_test(calls_that_are_interrupted),
        cmocka_unit_test(files_that_change),
    };
    return cmocka_run_group_tests(tests, open_base, close_base);
}
