#!/usr/bin/env python3
"""Runs compare.py and writes what came out as docs/compatibility.md.

usage: compatibility.py --graft PATH [--check]

With --check nothing is written: exit status 1 if a comparison fails, or if the page says of anything that it is exact
where it is refused, or the reverse. Digits may differ.
"""
import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import compare

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "compatibility.md"

# Cases by the option that they stand for: (what the page calls it, the names of its cases, without a format's prefix).
OPTIONS = [
    ("LoRA on linear layers, by name, regular expression or layer",
     r"plain|qv|one-layer|regex|rank1|rank16|c-attn|v"),
    ("`use_rslora`", r"rslora"),
    ("`rank_pattern`, `alpha_pattern`", r"patterns.*|f16-attn-proj"),
    ("files in bfloat16, float16", r"bf16|f16"),
    ("`use_dora`", r"dora|dora-rslora"),
    ("`use_dora` on an embedding", r"dora-embed"),
    ("`lora_bias`", r"lora-bias"),
    ("`bias`: `all`, `lora_only`", r"bias-all|bias-lora-only"),
    ("`lm_head`", r"lm-head"),
    ("`embed_tokens`", r"embed|embed-copy"),
    ("`lm_head` and `embed_tokens`", r"lm-head-embed"),
    ("`ensure_weight_tying`", r"embed-tied|modules-to-save-embed-tied"),
    ("`modules_to_save`: head, embedding", r"modules-to-save|modules-to-save-(head-)?embed"),
    ("`modules_to_save`: norms", r"modules-to-save-.*norm"),
    ("`trainable_token_indices`", r"trainable-tokens.*"),
    ("`alora_invocation_tokens`", r"alora"),
    ("`target_parameters`", r"target-parameters|experts"),
    ("`layer_replication`", r"layer-replication"),
    ("`init_lora_weights`: PiSSA or OLoRA, not converted", r"pissa|olora"),
    ("added tokens", r"new-tokens"),
    ("another `peft_type`", r"ia3|loha"),
]
FORMATS = {"split-": "split modules on fused weights", "fused-": "fused modules on split weights",
           "mlx-": "mlx-lm", "gguf-": "GGUF"}
QUANTISED = r"-(q\d.*)$"

HEAD = """# Compatibility

What graft makes of each option that PEFT can write, by architecture. *Exact* means: the logits of all positions are those of
transformers and PEFT {peft}, to within 1.5 times the error that the base model alone has in libllama (float32 key-value cache),
or below a floor ([tests/oracle](../tests/oracle/README.md)). *Refused* means an error with that code, before anything
is generated. There is nothing between the two. The numbers are the largest relative errors over all logits.

This page is written by `tests/oracle/compatibility.py` from a run of the tests; `make test` fails when it is out of date.
"""


def option_of(case):
    stem = next((case.removeprefix(p) for p in FORMATS if case.startswith(p)), case)
    for words, pattern in OPTIONS:
        if re.fullmatch(pattern, stem):
            return words
    raise SystemExit(f"no option in compatibility.py stands for the case {case}")


def results(rows):
    """What came out of several cases that share a cell: exact with the largest error, or refused, or some of each."""
    exact = [row for row in rows if not row.get("code")]
    refused = [row for row in rows if row.get("code")]
    if exact:
        yield "exact", f" {max(row['error'] for row in exact):.1e}"
    for code in sorted({row["code"] for row in refused}):
        cases = [row["case"] for row in refused if row["code"] == code]
        yield f"refused: `{code}`", f" ({', '.join(cases)})" if len(cases) < len(rows) else ""


def table(title, groups):
    """groups: {what: {where: rows}}. One line for each result of each `what`."""
    out = [f"| {title} | result | on |", "| --- | --- | --- |"]
    for what, places in groups.items():
        lines = {}
        for where, rows in places.items():
            for words, more in results(rows):
                lines.setdefault(words, []).append(where + more)
        for words, where in sorted(lines.items()):
            out.append(f"| {what} | {words} | {', '.join(where)} |")
    return out


def grouped(rows, what, where):
    groups = {}
    for row in rows:
        groups.setdefault(what(row), {}).setdefault(where(row), []).append(row)
    return groups


def page(manifest, rows):
    single = {(c["base"], c["case"]) for c in manifest["cases"]}
    words_of = {(c["base"], c["case"]): c["options"] for c in manifest["combinations"]}
    base_of = {b["base"]: b for b in manifest["bases"]}
    is_quantised = lambda row: base_of[row["base"]]["tolerance"] == "quantised"
    prefix = lambda row: next((FORMATS[p] for p in FORMATS if row["case"].startswith(p)), None)
    cases = [row for row in rows if row["case"] != "(base)" and not is_quantised(row)]
    plain = [row for row in cases if (row["base"], row["case"]) in single and not prefix(row)]
    other = [row for row in cases if (row["base"], row["case"]) in single and prefix(row)]
    several = [row for row in cases if (row["base"], row["case"]) not in single]
    blocks = [row for row in rows if is_quantised(row)]
    option = lambda row: option_of(row["case"])
    order = [words for words, _ in OPTIONS]
    by_option = grouped(plain, option, lambda row: row["base"])
    lines = [HEAD.format(peft=manifest["made_with"]["peft"]), "## Options", "",
             *table("option", {o: by_option[o] for o in order if o in by_option}), "",
             "mistral is a llama in GGUF; llama-untied has an output matrix of its own, llama shares it with the embedding.", "",
             "## Other formats, and other shapes of modules", "",
             *table("format, option", grouped(other, lambda row: f"{prefix(row)}: {option(row)}", lambda row: row["base"])), "",
             "## Factors, and several adapters in one request", "",
             "A factor multiplies LoRA's scale; whole weights and biases go that fraction of their way.", "",
             *table("case", grouped(several, lambda row: words_of[row["base"], row["case"]], lambda row: row["base"])), "",
             "## Base models in blocks", "",
             "Against PEFT on the weights that the blocks stand for. ggml rounds the other factor of such a product to 8 bits, so",
             "the base alone is about 1.5e-2 from float32 arithmetic. An adapter may add half of that and adds next to nothing.", "",
             *table("case", grouped(blocks, lambda row: "the base alone" if row["case"] == "(base)" else option(row),
                                    lambda row: row["base"])), "",
             "## Architectures", "", "| base | general.architecture | what it is | error of the base alone |",
             "| --- | --- | --- | --- |",
             *(f"| {row['base']} | {base_of[row['base']]['architecture']} | {base_of[row['base']]['words']} | "
               f"{row['error']:.1e} |" for row in rows if row["case"] == "(base)" and not is_quantised(row))]
    return "\n".join(lines) + "\n"


def without_digits(text):
    return re.sub(r"\d\.\de[-+]\d\d", "#", text)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--graft", required=True)
    p.add_argument("--check", action="store_true", help="write nothing, compare with the page")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        table_path = Path(tmp) / "rows.json"
        failed = compare.main(["--graft", args.graft, "--combinations", "--json", str(table_path)])
        if failed:
            return failed
        rows = json.loads(table_path.read_text())["rows"]
    text = page(json.loads((HERE / "golden" / "manifest.json").read_text()), rows)
    if not args.check:
        PAGE.write_text(text)
    elif without_digits(PAGE.read_text()) != without_digits(text):
        want, have = (set(without_digits(t).splitlines()) for t in (text, PAGE.read_text()))
        print("docs/compatibility.md is out of date; tests/oracle/compatibility.py --graft PATH writes it anew:")
        print(*(f"- {line}" for line in sorted(have - want)), *(f"+ {line}" for line in sorted(want - have)), sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
