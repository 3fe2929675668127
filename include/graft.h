/*
 * graft: many LoRA adapters over one base model.
 *
 * A `graft` is one base model, opened once through libllama, with one decode thread that owns it. A
 * `graft_adapter` is an immutable, verified set of low-rank matrices for that base, read from a PEFT folder or
 * a GGUF adapter. A request names at most a few adapters and becomes one sequence; all sequences that are
 * under way share each batch, and every row of the batch gets its own adapter's delta added to the base's
 * matrix products (or, where the host cannot reach those products, one decode per set of adapters: "grouped").
 * Text goes in, text comes out; nothing here shows a tensor, and what is not in this header is not API.
 *
 * Conventions
 *   Functions return 0 or a negative GRAFT_E_ code and take an optional `graft_error *` as their last
 *   argument; outputs are untouched on failure. Strings are UTF-8 and NUL-terminated. `free` and `close`
 *   functions accept NULL. The library never prints, never exits and never reads the environment.
 *
 * Threads
 *   Every function may be called from any thread, except that a handle must not be freed while another
 *   call is using it. Callbacks run on the decode thread: they must not block, and must not call graft
 *   functions other than graft_job_cancel.
 *
 * Lifetimes
 *   Close a graft last. An adapter that is freed while requests still use it lives on until the last of
 *   them ends. Pointers inside results and infos belong to the object they came from.
 */
#ifndef GRAFT_H
#define GRAFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GRAFT_VERSION_MAJOR 0
#define GRAFT_VERSION_MINOR 1
#define GRAFT_VERSION_PATCH 0
#define GRAFT_VERSION "0.1.0"

#if defined(__GNUC__)
#define GRAFT_API __attribute__((visibility("default")))
#else
#define GRAFT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Every error: number, name (stable; what JSON shows), HTTP status (what a server answers), meaning.
 * Numbers are never reused. docs/errors.md explains each.
 */
#define GRAFT_ERRORS(X)                                                                                     \
    /* the caller, the machine */                                                                           \
    X(-1, BAD_REQUEST, "bad_request", 400, "an argument or field is outside its range")                     \
    X(-2, OUT_OF_MEMORY, "out_of_memory", 503, "an allocation failed")                                      \
    X(-3, INTERNAL, "internal", 500, "a fault in graft itself")                                             \
    X(-4, CANCELLED, "cancelled", 499, "the request was cancelled")                                         \
    X(-5, SHUTTING_DOWN, "shutting_down", 503, "the instance is closing")                                   \
    X(-6, CONTEXT_LENGTH, "context_length", 400, "the prompt does not fit the context")                     \
    X(-7, DECODE_FAILED, "decode_failed", 500, "libllama could not evaluate the batch")                     \
    X(-8, NON_FINITE_OUTPUT, "non_finite_output", 422, "an adapter produced NaN or infinity")               \
    X(-9, BAD_GRAMMAR, "bad_grammar", 400, "the grammar is not valid GBNF")                                 \
    X(-10, NO_CHAT_TEMPLATE, "no_chat_template", 400, "the model has no chat template that graft knows")    \
    /* the base model */                                                                                    \
    X(-20, MODEL_MISSING, "model_missing", 404, "the model file does not exist")                            \
    X(-21, MODEL_INVALID, "model_invalid", 422, "libllama cannot open the model file")                      \
    X(-22, UNSUPPORTED_MODEL, "unsupported_model", 422, "adapters are not supported on this architecture")  \
    X(-23, SELF_TEST_FAILED, "self_test_failed", 500, "applying adapters by rows gave wrong results")       \
    /* files */                                                                                             \
    X(-30, ADAPTER_FILE_MISSING, "adapter_file_missing", 404, "no such file or folder")                     \
    X(-31, MISSING_FILE, "missing_file", 422, "the folder lacks a file that an adapter needs")              \
    X(-32, NOT_READABLE, "not_readable", 422, "the file cannot be opened for reading")                      \
    X(-33, NOT_REGULAR_FILE, "not_regular_file", 422, "a regular file is needed")                           \
    X(-34, IO_ERROR, "io_error", 422, "reading the file failed")                                            \
    X(-35, TOO_LARGE, "too_large", 413, "larger than the limit for adapters")                               \
    X(-36, CHANGED_WHILE_READING, "changed_while_reading", 422, "the file changed while it was read")       \
    X(-37, PICKLE_REFUSED, "pickle_refused", 415, "pickled weights can run code and are never opened")      \
    X(-38, UNSUPPORTED_FORMAT, "unsupported_format", 415, "not a safetensors or GGUF file")                 \
    X(-39, LFS_POINTER, "lfs_pointer", 415, "a Git LFS pointer instead of the file itself")                 \
    X(-40, SHARDED_UNSUPPORTED, "sharded_unsupported", 415, "sharded adapters are not supported")           \
    X(-41, NOT_AN_ADAPTER, "not_an_adapter", 422, "a model or something else, not a LoRA adapter")          \
    X(-42, CONFIG_MISSING, "config_missing", 422, "adapter_config.json is missing")                         \
    /* JSON */                                                                                              \
    X(-50, JSON_SYNTAX, "json_syntax", 422, "not well-formed JSON")                                         \
    X(-51, JSON_ENCODING, "json_encoding", 422, "not valid UTF-8")                                          \
    X(-52, JSON_TOO_DEEP, "json_too_deep", 422, "nested too deeply")                                        \
    X(-53, JSON_TOO_LARGE, "json_too_large", 422, "larger than the limit for JSON")                         \
    X(-54, JSON_DUPLICATE_KEY, "json_duplicate_key", 422, "the same key twice in one object")               \
    X(-55, BAD_TYPE, "bad_type", 422, "a value of another type is needed")                                  \
    X(-56, OUT_OF_RANGE, "out_of_range", 422, "a number outside its range")                                 \
    /* the safetensors container */                                                                         \
    X(-60, HEADER_TOO_SMALL, "header_too_small", 422, "too short to be a safetensors file")                 \
    X(-61, HEADER_LENGTH, "header_length", 422, "the header's length does not fit the file")                \
    X(-62, HEADER_TOO_LARGE, "header_too_large", 422, "the header is over the limit")                       \
    X(-63, HEADER_INVALID, "header_invalid", 422, "the header is not a JSON object")                        \
    X(-64, NO_TENSORS, "no_tensors", 422, "the file holds no tensors")                                      \
    X(-65, DUPLICATE_TENSOR, "duplicate_tensor", 422, "two tensors of one name")                            \
    X(-66, OVERLAP, "overlap", 422, "two tensors share bytes")                                              \
    X(-67, HOLE, "hole", 422, "bytes between two tensors that belong to none")                              \
    X(-68, TRAILING_BYTES, "trailing_bytes", 422, "bytes after the last tensor")                            \
    X(-69, TRUNCATED, "truncated", 422, "the file ends before its last tensor")                             \
    X(-70, BAD_OFFSETS, "bad_offsets", 422, "a tensor ends before it begins")                               \
    X(-71, OVERFLOW, "overflow", 422, "a size that does not fit 64 bits")                                   \
    X(-72, SIZE_MISMATCH, "size_mismatch", 422, "byte range and shape disagree")                            \
    X(-73, UNKNOWN_DTYPE, "unknown_dtype", 422, "an element type that safetensors does not have")           \
    X(-74, UNSUPPORTED_DTYPE, "unsupported_dtype", 422, "weights must be F32, F16 or BF16")                 \
    X(-75, MISSING_FIELD, "missing_field", 422, "a required field is absent")                               \
    X(-76, METADATA_INVALID, "metadata_invalid", 422, "__metadata__ must map strings to strings")           \
    X(-77, BAD_TENSOR_NAME, "bad_tensor_name", 422, "a tensor name that cannot be used")                    \
    X(-78, TOO_MANY_TENSORS, "too_many_tensors", 422, "more tensors than the limit")                        \
    /* adapter_config.json */                                                                               \
    X(-90, UNSUPPORTED_ADAPTER, "unsupported_adapter", 422, "uses something that graft does not apply")     \
    X(-91, BAD_RANK, "bad_rank", 422, "a rank or number of dimensions outside its range")                   \
    X(-92, BAD_ALPHA, "bad_alpha", 422, "lora_alpha must be a finite number, not 0")                        \
    X(-93, RANK_MISMATCH, "rank_mismatch", 422, "ranks disagree")                                           \
    X(-94, UNSUPPORTED_PATTERN, "unsupported_pattern", 422, "a regular expression that graft does not take") \
    X(-95, PATTERN_UNUSED, "pattern_unused", 422, "a pattern that matches no module of the adapter")        \
    X(-96, BASE_MODIFIED, "base_modified", 422, "training changed the base's weights as well")              \
    X(-97, UNKNOWN_OPTION, "unknown_option", 422, "an option that graft does not know is switched on")      \
    X(-98, WRONG_BASE, "wrong_base", 422, "made for another base model")                                    \
    /* tensors against the base */                                                                          \
    X(-110, MISSING_PAIR, "missing_pair", 422, "lora_A without lora_B, or the reverse")                     \
    X(-111, WRONG_SHAPE, "wrong_shape", 422, "shape does not fit the base's weight")                        \
    X(-112, UNKNOWN_TARGET, "unknown_target", 422, "the base has no such weight")                           \
    X(-113, UNSUPPORTED_TARGET, "unsupported_target", 422, "the weight is not a plain matrix product")      \
    X(-114, ZERO_TARGETS, "zero_targets", 422, "no tensor belongs to a weight of the base")                 \
    X(-115, UNMAPPED_TENSORS, "unmapped_tensors", 422, "some tensors belong to no weight of the base")      \
    X(-116, DUPLICATE_TARGET, "duplicate_target", 422, "two tensors for one weight")                        \
    X(-117, NON_FINITE, "non_finite", 422, "NaN or infinity among the weights")                             \
    X(-118, VOCAB_MISMATCH, "vocab_mismatch", 422, "vocabulary sizes differ")                               \
    X(-119, BASE_WEIGHTS_INCLUDED, "base_weights_included", 422, "the file also holds weights of the base") \
    X(-120, UNEXPECTED_TENSOR, "unexpected_tensor", 422, "a tensor that is no LoRA matrix")                 \
    X(-121, NO_EFFECT, "no_effect", 422, "the adapter changes nothing")                                     \
    /* GGUF adapters */                                                                                     \
    X(-130, GGUF_VERSION, "gguf_version", 422, "not GGUF version 2 or 3")                                   \
    X(-131, GGUF_COUNTS, "gguf_counts", 422, "more keys or tensors than the file can hold")                 \
    X(-132, GGUF_STRING, "gguf_string", 422, "a string over the limit, not UTF-8 or with a NUL byte")         \
    X(-133, GGUF_DUPLICATE, "gguf_duplicate", 422, "a key or tensor name twice")                            \
    X(-134, GGUF_TYPE, "gguf_type", 422, "an unknown value type")                                           \
    X(-135, GGUF_KEY_TYPE, "gguf_key_type", 422, "a key's value has the wrong type")                        \
    X(-136, ALPHA_MISSING, "alpha_missing", 422, "adapter.lora.alpha is missing")                           \
    X(-137, GGUF_ALIGNMENT, "gguf_alignment", 422, "alignment is not a power of two in range")              \
    X(-138, GGUF_SHAPE, "gguf_shape", 422, "a tensor's dimensions are not possible")                        \
    X(-139, GGUF_OVERFLOW, "gguf_overflow", 422, "a size that does not fit 64 bits")                        \
    X(-140, GGUF_TENSOR_TYPE, "gguf_tensor_type", 422, "an unknown tensor type")                            \
    X(-141, GGUF_OFFSET, "gguf_offset", 422, "a tensor's offset is not where it must be")                   \
    X(-142, GGUF_NAME, "gguf_name", 422, "a tensor name of 64 bytes or more")                               \
    X(-143, GGUF_ALORA, "gguf_alora", 422, "invocation tokens that cannot be")                              \
    /* the loader and the registry */                                                                       \
    X(-160, NOT_FOUND, "not_found", 404, "no project or adapter of that name")                              \
    X(-161, BAD_NAME, "bad_name", 400, "names are 1 to 128 of A-Z a-z 0-9 . _ -")                           \
    X(-162, BUSY, "busy", 503, "no room: every adapter in memory is in use")                                \
    X(-163, LARGER_THAN_BUDGET, "larger_than_budget", 413, "does not fit the memory limit even alone")      \
    X(-164, BUDGET_EXHAUSTED, "budget_exhausted", 503, "the memory limit leaves no room")                   \
    X(-165, CHANGED_ON_DISK, "changed_on_disk", 409, "the files are not those that were registered")        \
    X(-166, DEADLINE, "deadline", 504, "the time allowed has passed")                                       \
    X(-167, CONFLICT, "conflict", 409, "the name is taken, or what was expected is not so")                 \
    X(-168, REGISTRY_INVALID, "registry_invalid", 500, "the registry file is damaged or of a newer version") \
    X(-169, REGISTRY_BUSY, "registry_busy", 503, "another process holds the registry")                      \
    X(-170, STORAGE_FULL, "storage_full", 507, "a file could not be written: no room, or not allowed")                         \
    X(-171, BAD_SETTING, "bad_setting", 400, "a setting that is unknown or outside its range")              \
    X(-172, OUTSIDE_ROOT, "outside_root", 422, "leads out of the folder that adapters may come from")

