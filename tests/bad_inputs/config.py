"""C: adapter_config.json."""

import json
import os

from making import CONFIG, save, write
from table import add, case


def config(row, variant, code, by_name=None, **changes):
    """The good config with some keys changed; ... takes one away."""
    def make(folder, good):
        for key, value in changes.items():
            if value is ...:
                good.config.pop(key, None)
            else:
                good.config[key] = value
        return save(folder, good)
    add(row, variant, code, make, by_name=by_name)


def each(row, code, key, *values):
    for value in values:
        shown = json.dumps(value)
        config(row, f"{key} {shown if len(shown) < 80 else shown[:60] + '…'}", code, **{key: value})


# ---- C01: the file ----------------------------------------------------------------------------------------------------

add("C01", "empty", "json_syntax", lambda folder, good: write(folder, good.file(), b""))
add("C01", "empty object", "unsupported_adapter", lambda folder, good: write(folder, good.file(), b"{}"))
add("C01", "a list that holds the config", "bad_type", lambda folder, good: write(folder, good.file(), [good.config]))
add("C01", "cut off in its middle", "json_syntax", lambda folder, good: write(
    folder, good.file(), json.dumps(good.config).encode()[:400]))


@case("C01", "is a folder", "not_regular_file")
def _(folder, good):
    write(folder, good.file())
    os.mkdir(os.path.join(folder, CONFIG))
    return folder


# ---- C02: the kind ----------------------------------------------------------------------------------------------------

REFUSED = "unsupported_adapter"
config("C02", "peft_type absent", REFUSED, peft_type=...)
for kind in ("LOHA", "LOKR", "IA3", "ADALORA", "VERA", "OFT", "BOFT", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "XLORA", "LN_TUNING",
             "POLY", "FOURIERFT", "HRA", "CPT", "BONE", "MISS", "RANDLORA", "SHIRA", "TRAINABLE_TOKENS", "ROAD", "C3A", "WAVEFT", "lora", "LORA ", "", "\x1b[31mLORA"):
    config("C02", f"peft_type {kind!r}", REFUSED, peft_type=kind)
config("C02", "peft_type null", REFUSED, peft_type=None)
each("C02", "bad_type", "peft_type", 1, True, ["LORA"], {"value": "LORA"}, 1.5)

# ---- C03, C04: rank -----------------------------------------------------------------------------------------------------

config("C03", "r missing", "bad_rank", r=...)
each("C03", "bad_rank", "r", 0, -1, -4, 1 << 31, (1 << 63) - 1, -(1 << 63), "4", "", 4.0, 4.5, 4e0, True, False, None, [4], {"r": 4}, [])
each("C04", "rank_mismatch", "r", 1, 3, 5, 7, 64, 1024, (1 << 31) - 1)
config("C04", "rank_pattern that makes up for it", None, r=8, rank_pattern={".*": 4})
config("C04", "rank_pattern that does not", "rank_mismatch", rank_pattern={"q_proj": 8})

# ---- C05: alpha -----------------------------------------------------------------------------------------------------------

config("C05", "alpha missing", "bad_alpha", lora_alpha=...)
each("C05", "bad_alpha", "lora_alpha", 0, 0.0, -0.0, 1e30, -1e30, 1.0000001e9, 1e308, "16", "", None, True, False, [16], {"alpha": 16}, "NaN")
each("C05", None, "lora_alpha", -8, 7.5, 1e-3, 8.0, 1)
config("C05", "lora_alpha 1e9", None, "non_finite_output", lora_alpha=1e9)
config("C05", "alpha so small that the scale is 0 in float32, which the rank decides", "bad_alpha", lora_alpha=1e-300)
config("C05", "alpha that leaves no normal scale", None, lora_alpha=1e-40)

# ---- C06: rsLoRA ------------------------------------------------------------------------------------------------------------

config("C06", "rsLoRA", None, use_rslora=True)
each("C06", "bad_type", "use_rslora", "yes", "true", 1, 0, [], {}, 1.0)

# ---- C07, C08: patterns -------------------------------------------------------------------------------------------------------

for pattern in ({"q_proj": 4, "layers.1.self_attn.q_proj": 8}, {r"layers\.[01]\.self_attn\.(q|k)_proj": 4}, {"^model.layers.0.self_attn.q_proj": 4},
                {r"model\.layers\.\d+\.mlp\..*": 2}, {"q_proj": 4.5}, {"q_proj": -4}, {"self_attn": 4, "q_proj": 2, ".*": 8}, {}):
    config("C07" if "self_attn" not in pattern else "C08", f"alpha_pattern {json.dumps(pattern)}", None if "self_attn" not in pattern else "pattern_unused",
           alpha_pattern=pattern)
