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
    X(-132, GGUF_STRING, "gguf_string", 422, "a string over the limit or not UTF-8")                        \
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
    X(-170, STORAGE_FULL, "storage_full", 507, "the registry could not be written")                         \
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

/* One line without a newline. May come from any thread, also from inside graft_open. libllama has one log for the whole
 * process: its lines go to the instance that was opened last. */
typedef void (*graft_log_fn)(graft_log_level level, const char *line, void *user);

/* Progress of opening the model, 0 to 1. Return false to give up (graft_open fails with CANCELLED). */
typedef bool (*graft_progress_fn)(float fraction, void *user);

/* How adapters meet a batch. AUTO: rows where the self-test agrees with libllama, else grouped. */
typedef enum graft_apply { GRAFT_APPLY_AUTO, GRAFT_APPLY_ROWS, GRAFT_APPLY_GROUPED } graft_apply;

/* Storage of an adapter's matrices. F16 halves memory; F32 is exact. BF16 and F32 files are rounded to F16
 * unless a value would overflow, in which case that module stays in F32. */
typedef enum graft_adapter_type { GRAFT_TYPE_F16, GRAFT_TYPE_F32 } graft_adapter_type;

/* Storage of the KV cache. F32 also turns flash attention off: slower, for exact comparisons. */
typedef enum graft_kv_type { GRAFT_KV_F16, GRAFT_KV_F32 } graft_kv_type;

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
    graft_adapter_type adapter_type; /* default for graft_adapter_load (F16) */
    bool gpu;                 /* let libllama offload layers; adapters are then applied grouped (false) */
    bool self_test;           /* check the row-wise way against libllama when opening (true) */
    uint64_t max_adapter_bytes; /* larger files are refused before reading (4 GiB) */
    graft_log_fn log;         /* NULL = silent */
    void *log_user;
    graft_progress_fn progress; /* NULL = none */
    void *progress_user;
} graft_options;

typedef struct graft graft;

/* The defaults in brackets above. */
GRAFT_API graft_options graft_options_default(void);

/*
 * Opens a base model and starts its decode thread.
 * Errors: BAD_REQUEST (an option out of range, named), MODEL_MISSING, MODEL_INVALID, OUT_OF_MEMORY,
 * CANCELLED (by progress), SELF_TEST_FAILED (apply = ROWS and the self-test disagrees).
 * A model whose architecture graft has no adapter table for opens and generates; loading an adapter on it
 * fails with UNSUPPORTED_MODEL. *out is the caller's; end it with graft_close.
 */
GRAFT_API int graft_open(graft **out, const graft_options *options, graft_error *err);

/*
 * Ends what is running (finish ERROR, code SHUTTING_DOWN), waits for the decode thread, frees all. Adapters must have been
 * freed; a job may still be waited for and freed afterwards.
 */
GRAFT_API void graft_close(graft *g);