enum graft_error_code {
    GRAFT_OK = 0,
#define X(number, id, name, http, text) GRAFT_E_##id = number,
    GRAFT_ERRORS(X)
#undef X
};

/* What went wrong, in one line a person can act on. Owned by the caller; filled only on failure. */
typedef struct graft_error {
    int code;          /* GRAFT_E_… */
    char message[480]; /* file, tensor or key; what was found; what is allowed. No code name in it. */
} graft_error;

/* The stable name of a code ("wrong_shape"); "unknown" for others. Static storage. */
GRAFT_API const char *graft_error_name(int code);
/* The HTTP status for a code; 500 for others. */
GRAFT_API int graft_error_http(int code);
/* What a code means in general. Static storage. */
GRAFT_API const char *graft_error_text(int code);

/* GRAFT_VERSION of the library in use; the header's own is GRAFT_VERSION. Static storage. */
GRAFT_API const char *graft_version(void);
/* Version of the libllama in use, for example "0.5.0-dev". Static storage. */
GRAFT_API const char *graft_llama_version(void);

/* ---- opening ------------------------------------------------------------------------------------------ */

typedef enum graft_log_level { GRAFT_LOG_DEBUG, GRAFT_LOG_INFO, GRAFT_LOG_WARN, GRAFT_LOG_ERROR } graft_log_level;

/* One thing that happened, in words, and what it is about. Strings are never NULL ("" = none) and valid during the call
 * only. Texts of prompts and answers are never logged. */
typedef struct graft_log_entry {
    graft_log_level level;
    const char *text;              /* one line, no newline */
    const char *project, *adapter; /* names */
    const char *generation;        /* 64 hex digits */
    uint64_t request;              /* graft_job_id; 0 = none */
    int code;                      /* GRAFT_E_…; 0 = none */
} graft_log_entry;

/* May come from any thread, also from inside graft_open. libllama has one log for the whole process: its lines go to the
 * instance that was opened last. */
typedef void (*graft_log_fn)(const graft_log_entry *entry, void *user);

/* Progress of opening the model, 0 to 1. Return false to give up (graft_open fails with CANCELLED). */
typedef bool (*graft_progress_fn)(float fraction, void *user);

/* How adapters meet a batch. AUTO: rows where the self-test agrees with libllama, else grouped. */
typedef enum graft_apply { GRAFT_APPLY_AUTO, GRAFT_APPLY_ROWS, GRAFT_APPLY_GROUPED } graft_apply;

/* Storage of an adapter's matrices. F16 halves memory; F32 is exact. BF16 and F32 files are rounded to F16
 * unless a value would overflow, in which case that module stays in F32. Q8_0 takes about half of F16: blocks of 32
 * values with one float16 factor, as ggml's type of that name. */
typedef enum graft_adapter_type { GRAFT_TYPE_F16, GRAFT_TYPE_F32, GRAFT_TYPE_Q8_0 } graft_adapter_type;

/* Storage of the KV cache. F32 also turns flash attention off: slower, for exact comparisons. */
typedef enum graft_kv_type { GRAFT_KV_F16, GRAFT_KV_F32 } graft_kv_type;

/* Which adapter leaves memory when room is needed. */
typedef enum graft_policy {
    GRAFT_POLICY_LRU,      /* the one unused for longest */
    GRAFT_POLICY_SIEVE,    /* the oldest not asked for since the hand last passed */
    GRAFT_POLICY_S3FIFO,   /* newcomers prove themselves in a small queue */
    GRAFT_POLICY_WTINYLFU, /* newcomers must have been asked for more often than whom they displace */
    GRAFT_POLICY_GDSF      /* the least frequency times load time for each byte, with ageing */
} graft_policy;

#define GRAFT_POLICIES 5

/* "lru", "sieve", "s3fifo", "wtinylfu", "gdsf"; NULL for any other number. Static storage. */
GRAFT_API const char *graft_policy_name(graft_policy p);

/* What to do for a registered adapter that cannot be had (its files are bad or gone, no memory): answer with the base and
 * say so, or fail. A name that is not registered always fails. */
typedef enum graft_fallback {
    GRAFT_FALLBACK_DEFAULT, /* as the instance's options say; there: BASE */
    GRAFT_FALLBACK_BASE,
    GRAFT_FALLBACK_ERROR
} graft_fallback;

struct graft_registry;

typedef struct graft_options {
    size_t size;              /* sizeof(graft_options), set by graft_options_default */
    const char *model;        /* path of the base model's GGUF; required */
    int slots;                /* sequences in flight at once, 1 to 256 (8) */
    int context;              /* tokens per sequence, 16 to 1048576, slots times context at most 2^26;
                                 0 = the model's own, at most 4096 (0) */
    int batch;                /* rows per decode, 16 to 4096 (512) */
    int threads;              /* compute threads, 1 to 512, 0 = one per physical core (0) */
    graft_kv_type kv_type;    /* (F16) */
    graft_apply apply;        /* (AUTO) */
    graft_adapter_type adapter_type; /* default for graft_adapter_open (F16) */
    bool gpu;                 /* let libllama offload layers; adapters are then applied grouped (false) */
    bool self_test;           /* check the row-wise way against libllama when opening (true) */
    uint64_t max_adapter_bytes; /* larger files are refused before reading (4 GiB) */

    /* The dynamic loader. */
    struct graft_registry *registry; /* what names stand for: a graft_registry, borrowed, for this instance alone until
                                        graft_close; NULL = no names, adapters by path only (NULL) */
    int max_adapters;         /* registered adapters in memory at once, 0 to 100000; 0 = bounded by memory only (3) */
    uint64_t memory_limit;    /* bytes for all: base weights, caches, adapters, graft's own; 0 = the machine's. Never more than
                                 the cgroup or the machine has (4096 MiB) */
    graft_policy policy;      /* (LRU) */
    graft_fallback fallback;  /* for requests and leases that do not say (BASE) */
    int retry_attempts;       /* tries for errors that may pass, 1 to 10 (3) */
    int retry_base_ms;        /* first pause between tries; doubles, with jitter; 1 to 60000 (50) */
    int adapter_wait_ms;      /* how long a request or lease waits for its adapter, 0 to 86400000; 0 = as long as loading takes,
                                 and not at all for room (30000) */
    int loader_threads;       /* 1 to 8 (2) */
    bool probe;               /* before an adapter counts as loaded, evaluate a few tokens with it: what it answers must be
                                 finite, and differ from the base (true) */

    graft_log_fn log;         /* NULL = silent */
    void *log_user;
    graft_progress_fn progress; /* NULL = none */
    void *progress_user;
} graft_options;

