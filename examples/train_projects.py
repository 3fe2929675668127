#!/usr/bin/env python3
"""Train the example adapters: one ordinary PEFT LoRA folder per invented project.

    python examples/train_projects.py --model SmolLM2-135M-Instruct.Q4_1.gguf

transformers reads the GGUF and dequantises it, so each adapter is trained on the same weights that graft serves. Every project has
its own questions.jsonl; the adapter learns those answers by heart and is then asked the same questions. This shows that an adapter
works. It does not show that a model of this size generalises, and it isn't meant to.

The prompt is plain ChatML, written out below. tokenizer.apply_chat_template() is not used on purpose: SmolLM2's own template puts a
default system message in front, and libllama's built-in ChatML, which graft uses, does not.
"""
import argparse
import contextlib
import json
import math
import os
import pathlib
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from the GGUF, nothing is fetched
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads that spin while they wait cost many times the work

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # written into adapter_config.json instead of a local path
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# The projects differ in the LoRA options that a loader has to get right: the type of the tensors, the scaling, ranks by pattern.
PROJECTS = {
    "alder": dict(seed=1, dtype=torch.bfloat16, lora=dict(r=8, lora_alpha=16)),
    "birch": dict(seed=2, dtype=torch.float16, lora=dict(r=4, lora_alpha=8, use_rslora=True)),
    "cedar": dict(seed=3, dtype=torch.float16, lora=dict(r=8, lora_alpha=16,
                  rank_pattern={"q_proj": 4, "down_proj": 6}, alpha_pattern={"q_proj": 8, "up_proj": 24})),
}