UNSUPPORTED = "unsupported_pattern"
for key, words in (
        (r"(([a-z_.0-9]+)+)+[A-Z]", "that ends slowly"), (r"(a+)+$", "of the school-book's slow kind, that ends at once"), (r"(.*)*(.*)*(.*)*X", "of many stars, that ends at once"),
        ("(q_proj", "that does not close"), ("q_proj)", "that does not open"), ("[q_proj", "with half a class"), ("*q_proj", "that begins with a star"),
        ("?q_proj", "that begins with ?"), ("(?=q)q_proj", "with look-ahead"), ("(?<=q)_proj", "with look-behind"), ("(?i)Q_PROJ", "with a flag"),
        (r"(q)_proj|\1", "with a back reference"), (r"(?P<n>q)_proj", "with a named group"), (r"q_proj(?#x)", "with a comment"), (r"q{2", "with half a quantifier"),
        (r"\Qq_proj\E", "with a quotation only Perl has"), (r"\p{L}_proj", "with a property only Perl has"), (r"[[:alpha:]]_proj", "with a POSIX class"),
        ("q_proj++", "possessive"), ("(*LIMIT_MATCH=1000000000)q_proj", "that would lift graft's limits"), ("(*F)", "with a verb"), ("q_proj\n", "with a line break"),
        ("\u00e9_proj", "beyond ASCII"), ("a" * 513, "of 513 bytes"), (r"q_proj\\"[:-1], "that ends in a backslash"), ("q_proj{1000000}", "with a repeat of a million"),
        ("((((((((((a{100}){100}){100}){100}){100}){100}){100}){100}){100}){100})", "of nested repeats"), ("(" * 250 + "a" + ")" * 250, "of 250 groups")):
    config("C07", f"key {words}", "pattern_unused" if "ends at once" in words else UNSUPPORTED, alpha_pattern={key: 4, "q_proj": 2})
config("C07", "257 regular expressions", UNSUPPORTED, alpha_pattern={f"layers.0.*q_proj|x{i}": 4 for i in range(257)})
config("C07", "10,001 keys", UNSUPPORTED, alpha_pattern={f"layers.{i}.q_proj": 4 for i in range(10_001)})
for bad in ("4", 0, None, True, [4], {"a": 4}, 1e30, ""):
    config("C07", f"alpha_pattern value {json.dumps(bad)}", "bad_alpha", alpha_pattern={"q_proj": bad})
for bad in (0, -4, "4", 4.0, None, True, [4], 1 << 31):
    config("C07", f"rank_pattern value {json.dumps(bad)}", "bad_rank", rank_pattern={"q_proj": bad})
for key in ("alpha_pattern", "rank_pattern"):
    each("C07", "bad_type", key, "q_proj", ["q_proj"], 4, True, False, 0, "")
    each("C07", None, key, None, {})
config("C08", "alpha pattern that fits nothing", "pattern_unused", alpha_pattern={"q_porj": 4})
config("C08", "regular expression that fits nothing", "pattern_unused", alpha_pattern={"layers\\.[23]\\..*": 4})
config("C08", "rank pattern that fits nothing", "pattern_unused", rank_pattern={"layers.9.q_proj": 4})
config("C08", "empty key", "pattern_unused", alpha_pattern={"": 4})

# ---- C09: targets -----------------------------------------------------------------------------------------------------------

each("C09", None, "target_modules", "all-linear", r".*\.q_proj", r"(a+)+$", "[", ["q_proj"], [], None, "", ["no_such_module"], ["q_proj"] * 10_000)
config("C09", "target_modules of 500 KB", None, target_modules="(a|" * 170_000)
each("C09", "bad_type", "target_modules", 3, True, {"q_proj": 1}, [1], ["q_proj", None], [["q_proj"]], 1.5)

# ---- C10 to C13, C18: options that change more than matrices; options.py has more ---------------------------------------------------

each("C11", REFUSED, "bias", "every", "NONE", "lora-only", "None ")
each("C11", "bad_type", "bias", 1, True, False, ["all"], {"bias": "all"}, 0)
for key in ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "alora_invocation_tokens"):
    each({"use_dora": "C10", "lora_bias": "C11", "modules_to_save": "C12", "trainable_token_indices": "C13"}.get(key, "C18"), None, key, None)

# ---- C14 to C16 -----------------------------------------------------------------------------------------------------------------