typedef struct graft graft;

/* The defaults in brackets above. */
GRAFT_API graft_options graft_options_default(void);

/*
 * Opens a base model and starts its decode thread and its loader.
 * Errors: BAD_REQUEST (an option out of range, named), MODEL_MISSING, MODEL_INVALID, OUT_OF_MEMORY,
 * CANCELLED (by progress), SELF_TEST_FAILED (apply = ROWS and the self-test disagrees), BUDGET_EXHAUSTED (the base alone is
 * over memory_limit, with the numbers; said before it is loaded where the file's size tells, and before its caches are made),
 * CONFLICT (the registry serves another instance).
 * A model whose architecture graft has no adapter table for opens and generates; loading an adapter on it
 * fails with UNSUPPORTED_MODEL. *out is the caller's; end it with graft_close.
 */
GRAFT_API int graft_open(graft **out, const graft_options *options, graft_error *err);

/*
 * Ends what is running (finish ERROR, code SHUTTING_DOWN), waits for the decode thread, frees all. Adapters must have been
 * freed; a job may still be waited for and freed afterwards.
 */
GRAFT_API void graft_close(graft *g);

/*
 * The instance of the whole process: the first call opens it, with `options`; every later one, from any thread, gets the same
 * and its options are not looked at. Callers that come while it opens wait. If opening fails all who waited get the error, and
 * the next call tries again. Errors: as graft_open, BAD_REQUEST (`options` NULL and none is open), SHUTTING_DOWN (it was closed
 * again before a caller that waited could have it).
 */
GRAFT_API int graft_default(graft **out, const graft_options *options, graft_error *err);
/* Closes it, if it is open. Nobody may be using it any more. A later graft_default opens anew. */
GRAFT_API void graft_default_close(void);

typedef struct graft_model_info {
    const char *path;
    const char *architecture;  /* GGUF's general.architecture */
    const char *description;   /* libllama's one-line description, for example "llama 135M Q4_1" */
    uint64_t weight_bytes;     /* base weights */
    uint64_t context_bytes;    /* KV cache and compute buffers, measured when the context was made */
    int n_vocab, n_layer, n_embd, context, slots; /* n_embd: values of an embedding */
    const char *fingerprint;   /* of the tensors' names and shapes, 64 hex digits: as graft_registered.base */
    const char *chat_template; /* as the model's file has it; "" = none */
    int32_t bos, eos;          /* tokens that begin a text and end an answer; -1 = none */
    bool adapters_supported;
    graft_apply apply;         /* ROWS or GROUPED, never AUTO */
    const char *apply_reason;  /* why: the self-test's outcome in a few words */
    const char *kernels;       /* "reference", "avx2+f16c", "neon" */
    int threads;
} graft_model_info;

/* Borrowed from g, valid until graft_close. */
GRAFT_API void graft_model_get_info(const graft *g, graft_model_info *out);

/* Changes how adapters are applied from the next step on; AUTO returns to what opening decided.
 * Errors: SELF_TEST_FAILED for ROWS where the self-test said no. */
GRAFT_API int graft_set_apply(graft *g, graft_apply apply, graft_error *err);

/* Bytes that graft's own code holds now (adapters included, libllama's weights and caches not). */
GRAFT_API uint64_t graft_own_bytes(void);

/* ---- adapters by path --------------------------------------------------------------------------------- */

/* The caller opens and frees these, and nothing evicts them. Adapters that have names come and go by themselves: see "the
 * dynamic loader" below. */

typedef struct graft_adapter graft_adapter;

typedef struct graft_adapter_info {
    const char *path;
    const char *format;     /* "peft", "gguf" or "mlx" */
    const char *generation; /* SHA-256 of config and weights, 64 hex digits */
    uint64_t bytes;         /* what it holds in memory, to the byte; libllama's copy for grouped decoding is extra */
    double load_ms;         /* reading, verifying, packing */
    int n_modules;          /* weights of the base that it changes */
    int rank_min, rank_max;
    graft_adapter_type type;
    bool no_effect;         /* every A or B is zero: it cannot change an answer */
} graft_adapter_info;

/*
 * Reads, verifies and packs the adapter at `path`: a PEFT folder (adapter_config.json and
 * adapter_model.safetensors) or a GGUF adapter file. Runs on the calling thread, holding no lock; decoding
 * goes on meanwhile. Its bytes count in the memory limit; named adapters are evicted for it if need be.
 * Errors: any of the file, JSON, container, config and tensor codes (the first reason is in err, graft_inspect gives all),
 * BUDGET_EXHAUSTED. *out is the caller's; end it with graft_adapter_free.
 */
GRAFT_API int graft_adapter_open(graft_adapter **out, graft *g, const char *path, graft_error *err);

/* Gives the handle back. Memory goes when the last request that uses the adapter has ended. */
GRAFT_API void graft_adapter_free(graft_adapter *a);

/* Borrowed from a, valid until graft_adapter_free. */
GRAFT_API void graft_adapter_get_info(const graft_adapter *a, graft_adapter_info *out);

/* One weight, or some rows of one, that an adapter would change. */
typedef struct graft_module_info {
    const char *module; /* name in the adapter's file */
    const char *weight; /* name in the base's GGUF */
    int rank;           /* 0 and scale 0 if it is not of low rank */
    double scale;       /* factor of B·A, options of the config applied */
    int64_t n_in, n_out;
    const char *dtype;  /* in the file: "F32", "F16", "BF16" */
    uint64_t bytes;     /* in memory when loaded */
    const char *kind;   /* how it is changed, in a word: "LoRA", "DoRA", "norm", "embedding tokens", … */
} graft_module_info;

/* One reason why an adapter cannot be used, or (severity WARN) something to know. */
typedef struct graft_reason {
    graft_log_level severity; /* GRAFT_LOG_ERROR or GRAFT_LOG_WARN */
    int code;
    const char *where;        /* file, tensor or key */
    const char *message;
} graft_reason;

typedef struct graft_inspection {
    bool loadable;
    const char *path, *format;
    uint64_t bytes; /* in memory when loaded; 0 if not loadable */
    const graft_module_info *modules;
    size_t n_modules;
    const graft_reason *reasons; /* all of them, not only the first; at most 1000 */
    size_t n_reasons;
} graft_inspection;

/*
 * Says what loading `path` would do, without keeping it: every module with its scale, or every reason why not. Reads the
 * whole adapter, since some faults (NaN, a file cut short) show only in the matrices.
 * Returns 0 also for an adapter that cannot be loaded (loadable = false). *out: graft_inspection_free.
 */
GRAFT_API int graft_inspect(graft_inspection **out, graft *g, const char *path, graft_error *err);
GRAFT_API void graft_inspection_free(graft_inspection *i);

/* ---- generating --------------------------------------------------------------------------------------- */

typedef struct graft_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} graft_message;

/* Exactly one of three: an adapter that was opened by path, a lease, or a name. */
typedef struct graft_adapter_use {
    graft_adapter *adapter;
    float scale;               /* multiplies the adapter's own scale; 0 = as if not named; finite, |scale| <= 100 */
    const struct graft_lease *lease; /* may be released as soon as the request was submitted */
    const char *project;       /* a registered name: the request leases it before its first row, and gives it back after */
    const char *name;          /* its last. `name` NULL = "default". All NULL = the current project (graft_switch_project) */
} graft_adapter_use;

typedef struct graft_sampling {
    float temperature;       /* 0 = greedy (0); 0 to 100; below 0.0001 counts as 0 */
    int top_k;               /* 0 = off (40); beyond the vocabulary: all of it */
    float top_p;             /* 1 = off (0.95); 0 to 1 */
    float min_p;             /* 0 = off (0.05); 0 to 1 */
    uint32_t seed;           /* (0xFFFFFFFF = a random one) */
    int repeat_last_n;       /* tokens that the three penalties look at (64); 0 to 65536 */
    float repeat_penalty;    /* 1 = off (1); 0.01 to 100 */
    float frequency_penalty; /* 0 = off (0); -100 to 100 */
    float presence_penalty;  /* 0 = off (0); -100 to 100 */
    const char *grammar;     /* GBNF with a rule `root`, or NULL */
} graft_sampling;

/* What came since the last call: whole UTF-8 characters, stop strings never included. `text` is not
 * NUL-terminated and valid only during the call. Return false to cancel the request. */
typedef bool (*graft_text_fn)(const char *text, size_t length, void *user);

/* A token that could have come, and its natural-log probability as the model gives it: before biases, temperature, penalties and
 * filters. -INFINITY if it rules the token out. */
typedef struct graft_token_choice {
    int32_t token;
    const char *text; /* its bytes: may be part of a character, is not NUL-terminated; special tokens are spelled out */
    size_t length;
    float logprob;
} graft_token_choice;

/* One generated token. Valid during the call only. */
typedef struct graft_token {
    graft_token_choice chosen;
    const graft_token_choice *top; /* the likeliest, best first; chosen may be among them */
    int n_top;
    bool ends; /* chosen is an end-of-generation token: it is counted, but gives no text */
} graft_token;

/* On the decode thread, before the token's text is handed to on_text (which may hold text back for a stop string). */
typedef void (*graft_token_fn)(const graft_token *token, void *user);

/* What a request runs with. Valid during the call only. */
typedef struct graft_start {
    const char *project, *adapter; /* of the first adapter that was given by name; "" = none was */
    const char *generation;        /* as in graft_result */
    const graft_error *fallback;   /* likewise; never NULL */
    int cached_tokens;             /* likewise */
} graft_start;