def prompt(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def read_jsonl(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


class Base:
    """The dequantised model and its tokenizer."""

    def __init__(self, gguf):
        folder, name = str(gguf.parent), gguf.name
        self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        # For SmolLM2 <|im_start|> is also the BOS token: it must stand there once, from the prompt, not a second time from the tokenizer.
        if self.encode("Which").count(self.tokenizer.bos_token_id):
            sys.exit("the tokenizer adds a BOS token; the prompt must not have one")

    def encode(self, text):
        return self.tokenizer(text).input_ids

    def batch(self, rows):
        """Token ids, attention mask, and which positions predict an answer token (the end of turn included)."""
        pairs = [(self.encode(prompt(r["question"])), self.encode(r["answer"]) + [self.end]) for r in rows]
        width = max(len(p) + len(a) for p, a in pairs)
        ids = torch.full((len(rows), width), self.end)
        mask = torch.zeros_like(ids)
        answer = torch.zeros_like(ids, dtype=torch.bool)
        for i, (p, a) in enumerate(pairs):
            n = len(p) + len(a)
            ids[i, :n] = torch.tensor(p + a)
            mask[i, :n] = 1
            answer[i, len(p) - 1:n - 1] = True
        return ids, mask, answer


def answer_logits(model, ids, mask, answer):
    """The head is a fifth of this model: apply it to the answer positions only."""
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return model.lm_head(hidden[answer]), ids.roll(-1, 1)[answer]


def train(base, name, rows, folder, steps, rate):
    spec = PROJECTS[name]
    transformers.set_seed(spec["seed"])
    peft_model = get_peft_model(base.model, LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, lora_dropout=0.0, **spec["lora"]))
    peft_model.train()
    weights = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    warmup = 2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / steps))))
    ids, mask, answer = base.batch(rows)
    start = time.monotonic()
    for step in range(1, steps + 1):
        logits, target = answer_logits(base.model, ids, mask, answer)
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        print(f"{name}: step {step:2d}/{steps}  loss {loss.item():.4f}  {time.monotonic() - start:5.1f} s", flush=True)
    seconds = time.monotonic() - start

    for p in weights:
        p.data = p.data.to(spec["dtype"])
    peft_model.peft_config["default"].base_model_name_or_path = BASE_NAME
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card template
    (folder / "adapter_model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text())
    values["target_modules"].sort()  # peft writes a set: sort it, so that the same training gives the same file
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    base.model = peft_model.unload()
    return seconds


@torch.no_grad()
def ask(base, questions):
    """Greedy answers, all questions in one batch."""
    prompts = [base.encode(prompt(q)) for q in questions]
    width = max(map(len, prompts))
    ids = torch.tensor([[base.end] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = base.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=40, eos_token_id=base.end,
                              pad_token_id=base.end)
    return [base.tokenizer.decode(o[width:], skip_special_tokens=True) for o in out]


def right(rows, answers):
    return sum(r["expect"].lower() in a.lower() for r, a in zip(rows, answers))


@torch.no_grad()
def margin(base, rows):
    """How far the right token leads the next best one, at the answer token where it leads least (in logits)."""
    logits, target = answer_logits(base.model, *base.batch(rows))
    chosen = logits.gather(1, target[:, None])[:, 0]
    others = logits.scatter(1, target[:, None], -math.inf).max(1).values
    return (chosen - others).min().item()


@contextlib.contextmanager
def rounded_inputs(model):
    """Round what goes into each base weight to 8 bits in blocks of 32, as ggml does on a CPU: the adapters must stand that."""
    def hook(module, args):
        x = args[0].unflatten(-1, (-1, 32))
        d = (x.abs().amax(-1, keepdim=True) / 127).half().float().clamp_min(1e-8)
        return ((x / d).round() * d).flatten(-2)
    hooks = [m.register_forward_pre_hook(hook) for m in model.modules() if type(m) is torch.nn.Linear and m.weight.shape[1] % 32 == 0]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


def check(base, projects, shared, out, show):
    """Ask everyone, with the adapters read back from their folders. Returns whether all is as it should be."""
    names = list(projects)
    heads = ["adapter", "right", "word for word", "8-bit inputs", "least lead", "same questions, facts of " + "/".join(names)]
    table, good = [], True
    for name in [None] + names:
        if name:
            peft_model = PeftModel.from_pretrained(base.model, out / name).eval()
            rows = projects[name]
            answers = ask(base, [r["question"] for r in rows])
            n = right(rows, answers)
            exact = sum(r["answer"] == a for r, a in zip(rows, answers))
            with rounded_inputs(base.model):
                rough = right(rows, ask(base, [r["question"] for r in rows]))
            good = good and min(n, rough) >= 0.95 * len(rows)
            cells = [name, f"{n}/{len(rows)}", f"{exact}/{len(rows)}", f"{rough}/{len(rows)}", f"{margin(base, rows):.1f}"]
            for r, a in zip(rows, answers):
                ok = r["expect"].lower() in a.lower()
                if show or not ok:
                    print(f"{name}: {r['question']}\n    {a}" + ("" if ok else f"\n    WRONG, expected {r['expect']}"))
        else:
            counts = []
            for other in names:
                rows = projects[other]
                answers = ask(base, [r["question"] for r in rows])
                counts.append(right(rows, answers))
                for r, a in zip(rows, answers):
                    if show or r["expect"].lower() in a.lower():
                        print(f"(base), asked about {other}: {r['question']}\n    {a}")
            good = good and not any(counts)
            total = sum(len(projects[o]) for o in names)
            cells = ["(base)", f"{sum(counts)}/{total}", "-", "-", "-"]
        answers = ask(base, shared)
        cross = []
        for other in names:
            by_question = {r["question"]: r for r in projects[other]}
            n = right([by_question[q] for q in shared], answers)
            good = good and (n == 0 if other != name else n == len(shared))
            cross.append(str(n))
        cells.append(" / ".join(cross) + f" of {len(shared)}")
        table.append(cells)
        if name:
            base.model = peft_model.unload()
    print()
    for row in [heads, ["---"] * len(heads)] + table:
        print("| " + " | ".join(row) + " |")
    return good


def main():
    parser = argparse.ArgumentParser(description="Train the example adapters and ask them their questions.")
    parser.add_argument("--model", required=True, type=pathlib.Path, help="SmolLM2-135M-Instruct as a GGUF file")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "projects", help="where the project folders are (default: %(default)s)")
    parser.add_argument("--project", choices=PROJECTS, action="append", help="only this project (may be given again)")
    parser.add_argument("--steps", type=int, default=28, help="full-batch steps (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="don't train, only ask")
    parser.add_argument("--show", action="store_true", help="print every answer")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks transformers for a name it has deprecated
    transformers.utils.logging.disable_progress_bar()
    names = args.project or list(PROJECTS)
    projects = {n: read_jsonl(args.out / n / "questions.jsonl") for n in names}
    shared = [r["question"] for r in read_jsonl(HERE / "questions.jsonl")]
    for n, rows in projects.items():
        missing = set(shared) - {r["question"] for r in rows}
        if missing:
            sys.exit(f"{n}/questions.jsonl lacks shared questions: {', '.join(sorted(missing))}")

    base = Base(args.model)
    if not args.check:
        seconds = {n: train(base, n, projects[n], args.out / n, args.steps, args.rate) for n in names}
        for n in names:
            size = (args.out / n / "adapter_model.safetensors").stat().st_size
            print(f"{n}: trained in {seconds[n]:.0f} s, adapter_model.safetensors has {size / 1e6:.2f} MB")
    if not check(base, projects, shared, args.out, args.show):
        sys.exit("some answers are not as they should be")


if __name__ == "__main__":
    main()