config("C14", "fan_in_fan_out on a base without Conv1D", REFUSED, fan_in_fan_out=True)
each("C14", "bad_type", "fan_in_fan_out", "true", 1, 0, [], {})
each("C15", "unexpected_tensor", "layers_to_transform", [0], [1], 0, 1)
each("C15", "unknown_target", "layers_to_transform", [0, 1, 2], [0, 1, 1 << 30])
each("C15", "out_of_range", "layers_to_transform", [0, 1, -1], [0, 1, 1 << 31], [0, 1, -(1 << 63)])
each("C15", "bad_type", "layers_to_transform", "0", ["0", "1"], [0.0, 1], True, [True, False], {"0": 1}, 0.5, [None], [[0]])
each("C15", None, "layers_to_transform", [0, 1], [1, 0], [0, 0, 1, 1], [], None)
each("C15", REFUSED, "layer_replication", [[0, 2], [1, 2]], [[0, 1]], True, "x", 1)
each("C15", None, "layers_pattern", "layers", ["layers", "h"], None)
each("C15", None, "exclude_modules", "lm_head", ["lm_head"], None)
each("C16", REFUSED, "target_parameters", ["mlp.experts.gate_up_proj"], "x", True)
each("C16", REFUSED, "use_qalora", True, "yes", 1)
for key in ("use_bdlora", "arrow_config", "kasa_config", "monteclora_config"):
    each("C16", REFUSED, key, {}, {"a": 1}, True, "x")
    each("C16", None, key, None, False)
for key in ("megatron_config", "loftq_config"):
    each("C16", REFUSED, key, {"a": 1}, True, "x")
    each("C16", None, key, {}, None)

# ---- C17: the base was changed ----------------------------------------------------------------------------------------------------

each("C17", "base_modified", "init_lora_weights", "pissa", "pissa_niter_4", "pissa_niter_", "pissax", "olora", "corda", "loftq", "lora_ga")
each("C17", None, "init_lora_weights", True, False, None, "gaussian", "eva", "orthogonal", "")
each("C17", "unknown_option", "init_lora_weights", "PiSSA", "Gaussian", "magic", "\x1b[2J", "x" * 10_000)
each("C17", "bad_type", "init_lora_weights", 1, 0, ["pissa"], {"kind": "pissa"}, 0.5)

# ---- C19: what nobody knows ---------------------------------------------------------------------------------------------------------

each("C19", None, "use_magic", False, None, 0, 0.0, "", [], {})
each("C19", "unknown_option", "use_magic", True, 1, -1, 0.1, "x", [0], {"a": None}, "false")
for key in ("USE_DORA", "use_dora ", "Use_rslora", "lora_alpha_2", "\u0443se_dora", "", "a" * 1000, "x\x1b[2Jy", "..", "__proto__"):
    config("C19", f"unknown key {key[:20]!r}" + (f", {len(key)} bytes" if len(key) > 20 else ""), "unknown_option", **{key: True})
config("C19", "20,000 unknown keys", "unknown_option", **{f"x{i}": 1 for i in range(20_000)})

# ---- C20 to C24 ------------------------------------------------------------------------------------------------------------------------

each("C20", None, "base_model_name_or_path", "another/base", "", "/etc/passwd", "../../..", "https://127.0.0.1:1/x", None, "\x1b[2J", "a" * 100_000)
each("C20", "bad_type", "base_model_name_or_path", 1, True, ["a"], {"a": 1})
each("C21", REFUSED, "task_type", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION", "causal_lm", "x")
each("C21", None, "task_type", "CAUSAL_LM", "SEQ_2_SEQ_LM", "", None)
each("C21", "bad_type", "task_type", 1, True, ["CAUSAL_LM"], {})
each("C22", None, "lora_dropout", 0.5, 1, "0.1", None, [])
each("C22", None, "inference_mode", True, False, None, "x")
each("C23", None, "auto_mapping", {"base_model_class": "os.system", "parent_library": "os"}, "x", None)
each("C23", None, "revision", "../../x", "main", None, 1)
each("C23", None, "megatron_core", "os", None)
each("C24", None, "peft_version", "99.0", "", None, 1, "\x1b[2J")
config("C24", "only what an old version wrote", None, **{k: ... for k in (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "kasa_config",
    "layer_replication", "loftq_config", "lora_bias", "lora_ga_config", "megatron_config", "megatron_core", "monteclora_config", "peft_version",
    "qalora_group_size", "rank_pattern", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
    "velora_config")})