/* A slot is free and the adapters are there: the request runs from now on. Once, on the decode thread, before every other
 * callback; never for a request that ends in the queue. */
typedef void (*graft_start_fn)(const graft_start *start, void *user);

typedef struct graft_job graft_job;
struct graft_result;

/* The request has ended, and this is its result. Once, on the decode thread, after every other callback. The job may be waited
 * for (which returns soon) and freed from then on, but not inside. */
typedef void (*graft_end_fn)(graft_job *job, const struct graft_result *result, void *user);

/* Added to a token's logit before anything else; -100 and below bans it, 100 and above as good as chooses it. */
typedef struct graft_logit_bias {
    int32_t token;
    float bias; /* finite */
} graft_logit_bias;

typedef struct graft_request {
    size_t size;                 /* sizeof(graft_request), set by graft_request_default */
    const graft_adapter_use *adapters; /* up to 8, their deltas add; one at most that scales (DoRA) or replaces a given weight;
                                          NULL = the base */
    size_t n_adapters;
    const char *prompt;          /* raw text; exactly one of prompt, messages, tokens */
    const graft_message *messages; /* up to 4096, put into the model's chat template as libllama recognises it (it has no
                                      template language: default system messages of a template are not added). Content that
                                      spells a special token becomes that token */
    size_t n_messages;
    const int32_t *tokens;
    size_t n_tokens;
    bool special;                /* parse special tokens such as <|im_end|> in `prompt` (true) */
    int max_tokens;              /* most new tokens; 0 = up to the context's end (128) */
    bool ignore_eos;             /* go on after the end-of-generation token: for benchmarks (false) */
    graft_sampling sampling;
    const char *const *stop;     /* stop strings, up to 16 of at most 256 bytes each */
    size_t n_stop;
    const graft_logit_bias *logit_bias; /* up to 1024 */
    size_t n_logit_bias;
    int top_logprobs;            /* likeliest tokens that on_token shows, 0 to 20 (0) */
    bool cache_prompt;           /* reuse what the KV cache holds of the same beginning, with the same adapters, and leave it for
                                    others (true). Figures then depend in their last bits on what was reused; false for exact
                                    repeats */
    uint64_t cache_domain;       /* whose prompt it is: beginnings are reused only among requests of one domain. How much was
                                    reused, and how fast, tells what others asked; 0 for all who may know that of each other
                                    (0) */
    graft_start_fn on_start;     /* NULL = only the result tells */
    graft_text_fn on_text;       /* NULL = only the whole text at the end */
    graft_token_fn on_token;     /* NULL = none: probabilities are then not computed */
    graft_end_fn on_end;         /* NULL = graft_job_wait tells */
    void *user;
    graft_fallback fallback;     /* for adapters by name (DEFAULT) */
    int adapter_wait_ms;         /* likewise, as in graft_options; -1 = as the instance has it (-1) */
} graft_request;

/* Everything is copied before the functions below return; the caller may reuse the memory at once. */
GRAFT_API graft_request graft_request_default(void);

typedef enum graft_finish {
    GRAFT_FINISH_STOP,   /* end-of-generation token or a stop string */
    GRAFT_FINISH_LENGTH, /* max_tokens or the end of the context */
    GRAFT_FINISH_CANCELLED,
    GRAFT_FINISH_ERROR   /* `error` says why; `text` holds what came before */
} graft_finish;

/* "stop", "length", "cancelled", "error". Static storage. */
GRAFT_API const char *graft_finish_name(graft_finish f);

typedef struct graft_result {
    const char *text;    /* NUL-terminated; may hold NULs before text_length */
    size_t text_length;
    int prompt_tokens;
    int cached_tokens;     /* of prompt_tokens: taken from the KV cache */
    int completion_tokens; /* the end-of-generation token counts */
    graft_finish finish;
    graft_error error;   /* code 0 unless finish = ERROR or CANCELLED */
    uint64_t id;         /* graft_job_id */
    const char *generation; /* of the adapter that answered; "" = the base; of several, the first named */
    graft_error fallback;   /* code other than 0: the base answered instead of a named adapter, and why */
    double adapter_ms;   /* of queue_ms: waiting for adapters by name */
    double queue_ms;     /* from submit to the first row in a batch */
    double prompt_ms;    /* from there to the first token */
    double total_ms;     /* from submit to the end */
} graft_result;

/*
 * Starts `n` requests (up to 4096) together: all of them enter the queue before the decode thread looks at it again. Those whose
 * named adapters are not in memory wait for them in the queue, and others pass.
 * Errors (nothing is started): BAD_REQUEST with the field and its range, CONTEXT_LENGTH with both numbers,
 * NO_CHAT_TEMPLATE, BAD_GRAMMAR, NOT_FOUND and BAD_NAME (of a project or adapter), SHUTTING_DOWN, OUT_OF_MEMORY (also when 65,536
 * requests wait). Later failures are in the results.
 * out[0..n-1] are the caller's: wait and free each.
 */
GRAFT_API int graft_submit(graft_job **out, graft *g, const graft_request *requests, size_t n, graft_error *err);

/* Waits until the job has ended. The result is borrowed from the job, valid until graft_job_free. */
GRAFT_API const graft_result *graft_job_wait(graft_job *job);
/* A number of its own within the process, from 1 up: what log lines call the request. */
GRAFT_API uint64_t graft_job_id(const graft_job *job);
/* Asks the job to stop; it ends before the next batch. Harmless on an ended one. Any thread. */
GRAFT_API void graft_job_cancel(graft_job *job);
/* Cancels if still running, waits, frees. */
GRAFT_API void graft_job_free(graft_job *job);

/* ---- scoring ------------------------------------------------------------------------------------------ */

/* Logits of `count` tokens from token `first` on: float32, row-major [count][n_vocab], valid during the call. */
typedef void (*graft_logits_fn)(const float *logits, size_t first, size_t count, int n_vocab, void *user);

typedef struct graft_score_request {
    size_t size;
    const graft_adapter_use *adapters;
    size_t n_adapters;
    const char *text;      /* exactly one of text, tokens; special tokens in it are parsed */
    const int32_t *tokens; /* taken as they are, no BOS added */
    size_t n_tokens;       /* up to the context's length */
    graft_logits_fn on_logits; /* NULL = not wanted; in token order, on the decode thread */
    void *user;
} graft_score_request;

typedef struct graft_score_result {
    size_t n_tokens;
    const int32_t *tokens;
    const char *const *pieces; /* each token as text (may be invalid UTF-8 on its own) */
    const float *logprobs;     /* natural log; [0] is NaN: nothing precedes the first token */
    double perplexity;         /* exp(-mean of logprobs[1..]); NaN for one token */
} graft_score_result;

GRAFT_API graft_score_request graft_score_request_default(void);

/* Log-probability of each token given those before it. Waits. *out: graft_score_result_free.
 * Errors as graft_submit, and those of a failed job. */
GRAFT_API int graft_score(graft_score_result **out, graft *g, const graft_score_request *request, graft_error *err);
GRAFT_API void graft_score_result_free(graft_score_result *r);

/* ---- text and tokens ---------------------------------------------------------------------------------- */

/*
 * Tokens as requests get them. `add_special`: with the tokens that the model wants around a text, usually one that begins it, as
 * in a request's prompt. `parse_special`: special tokens such as <|im_end|> in the text become those tokens.
 * Errors: BAD_REQUEST (not UTF-8), CONTEXT_LENGTH (more than 16,777,216 tokens), OUT_OF_MEMORY. *tokens: graft_free.
 */
GRAFT_API int graft_tokenize(int32_t **tokens, size_t *n, const graft *g, const char *text, bool add_special,
                             bool parse_special, graft_error *err);
/*
 * The tokens' texts one after the other, special tokens spelled out. Perhaps not valid UTF-8, if characters are cut;
 * NUL-terminated, and NULs may come before *length, which may be NULL. A model that puts a space before texts shows it here.
 * Errors: BAD_REQUEST (a token that is none), OUT_OF_MEMORY. *text: graft_free.
 */
GRAFT_API int graft_detokenize(char **text, size_t *length, const graft *g, const int32_t *tokens, size_t n,
                               graft_error *err);
/* The same of one token. */
GRAFT_API int graft_token_text(char **text, size_t *length, const graft *g, int32_t token, graft_error *err);
/*
 * The prompt that a request with these messages has, up to where the answer begins. Tokenise it with both flags to get what the
 * request gets. Errors: BAD_REQUEST, NO_CHAT_TEMPLATE, CONTEXT_LENGTH, OUT_OF_MEMORY. *prompt: graft_free.
 */
GRAFT_API int graft_apply_template(char **prompt, const graft *g, const graft_message *messages, size_t n,
                                   graft_error *err);
/* Frees what these functions gave away. NULL is fine. */
GRAFT_API void graft_free(void *memory);

/* ---- embeddings --------------------------------------------------------------------------------------- */

typedef enum graft_pooling {
    GRAFT_POOL_MEAN, /* the mean over all tokens */
    GRAFT_POOL_LAST  /* the last token's, which has seen all others: better for many models that were trained for embeddings */
} graft_pooling;

/* A text as one vector: the model's last hidden state, after its final norm, with adapters as for answers. A model that was
 * trained to chat gives vectors of little use for searching, one that was trained for it (or an adapter) good ones. */
typedef struct graft_embed_request {
    size_t size;           /* sizeof(graft_embed_request), set by graft_embed_request_default */
    const graft_adapter_use *adapters;
    size_t n_adapters;
    const char *text;      /* exactly one of text, tokens; special tokens in it are parsed */
    const int32_t *tokens; /* taken as they are, no BOS added */
    size_t n_tokens;       /* up to the context's length */
    graft_pooling pooling; /* (MEAN) */
    bool normalize;        /* to length 1, so that a product of two is their cosine (true) */
    graft_end_fn on_end;   /* as in graft_request */
    void *user;
    graft_fallback fallback; /* for adapters by name (DEFAULT) */
    int adapter_wait_ms;     /* likewise, as in graft_options; -1 = as the instance has it (-1) */
} graft_embed_request;