typedef struct graft_model_info {
    const char *path;
    const char *architecture;  /* GGUF's general.architecture */
    const char *description;   /* libllama's one-line description, for example "llama 135M Q4_1" */
    uint64_t weight_bytes;     /* base weights */
    uint64_t context_bytes;    /* KV cache and compute buffers, measured when the context was made */
    int n_vocab, n_layer, context, slots;
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

/* ---- adapters ----------------------------------------------------------------------------------------- */

typedef struct graft_adapter graft_adapter;

typedef struct graft_adapter_info {
    const char *path;
    const char *format;     /* "peft" or "gguf" */
    const char *generation; /* SHA-256 of config and weights, 64 hex digits */
    uint64_t bytes;         /* what it holds in memory, to the byte; libllama's copy for grouped decoding is extra */
    double load_ms;         /* reading, verifying, packing */
    int n_modules;          /* weights of the base that it changes */
    int rank_min, rank_max;
    graft_adapter_type type;
    bool no_effect;         /* every B is zero: it cannot change an answer */
} graft_adapter_info;

/*
 * Reads, verifies and packs the adapter at `path`: a PEFT folder (adapter_config.json and
 * adapter_model.safetensors) or a GGUF adapter file. Runs on the calling thread, holding no lock; decoding
 * goes on meanwhile. Errors: any of the file, JSON, container, config and tensor codes; the first reason is
 * in err, graft_inspect gives all. *out is the caller's; end it with graft_adapter_free.
 */
GRAFT_API int graft_adapter_load(graft_adapter **out, graft *g, const char *path, graft_error *err);

/* Gives the handle back. Memory goes when the last request that uses the adapter has ended. */
GRAFT_API void graft_adapter_free(graft_adapter *a);

/* Borrowed from a, valid until graft_adapter_free. */
GRAFT_API void graft_adapter_get_info(const graft_adapter *a, graft_adapter_info *out);

/* One weight that an adapter would change. */
typedef struct graft_module_info {
    const char *module; /* name in the adapter's file */
    const char *weight; /* name in the base's GGUF */
    int rank;
    double scale;       /* factor of B·A, options of the config applied */
    int64_t n_in, n_out;
    const char *dtype;  /* in the file: "F32", "F16", "BF16" */
    uint64_t bytes;     /* in memory when loaded */
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

typedef struct graft_adapter_use {
    graft_adapter *adapter;
    float scale; /* multiplies the adapter's own scale; 0 = as if not named; finite, |scale| <= 100 */
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

typedef struct graft_request {
    size_t size;                 /* sizeof(graft_request), set by graft_request_default */
    const graft_adapter_use *adapters; /* up to 8, their deltas add; NULL = the base */
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
    graft_text_fn on_text;       /* NULL = only the whole text at the end */
    void *user;
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
    int completion_tokens; /* the end-of-generation token counts */
    graft_finish finish;
    graft_error error;   /* code 0 unless finish = ERROR or CANCELLED */
    double queue_ms;     /* from submit to the first row in a batch */
    double prompt_ms;    /* from there to the first token */
    double total_ms;     /* from submit to the end */
} graft_result;

typedef struct graft_job graft_job;

/*
 * Starts `n` requests (up to 4096) together: all of them enter the queue before the decode thread looks at it again.
 * Errors (nothing is started): BAD_REQUEST with the field and its range, CONTEXT_LENGTH with both numbers,
 * NO_CHAT_TEMPLATE, BAD_GRAMMAR, SHUTTING_DOWN, OUT_OF_MEMORY (also when 65,536 requests wait). Later failures are in the
 * results.
 * out[0..n-1] are the caller's: wait and free each.
 */
GRAFT_API int graft_submit(graft_job **out, graft *g, const graft_request *requests, size_t n, graft_error *err);

/* Waits until the job has ended. The result is borrowed from the job, valid until graft_job_free. */
GRAFT_API const graft_result *graft_job_wait(graft_job *job);
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

/* ---- figures ------------------------------------------------------------------------------------------ */

/* Counters since graft_open. Steps with prompt rows in them count as prompt, the others as decode. */
typedef struct graft_stats {
    uint64_t decode_steps, decode_tokens; /* tokens = rows of sequences that are generating */
    double decode_ms;
    uint64_t prompt_steps, prompt_tokens;
    double prompt_ms;
    uint64_t largest_batch;               /* most rows in one decode */
    uint64_t most_adapters;               /* most different adapters in one decode */
    uint64_t retried_steps;               /* decodes that were run again after an error in one row */
} graft_stats;

GRAFT_API void graft_get_stats(const graft *g, graft_stats *out);

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
    const char *root;  /* adapters must lie below this folder, links followed; NULL = anywhere (NULL) */
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
 * Registers the adapter at `path` (a PEFT folder or a GGUF file; a relative path is made absolute, links are kept).
 * Its files are opened, described and hashed first, without a base model: what only a base can tell comes out at the
 * first load. `adapter` NULL = "default". The same path with the same content again is no error and no change.
 * Errors: BAD_NAME, BAD_REQUEST (path empty, too long, not UTF-8), NOT_FOUND (project), CONFLICT, OUTSIDE_ROOT, and those of
 * graft_adapter_load that need no base.
 */
GRAFT_API int graft_registry_adapter_add(graft_registry *r, const char *project, const char *adapter,
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
    const char *format;     /* "peft", "gguf"; "" = not known */
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
 * Registers every PEFT folder and GGUF adapter below the folder `path`, without reading any weights. The folder's
 * name becomes the project (spaces and punctuation as '-'), its adapter `default`; further GGUF files of one folder
 * get their own names, and so do projects of GGUF files in the top folder. Names that begin with '.' are passed
 * over. A link is followed if it leads to an adapter below the top folder. `fn` may be NULL.
 * Errors: ADAPTER_FILE_MISSING, NOT_READABLE, OUTSIDE_ROOT, CANCELLED; what was registered before an error stays.
 */
GRAFT_API int graft_registry_scan(graft_registry *r, const char *path, graft_scan_fn fn, void *user,
                                  graft_scan_summary *out, graft_error *err);

#ifdef __cplusplus
}
#endif
#endif /* GRAFT_H */