GRAFT_API graft_embed_request graft_embed_request_default(void);

/* Starts `n` requests, as graft_submit; errors likewise. Wait for and free each job; its result counts the prompt's tokens,
 * has no text, and is STOP if there is an embedding. */
GRAFT_API int graft_embed(graft_job **out, graft *g, const graft_embed_request *requests, size_t n, graft_error *err);
/* The embedding of an ended job (from on_end on), *n values, borrowed from the job. NULL and 0 if it failed or is another
 * kind. `n` may be NULL. */
GRAFT_API const float *graft_job_embedding(const graft_job *job, int *n);

/* ---- figures ------------------------------------------------------------------------------------------ */

/* Steps by how many of something they had: bucket 0 counts those with none, bucket 1 those with 1, bucket i those with more than
 * 2^(i-2) and at most 2^(i-1); the last one all above, too. */
#define GRAFT_STEP_BUCKETS 14

/* Counters since graft_open. Steps with prompt rows in them count as prompt, the others as decode. */
typedef struct graft_stats {
    uint64_t decode_steps, decode_tokens; /* tokens = rows of sequences that are generating */
    double decode_ms;
    uint64_t prompt_steps, prompt_tokens;
    double prompt_ms;
    uint64_t largest_batch;               /* most rows in one decode */
    uint64_t most_adapters;               /* most different adapters in one decode */
    uint64_t retried_steps;               /* decodes that were run again after an error in one row */
    uint64_t cached_tokens;               /* of prompts: taken from the KV cache, and so no rows */
    uint64_t completion_tokens;           /* generated, as they come */
    uint64_t rows_per_step[GRAFT_STEP_BUCKETS];
    uint64_t adapters_per_step[GRAFT_STEP_BUCKETS]; /* different ones; the base is none, so 0 = all rows were the base's */
    uint64_t step_rows, step_adapters;    /* of all steps together: what the two above add up to */
    uint64_t last_rows, last_adapters;    /* of the last step; 0 while nothing runs */
    uint64_t running, waiting;            /* requests in slots and for one, now; those of the loader's probe among them */
} graft_stats;

GRAFT_API void graft_get_stats(const graft *g, graft_stats *out);

/* One slot, as of the last step. Strings are never NULL. */
typedef struct graft_slot {
    int slot;              /* from 0 up */
    const char *state;     /* "idle", "prompt" (some of it is still to be evaluated), "decode". Static storage */
    uint64_t job;          /* graft_job_id; 0 = idle. All that follows is then empty */
    const char *project, *adapter; /* the first adapter that was asked for by name; "" = none: the base, a path or a lease */
    const char *generation; /* of the adapter that answers, as in graft_result; "" = the base */
    int prompt_tokens;
    int cached_tokens;     /* of them: taken from the KV cache */
    int evaluated_tokens;  /* of them: computed so far */
    int completion_tokens; /* so far */
} graft_slot;

/* In the slots' order. Everything in it belongs to it. */
typedef struct graft_slot_list {
    const graft_slot *items;
    size_t n; /* graft_model_info.slots */
} graft_slot_list;

/* What the slots hold. Does not wait for a step to end. Errors: OUT_OF_MEMORY. *out: graft_slot_list_free. */
GRAFT_API int graft_slots(graft_slot_list **out, graft *g, graft_error *err);
GRAFT_API void graft_slot_list_free(graft_slot_list *list);

/* ---- the dynamic loader ------------------------------------------------------------------------------- */

/*
 * Adapters by name. The registry says what a name stands for; the loader brings it in when it is asked for, keeps what fits,
 * evicts what nobody holds, and counts. A lease holds one adapter in memory. docs/loader.md tells it as a story.
 *
 * Names: `adapter` NULL = "default"; `project` NULL = the current project, then `adapter` is the current one too if it is NULL.
 * Every function here that takes names may fail with NOT_FOUND, BAD_NAME, BAD_REQUEST (the instance has no registry, or there is
 * no current project), SHUTTING_DOWN, OUT_OF_MEMORY; only further errors are listed.
 */

typedef struct graft_lease graft_lease;

typedef struct graft_lease_options {
    size_t size;             /* sizeof(graft_lease_options), set by graft_lease_options_default */
    const char *project, *adapter;
    bool temporary;          /* if this lease had to load it, and only temporary ones asked since: unload at the release
                                (false) */
    bool reload;             /* read the files anew even if it is in memory (false) */
    graft_fallback fallback; /* (DEFAULT) */
    int wait_ms;             /* as graft_options.adapter_wait_ms; -1 = as the instance has it (-1) */
} graft_lease_options;

GRAFT_API graft_lease_options graft_lease_options_default(void);

/*
 * Holds an adapter: it stays in memory until the lease is released, whatever happens to its name. Loads it if need be, and
 * waits. With fallback BASE a registered adapter that cannot be had gives a lease on the base, which says why.
 * Errors: BUSY (no room, everything in memory is held), DEADLINE, LARGER_THAN_BUDGET, BUDGET_EXHAUSTED, CHANGED_ON_DISK, and
 * those of graft_adapter_open. *out: graft_lease_release.
 */
GRAFT_API int graft_lease_take(graft_lease **out, graft *g, const graft_lease_options *options, graft_error *err);
GRAFT_API void graft_lease_release(graft_lease *lease);

typedef struct graft_lease_info {
    const char *project, *adapter;
    const char *generation; /* "" = the base */
    uint64_t bytes;         /* of the adapter in memory; 0 = the base */
    bool hit;               /* it was in memory already */
    bool no_effect;         /* it changes nothing, as far as loading could tell */
    graft_error fallback;   /* code other than 0: this is the base, and why */
    double wait_ms;         /* what taking the lease took */
} graft_lease_info;

/* Borrowed from the lease. */
GRAFT_API void graft_lease_get_info(const graft_lease *lease, graft_lease_info *out);

/* Makes an adapter resident without holding it. With `reload` its files are read anew; requests under way finish on the old
 * version. Never falls back. Errors: as graft_lease_take. */
GRAFT_API int graft_load_adapter(graft *g, const char *project, const char *adapter, bool reload, graft_error *err);

/* No name reaches it from now on; its memory goes with the last lease. *freed: bytes given back already, *pending: bytes that
 * leases still hold (each may be NULL). Errors: NOT_FOUND also if it is not in memory. */
GRAFT_API int graft_unload_adapter(graft *g, const char *project, const char *adapter, uint64_t *freed, uint64_t *pending,
                                   graft_error *err);

/* Never evicted from now on, also after a restart; the adapter need not be in memory. Errors: as graft_registry_adapter_pin. */
GRAFT_API int graft_pin_adapter(graft *g, const char *project, const char *adapter, bool pinned, graft_error *err);

/* Loads the adapter and makes it the current one, for callers that name none. On an error the current one stays.
 * Errors: as graft_load_adapter. */
GRAFT_API int graft_switch_project(graft *g, const char *project, const char *adapter, graft_error *err);

#define GRAFT_NAME_SIZE 129 /* a project's or adapter's name and its NUL */

/* The current project and adapter. Errors: NOT_FOUND (none was set). */
GRAFT_API int graft_current_project(graft *g, char project[GRAFT_NAME_SIZE], char adapter[GRAFT_NAME_SIZE], graft_error *err);

/* Loading without waiting. */
typedef struct graft_prefetch graft_prefetch;

/* Called once, on any thread, perhaps before graft_prefetch_start returns; `error->code` 0: it is in memory. Must not block and
 * must not free the prefetch. */
typedef void (*graft_prefetch_fn)(const graft_error *error, void *user);

/* Begins to load an adapter; `fn` may be NULL. Errors: those of names only; loading's come to `fn` and wait. *out:
 * graft_prefetch_free. */
GRAFT_API int graft_prefetch_start(graft_prefetch **out, graft *g, const char *project, const char *adapter,
                                   graft_prefetch_fn fn, void *user, graft_error *err);
/* A descriptor that becomes readable when the load has ended, for poll and its like. Do not read or close it. Errors (as a
 * negative number): NOT_READABLE (no descriptors are left). */
GRAFT_API int graft_prefetch_fd(graft_prefetch *p, graft_error *err);
/* Whether the load has ended. */
GRAFT_API bool graft_prefetch_done(graft_prefetch *p);
/* Waits for the end. Errors: as graft_load_adapter. */
GRAFT_API int graft_prefetch_wait(graft_prefetch *p, graft_error *err);
/* The load goes on without it. */
GRAFT_API void graft_prefetch_free(graft_prefetch *p);

/* One version in memory, or on its way in or out. */
typedef struct graft_loaded {
    const char *project, *adapter;
    const char *generation; /* "" while loading */
    const char *state;      /* "loading", "resident", "draining" */
    uint64_t bytes;
    uint32_t leases;
    bool pinned, no_effect;
    uint64_t hits;          /* of this name */
    double load_ms;
    double idle_ms;         /* since it was last used; 0 while it is held */
} graft_loaded;

/* Sorted by project, then adapter. Everything in it belongs to it. */
typedef struct graft_loaded_list {
    const graft_loaded *items;
    size_t n;
} graft_loaded_list;

/* What is in memory by name now. *out: graft_loaded_list_free. Errors: OUT_OF_MEMORY. */
GRAFT_API int graft_loaded_adapters(graft_loaded_list **out, graft *g, graft_error *err);
GRAFT_API void graft_loaded_list_free(graft_loaded_list *list);

/* Durations in buckets by powers of two: bucket i counts what took less than 2^i microseconds and not less than 2^(i-1); the
 * last one all above. */
#define GRAFT_HISTOGRAM_BUCKETS 28

typedef struct graft_histogram {
    uint64_t buckets[GRAFT_HISTOGRAM_BUCKETS];
    uint64_t count, sum_us, max_us;
} graft_histogram;

/* Upper border in microseconds of the bucket that holds the q-th part (0 to 1) of the counts; 0 if empty. */
GRAFT_API uint64_t graft_histogram_quantile(const graft_histogram *h, double q);

#define GRAFT_METRIC_CODES 24 /* different error codes kept apart; further ones are counted under code 0 */

/* Counters since graft_open, and gauges. */
typedef struct graft_metrics {
    uint64_t hits;        /* leases of a resident adapter */
    uint64_t misses;      /* leases that waited for a load */
    uint64_t loads, load_bytes; /* that succeeded */
    uint64_t evictions, unloads, replacements;
    uint64_t retries, fallbacks;
    uint64_t busy;        /* loads that found no room */
    uint64_t negative_hits; /* failures answered from memory: the file has not changed */
    uint64_t no_effect;   /* loads of adapters that change nothing */
    struct graft_code_count {
        int code;
        uint64_t n;
    } failures[GRAFT_METRIC_CODES]; /* loads that failed, by code */
    size_t n_failures;
    struct graft_code_count retried[GRAFT_METRIC_CODES]; /* attempts that failed and were followed by another, by code */
    size_t n_retried;
    graft_histogram hit_us, wait_us, load_us, evict_us;
    /* gauges; bytes as in graft_memory */
    uint64_t limit, fixed, resident, loading, draining;
    uint64_t held; /* of resident: leased or pinned */
    uint64_t n_resident, n_loading, n_draining, n_leases;
} graft_metrics;

/* Cheap. Without a registry all is 0 but the bytes. */
GRAFT_API void graft_get_metrics(graft *g, graft_metrics *out);

/* Where the memory is. All bytes, and each one measured: by the allocator that counts, by libllama as it made its buffers, or by
 * the system. */
typedef struct graft_memory {
    uint64_t limit;     /* in force */
    uint64_t machine;   /* what the cgroup or else the machine has */
    uint64_t weights;   /* the base's */
    uint64_t context;   /* KV cache and compute buffers */
    uint64_t own;       /* graft's own: queues, tables, the registry in memory */
    uint64_t resident, loading, draining; /* adapters by name; loading: reserved */
    uint64_t by_path;   /* adapters that were opened by path */
    uint64_t twins;     /* libllama's copies of adapters, where they are applied grouped: counted with the adapters above */
    uint64_t counted;   /* all of these together, each once */
    uint64_t process;   /* resident set of the process; 0 = the system does not tell */
    uint64_t n_resident, max_adapters;
} graft_memory;

GRAFT_API void graft_memory_report(graft *g, graft_memory *out);

typedef enum graft_health_state { GRAFT_HEALTHY, GRAFT_DEGRADED, GRAFT_UNHEALTHY } graft_health_state;

/* "healthy", "degraded", "unhealthy". Static storage. */
GRAFT_API const char *graft_health_name(graft_health_state s);

#define GRAFT_HEALTH_REASONS 16

/* The state is the worst of the reasons'. docs/loader.md lists the conditions. */
typedef struct graft_health {
    graft_health_state state;
    struct graft_health_reason {
        graft_health_state state;
        const char *name; /* stable, for programs: "memory_high" and so on; static storage */
        char text[200];   /* with the numbers */
    } reasons[GRAFT_HEALTH_REASONS];
    size_t n_reasons;
} graft_health;

/* Cheap; waits for nothing, so it answers also when the decode thread hangs. */
GRAFT_API void graft_health_check(graft *g, graft_health *out);

/* ---- registry ----------------------------------------------------------------------------------------- */

/*
 * The names an application uses: projects, each with its adapters, kept in one SQLite file together with what
 * happened to them. Nothing is loaded here; a registry needs no base model and no graft.
 *
 * A change that returned 0 is on disk: it survives a crash of the process and of the machine. One that failed
 * changed nothing, in memory or on disk. Any number of processes may read one file; one at a time may write,
 * and holds a lock file beside it. Questions are answered from memory, as of opening plus own changes.
 * Names are 1 to 128 of A-Z a-z 0-9 . _ - and not "." or ".."; case matters. Else: BAD_NAME.
 *
 * Not across fork: a child must neither use nor close a registry that its parent opened.
 */
typedef struct graft_registry graft_registry;

typedef struct graft_registry_options {
    size_t size;       /* sizeof(graft_registry_options), set by graft_registry_options_default */
    const char *path;  /* the file; required. Made with mode 0600 if there is none, its folder is not */
    bool read_only;    /* changes fail with REGISTRY_BUSY; no lock is taken; the file must exist (false) */
    const char *root;  /* adapters must lie below this folder, links followed, when they are registered and whenever they
                          are loaded by name; NULL = anywhere (NULL) */
    int wait_ms;       /* how long to wait for another process's lock, 0 to 60000 (2000) */
    uint64_t max_adapter_bytes; /* larger weights are refused before reading (4 GiB) */
    graft_log_fn log;  /* NULL = silent; may be called on the registry's own thread */
    void *log_user;
} graft_registry_options;

/* The defaults in brackets above. */
GRAFT_API graft_registry_options graft_registry_options_default(void);

/*
 * Opens a registry: checks the file, brings it to this version's tables, reads all of it.
 * Errors: BAD_REQUEST (an option), NOT_FOUND (read_only and there is none), NOT_READABLE, REGISTRY_INVALID (damaged,
 * empty, no registry, or of a newer version: the file is left as it is), REGISTRY_BUSY (another process writes,
 * named), STORAGE_FULL (cannot be made or written), OUT_OF_MEMORY. *out: graft_registry_close.
 */
GRAFT_API int graft_registry_open(graft_registry **out, const graft_registry_options *options, graft_error *err);
/* Writes down the history so far, then frees all. */
GRAFT_API void graft_registry_close(graft_registry *r);

/*
 * Every change may also fail with REGISTRY_BUSY (opened read-only; locked for longer than wait_ms; the file was
 * deleted or replaced since opening), STORAGE_FULL (it could not be written), REGISTRY_INVALID (found damaged),
 * OUT_OF_MEMORY.
 */

/* Errors: BAD_NAME, CONFLICT (there is one). */
GRAFT_API int graft_registry_project_add(graft_registry *r, const char *project, graft_error *err);
/* Its adapters, their files and their history stay. Errors: BAD_NAME, NOT_FOUND, CONFLICT (`to` is taken). */
GRAFT_API int graft_registry_project_rename(graft_registry *r, const char *from, const char *to, graft_error *err);
/* With its adapters' entries; no file of an adapter is touched. Errors: BAD_NAME, NOT_FOUND. */
GRAFT_API int graft_registry_project_remove(graft_registry *r, const char *project, graft_error *err);

/* How graft_registry_adapter_add treats what is there already; may be combined. */
#define GRAFT_ADD_PROJECT 1u     /* make the project if there is none */
#define GRAFT_ADD_NEW_PROJECT 2u /* make the project; CONFLICT if there is one */
#define GRAFT_ADD_REPLACE 4u     /* the name may point elsewhere so far; its history and pin stay */

/*
 * Registers the adapter at `path` (a folder of PEFT or mlx-lm or a GGUF file; a relative path is made absolute, links are kept).
 * Its files are opened, described and hashed first, without a base model: what only a base can tell comes out at the
 * first load. `adapter` NULL = "default". The same path with the same content again is no error and no change.
 * Errors: BAD_NAME, BAD_REQUEST (path empty, too long, not UTF-8), NOT_FOUND (project), CONFLICT, OUTSIDE_ROOT, and those of
 * graft_adapter_open that need no base.
 */
GRAFT_API int graft_registry_adapter_add(graft_registry *r, const char *project, const char *adapter,
                                         const char *path, unsigned flags, graft_error *err);
/* The same for paths that strangers name: the files must lie below the folder `below`, wherever links lead, besides the
 * registry's own root. Further errors: those of a folder that is not there. */
GRAFT_API int graft_registry_adapter_add_below(graft_registry *r, const char *below, const char *project, const char *adapter,
                                               const char *path, unsigned flags, graft_error *err);
/* The entry only; no file is touched. Errors: BAD_NAME, NOT_FOUND. */
GRAFT_API int graft_registry_adapter_remove(graft_registry *r, const char *project, const char *adapter,
                                            graft_error *err);
/* A pinned adapter is never evicted. Errors: BAD_NAME, NOT_FOUND. */
GRAFT_API int graft_registry_adapter_pin(graft_registry *r, const char *project, const char *adapter, bool pinned,
                                         graft_error *err);
/*
 * Looks at the adapter's files again and registers them as they are now; the next request loads them anew.
 * *changed (may be NULL): whether their content is another. Errors: as graft_registry_adapter_add; the entry then
 * stays as it was.
 */
GRAFT_API int graft_registry_adapter_reload(graft_registry *r, const char *project, const char *adapter,
                                            bool *changed, graft_error *err);

/* What happened to one adapter, or to a project's adapters together. Times are seconds since 1970, 0 = never. */
typedef struct graft_history {
    uint64_t requests, tokens;
    uint64_t loads, failures, evictions, unloads, fallbacks;
    double load_ms; /* of all loads together */
    int64_t last_loaded, last_used;
} graft_history;

/* What is known of a registered adapter's files. Whether it is in memory is the loader's business. */
typedef enum graft_registered_state {
    GRAFT_REGISTERED,         /* not loaded yet since it was added or its files were looked at */
    GRAFT_REGISTERED_READY,   /* loaded when last tried */
    GRAFT_REGISTERED_FAILED,  /* cannot be loaded: error_code and error say why */
    GRAFT_REGISTERED_MISSING, /* its files are gone */
    GRAFT_REGISTERED_CHANGED  /* its files are not those that were registered: reload accepts them */
} graft_registered_state;

/* "registered", "ready", "failed", "missing", "changed". Static storage. */
GRAFT_API const char *graft_registered_state_name(graft_registered_state s);

typedef struct graft_registered {
    const char *project, *adapter;
    const char *path;       /* absolute */
    const char *generation; /* SHA-256 of config and weights, 64 hex digits; "" = not read yet */
    const char *format;     /* "peft", "gguf", "mlx"; "" = not known */
    const char *base;       /* fingerprint of the base it last loaded on, 64 hex digits; "" = none yet */
    int rank;               /* the largest; 0 = not known */
    uint64_t file_bytes;    /* of the weights file; 0 = not known */
    uint64_t bytes;         /* in memory when last loaded; 0 = not loaded yet */
    graft_registered_state state;
    int error_code;         /* of the last failure; 0 = none since it was last well */
    const char *error;      /* its message; "" = none */
    bool pinned;
    int64_t created, changed; /* seconds since 1970 */
    graft_history history;
} graft_registered;

/* Sorted by project, then adapter. Everything in it belongs to it. */
typedef struct graft_registered_list {
    const graft_registered *items;
    size_t n;
} graft_registered_list;

/*
 * All adapters; with `project` those of one; with `adapter` too, that one. A snapshot: graft_registered_list_free.
 * Errors: BAD_NAME, NOT_FOUND (a name that was given), OUT_OF_MEMORY.
 */
GRAFT_API int graft_registry_adapter_list(graft_registered_list **out, graft_registry *r, const char *project,
                                          const char *adapter, graft_error *err);
GRAFT_API void graft_registered_list_free(graft_registered_list *list);

typedef struct graft_project_info {
    const char *name;
    size_t n_adapters;
    uint64_t file_bytes;      /* of its adapters together */
    int64_t created, changed; /* seconds since 1970 */
    graft_history history;    /* of its adapters together */
} graft_project_info;

/* Sorted by name. Everything in it belongs to it. */
typedef struct graft_project_list {
    const graft_project_info *items;
    size_t n;
} graft_project_list;

/* All projects, or with `project` that one. A snapshot: graft_project_list_free. Errors: BAD_NAME, NOT_FOUND,
 * OUT_OF_MEMORY. */
GRAFT_API int graft_registry_project_list(graft_project_list **out, graft_registry *r, const char *project,
                                          graft_error *err);
GRAFT_API void graft_project_list_free(graft_project_list *list);

/* One line of the log of what happened. */
typedef struct graft_registry_event {
    int64_t at;                    /* seconds since 1970 */
    const char *project, *adapter; /* as they were called then */
    const char *kind;              /* "loaded", "failed", "evicted", "unloaded", "fallback" */
    int code;                      /* failed, fallback; else 0 */
    const char *generation;        /* or "" */
    uint64_t bytes;
    double ms;                     /* loaded: how long it took */
    const char *message;           /* failed, fallback; else "" */
} graft_registry_event;

/* Newest first. Everything in it belongs to it. */
typedef struct graft_event_list {
    const graft_registry_event *items;
    size_t n;
} graft_event_list;

/* The newest events, at most `most`, of all or of one project or adapter; the last 10,000 are kept. Reads the file.
 * *out: graft_event_list_free. Errors: REGISTRY_BUSY, REGISTRY_INVALID, OUT_OF_MEMORY. */
GRAFT_API int graft_registry_event_list(graft_event_list **out, graft_registry *r, const char *project,
                                        const char *adapter, size_t most, graft_error *err);
GRAFT_API void graft_event_list_free(graft_event_list *list);

typedef enum graft_scan_outcome {
    GRAFT_SCAN_ADDED,
    GRAFT_SCAN_KNOWN,   /* was registered with this path already */
    GRAFT_SCAN_BROKEN,  /* registered as failed: `code` and `message` say why */
    GRAFT_SCAN_REFUSED, /* not registered: a name that cannot be, or that stands for another path, or a link out */
    GRAFT_SCAN_SKIPPED  /* no adapter: a GGUF model, for example */
} graft_scan_outcome;

/* "added", "known", "broken", "refused", "skipped". Static storage. */
GRAFT_API const char *graft_scan_outcome_name(graft_scan_outcome o);

/* One find of a scan. Valid during the call only. */
typedef struct graft_scan_item {
    const char *path, *project, *adapter; /* the names are "" if none could be made */
    graft_scan_outcome outcome;
    int code;
    const char *message;
} graft_scan_item;

/* Called for each find, after it was dealt with. Return false to stop (the scan then fails with CANCELLED). */
typedef bool (*graft_scan_fn)(const graft_scan_item *item, void *user);

#define GRAFT_SCAN_ENTRIES 100000 /* most files and folders that a scan looks at */
#define GRAFT_SCAN_DEPTH 16       /* folders below folders */

typedef struct graft_scan_summary {
    size_t entries; /* files and folders looked at */
    size_t added, known, broken, refused, skipped;
    bool complete;  /* false: one of the limits above was met, or a folder could not be read */
} graft_scan_summary;

/*
 * Registers every folder of PEFT or mlx-lm and every GGUF adapter below the folder `path`, without reading any weights. The folder's
 * name becomes the project (spaces and punctuation as '-'), its adapter `default`; further GGUF files of one folder
 * get their own names, and so do projects of GGUF files in the top folder. Names that begin with '.' are passed
 * over. A link is followed if it leads to an adapter below the top folder. `fn` may be NULL.
 * Errors: ADAPTER_FILE_MISSING, NOT_READABLE, OUTSIDE_ROOT, CANCELLED; what was registered before an error stays.
 */
GRAFT_API int graft_registry_scan(graft_registry *r, const char *path, graft_scan_fn fn, void *user,
                                  graft_scan_summary *out, graft_error *err);

/* ---- adapters as files, and in a model ----------------------------------------------------------------- */

typedef enum graft_adapter_format { GRAFT_FORMAT_OTHER, GRAFT_FORMAT_GGUF, GRAFT_FORMAT_PEFT } graft_adapter_format;

/* Types of the matrices in a file. KEEP: those of the source, wherever it can be. */
typedef enum graft_export_type { GRAFT_EXPORT_KEEP, GRAFT_EXPORT_F32, GRAFT_EXPORT_F16 } graft_export_type;

typedef struct graft_convert_options {
    size_t size;              /* sizeof(graft_convert_options), set by graft_convert_options_default */
    const char *model;        /* path of the base model's GGUF: names, shapes and row orders are its; required */
    const char *adapter;      /* a folder of PEFT or mlx-lm or a GGUF adapter; required */
    const char *out;          /* the file or folder to make; required */
    graft_adapter_format to;  /* OTHER: a folder becomes a GGUF file, a GGUF file a folder (OTHER) */
    graft_export_type type;   /* (KEEP) */
    bool replace;             /* what is at `out` goes: a file, or a folder that holds nothing but an adapter (false) */
    uint64_t max_adapter_bytes; /* (4 GiB) */
    graft_log_fn log;         /* called on this thread; NULL = silent */
    void *log_user;
    graft_progress_fn progress; /* called on this thread; false gives up. NULL = none */
    void *progress_user;
} graft_convert_options;

/* The defaults in brackets above. */
GRAFT_API graft_convert_options graft_convert_options_default(void);

/*
 * Writes an adapter in another form that computes the same, or refuses. `out` appears when it is whole, and on failure not at
 * all. Of the base only names and shapes are read. What becomes what: docs/convert.md.
 * Errors: BAD_REQUEST (an option; `out` is the adapter itself), those of opening a model and an adapter; UNSUPPORTED_ADAPTER and
 * UNSUPPORTED_TARGET (it has no place in that form; which, and why), OUT_OF_RANGE (a number that float16 cannot hold), CONFLICT (`out`
 * exists), STORAGE_FULL (it cannot be written), CANCELLED.
 */
GRAFT_API int graft_adapter_convert(const graft_convert_options *options, graft_error *err);

typedef struct graft_merge_use {
    const char *adapter; /* path: a folder of PEFT or mlx-lm or a GGUF adapter */
    float factor;        /* -100 to 100; 0 leaves it out */
} graft_merge_use;

#define GRAFT_MERGE_ADAPTERS 64 /* most at once */

typedef struct graft_merge_options {
    size_t size;         /* sizeof(graft_merge_options), set by graft_merge_options_default */
    const char *model;   /* path of the base model's GGUF, of a split one the first part; required */
    const graft_merge_use *adapters;
    size_t n_adapters;   /* at least 1 */
    const char *out;     /* the GGUF to make; required */
    const char *type;    /* of the weights: "same" (each its own), "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0",
                            "q4_k", "q4_1", "q4_0", "q3_k", "q2_k" ("same") */
    int threads;         /* 1 to 512; 0 = one per physical core (0) */
    bool replace;        /* a file at `out` goes (false) */
    uint64_t max_adapter_bytes; /* (4 GiB) */
    graft_log_fn log;    /* NULL = silent */
    void *log_user;
    graft_progress_fn progress; /* called on this thread; false gives up. NULL = none */
    void *progress_user;
} graft_merge_options;

/* The defaults in brackets above. */
GRAFT_API graft_merge_options graft_merge_options_default(void);

/*
 * Writes a new model: the base with the adapters' changes in its weights, W' = W + factor scale B A, with all of the base's keys.
 * Sums are of float32 numbers; what no adapter changes is copied byte for byte if the type is "same". libllama opens the result
 * before `out` appears. Memory: the adapters in float32, and about 100 MiB.
 * Errors: BAD_REQUEST (an option; `out` is the base), those of opening a model and an adapter, UNSUPPORTED_ADAPTER (no weights express
 * it; which, and why), UNSUPPORTED_MODEL (libllama would not open the result), NON_FINITE, OUT_OF_RANGE (a number that the type cannot
 * hold), CONFLICT (`out` exists), STORAGE_FULL, CANCELLED.
 */
GRAFT_API int graft_model_merge(const graft_merge_options *options, graft_error *err);

/* ---- choosing a policy -------------------------------------------------------------------------------- */

/* Which eviction policy suits a workload? A trace of requests is replayed through one, with nothing loaded. */

typedef struct graft_trace_request {
    uint64_t key;   /* which adapter */
    uint64_t bytes; /* > 0; the same for each request of a key */
    double cost;    /* of loading it, seconds; finite, not negative */
} graft_trace_request;

typedef struct graft_replay_options {
    size_t size;         /* sizeof(graft_replay_options), set by graft_replay_options_default */
    graft_policy policy; /* (LRU) */
    bool belady;         /* Belady's choice instead, which knows the future: whose next use is farthest away goes. With equal
                            sizes and costs nothing misses less often; otherwise it is no bound (false) */
    uint64_t capacity;   /* bytes; 0 = not bounded (0) */
    size_t max_adapters; /* adapters at once; 0 = not bounded (3) */
} graft_replay_options;

GRAFT_API graft_replay_options graft_replay_options_default(void);

typedef struct graft_replay_result {
    uint64_t requests, hits, misses, evictions;
    uint64_t too_large;       /* misses of what is larger than the whole capacity: not taken in */
    double cost, cost_missed; /* of all requests, of the misses: seconds that loading would have taken */
} graft_replay_result;

/* Errors: BAD_REQUEST (an option; a request without bytes or with a cost that cannot be, by its index), OUT_OF_MEMORY. */
GRAFT_API int graft_replay(graft_replay_result *out, const graft_trace_request *trace, size_t n,
                           const graft_replay_options *options, graft_error *err);

typedef enum graft_workload_kind {
    GRAFT_WORKLOAD_ZIPF, /* popularity 1 / rank^skew, nothing ever changes */
    GRAFT_WORKLOAD_SCAN, /* zipf, and now and then one pass over all */
    GRAFT_WORKLOAD_LOOP, /* all in turn: the worst case for lru */
    GRAFT_WORKLOAD_SHIFT /* 9 of 10 requests go to a tenth of all, which changes now and then */
} graft_workload_kind;

#define GRAFT_WORKLOADS 4

/* "zipf", "scan", "loop", "shift"; NULL for any other number. Static storage. */
GRAFT_API const char *graft_workload_name(graft_workload_kind kind);

typedef struct graft_workload {
    size_t size;      /* sizeof(graft_workload), set by graft_workload_default */
    graft_workload_kind kind; /* (ZIPF) */
    size_t objects;   /* different adapters, 1 to 10000000; keys are 1 to objects (100) */
    double skew;      /* zipf, scan: 0 (uniform) to 10; what people do lies between 0.6 and 1.2 (1) */
    bool equal_sizes; /* all of 1 MiB and 1 s; otherwise 2 to 128 MB, and 10 ms plus 0.5 to 1.5 s for each GB (false) */
    uint64_t seed;    /* the same numbers each time (1) */
} graft_workload;

GRAFT_API graft_workload graft_workload_default(void);

/* Fills trace[0..n). Errors: BAD_REQUEST (a field out of range), OUT_OF_MEMORY. */
GRAFT_API int graft_workload_make(graft_trace_request *trace, size_t n, const graft_workload *workload, graft_error *err);

/* ---- references --------------------------------------------------------------------------------------- */

/*
 * Names for what other programs keep on this machine. Nothing is ever downloaded, and links must end within the store.
 *   ollama:[[HOST/]NAMESPACE/]NAME[:TAG]   the GGUF that Ollama has; NAMESPACE "library", TAG "latest", HOST the only one
 *                                          that has it unless named
 *   hf:ORG/NAME[@REVISION][/FILE]          a file of Hugging Face's local cache; REVISION "main"; without FILE the only GGUF
 *                                          (of a split one the first part; files called mmproj… do not count)
 * Anything else is a path. A file that is called so is reached by "./hf:…".
 */
typedef struct graft_stores {
    size_t size;        /* sizeof(graft_stores) */
    const char *ollama; /* the folder that holds manifests/ and blobs/; NULL = not known */
    const char *hf_hub; /* the folder that holds models--ORG--NAME/; NULL = not known */
} graft_stores;

/*
 * What `reference` stands for; a path comes back as it is, whether it is there or not. `stores` may be NULL for paths.
 * Errors: BAD_REQUEST (a name that cannot be; two hosts or several GGUF files, listed; a store that nobody named),
 * MODEL_MISSING (what was looked for, and where), MODEL_INVALID and the JSON codes (the store's own files), OUTSIDE_ROOT,
 * NOT_REGULAR_FILE, NOT_READABLE, TOO_LARGE. *path: graft_string_free.
 */
GRAFT_API int graft_find_model(char **path, const char *reference, const graft_stores *stores, graft_error *err);
/*
 * The same for an adapter: hf: gives a PEFT folder (the snapshot, or FILE if that is a folder) or a GGUF file, ollama: the
 * adapter's layer of a model that has one. Errors: as above with ADAPTER_FILE_MISSING and NOT_AN_ADAPTER.
 */
GRAFT_API int graft_find_adapter(char **path, const char *reference, const graft_stores *stores, graft_error *err);
/* Frees a string that graft gave away. */
GRAFT_API void graft_string_free(char *s);

/* ---- keys --------------------------------------------------------------------------------------------- */

/*
 * Keys of a server, kept in the registry: each for everything (admin) or for the adapters of some projects. A key is a
 * random secret that is told once, when it is made; the file and memory hold only its SHA-256. Projects are meant by name,
 * whether there are any of that name or not: renaming a project changes no key. `graft serve` asks for a key as soon as
 * there is one.
 */
#define GRAFT_KEY_SIZE 64       /* a key's text and its NUL: "gk_" and 43 characters of base64url */
#define GRAFT_KEYS 4096         /* most in one registry */
#define GRAFT_KEY_PROJECTS 256  /* most for one key */

typedef struct graft_key {
    const char *name;            /* what to call it; not secret */
    bool admin;                  /* for everything; then it has no projects */
    const char *const *projects; /* sorted, each once */
    size_t n_projects;
    int64_t created;             /* seconds since 1970 */
} graft_key;

/* Sorted by name. Everything in it belongs to it. */
typedef struct graft_key_list {
    const graft_key *items;
    size_t n;
} graft_key_list;

/*
 * Makes a key for these projects; n_projects 0 = for everything. `secret` gets its text, which cannot be had again: wipe it
 * once it is told; it is wiped if this fails. `name` and `projects` are names as those of projects.
 * Errors: BAD_NAME, BAD_REQUEST (more than GRAFT_KEY_PROJECTS), CONFLICT (the name is taken, or there are GRAFT_KEYS),
 * INTERNAL (no random numbers), and those of every change.
 */
GRAFT_API int graft_registry_key_add(char secret[GRAFT_KEY_SIZE], graft_registry *r, const char *name,
                                     const char *const *projects, size_t n_projects, graft_error *err);
/* From now on it is not found. The backup is made anew, so that going back to it does not bring the key back.
 * Errors: BAD_NAME, NOT_FOUND, and those of every change. */
GRAFT_API int graft_registry_key_remove(graft_registry *r, const char *name, graft_error *err);
/* All keys, or with `name` that one. A snapshot: graft_key_list_free. Errors: BAD_NAME, NOT_FOUND, OUT_OF_MEMORY. */
GRAFT_API int graft_registry_key_list(graft_key_list **out, graft_registry *r, const char *name, graft_error *err);
/* The one key with this secret, any text. Compares it with all keys, in a time that does not tell which one it is or how nearly.
 * *out: graft_key_list_free. Errors: NOT_FOUND, OUT_OF_MEMORY; no message holds any of the secret. */
GRAFT_API int graft_registry_key_find(graft_key_list **out, graft_registry *r, const char *secret, graft_error *err);
/* How many there are; 0 for NULL. Cheap. */
GRAFT_API size_t graft_registry_key_count(graft_registry *r);
GRAFT_API void graft_key_list_free(graft_key_list *list);

/* ---- a damaged registry ------------------------------------------------------------------------------- */

/*
 * Beside the registry's file lies a backup, FILE.backup: made when a registry that was changed is closed, and after each 256
 * changes. Damage is never mended by itself: opening fails with REGISTRY_INVALID and says whether the backup is good.
 */

/* One file: the registry's or its backup. */
typedef struct graft_registry_file {
    graft_error error;         /* code 0: it is whole; NOT_FOUND: there is none; REGISTRY_INVALID and others: why not */
    int64_t written;           /* seconds since 1970; 0 = unknown */
    size_t projects, adapters; /* 0 unless it is whole */
} graft_registry_file;

typedef struct graft_registry_condition {
    graft_registry_file registry, backup;
    char damaged[64]; /* recover: the name that the damaged file has now; "" = there was none */
} graft_registry_condition;

/* Reads all of both files and changes nothing; works while another process has the registry open. Of the options only `path`
 * and `wait_ms` matter. Errors: those of a path; what is wrong with the files is in *out. */
GRAFT_API int graft_registry_examine(graft_registry_condition *out, const graft_registry_options *options, graft_error *err);

/*
 * Puts the backup in the place of a damaged registry, which is kept as FILE.damaged-TIME. The backup stays.
 * Errors: REGISTRY_BUSY (another process writes, named), CONFLICT (the registry is whole), NOT_FOUND (there is no backup),
 * REGISTRY_INVALID (the backup is damaged too, or the registry is of a newer version), STORAGE_FULL.
 */
GRAFT_API int graft_registry_recover(graft_registry_condition *out, const graft_registry_options *options, graft_error *err);

#ifdef __cplusplus
}
#endif
#endif /* GRAFT_H */
