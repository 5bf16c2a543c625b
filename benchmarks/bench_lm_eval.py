"""Can what `export` writes be trained and then judged by lm-evaluation-harness without any code in between?

usage: python benchmarks/bench_lm_eval.py [--steps N] [--work DIR] [--out FILE]

For each backbone: `edge-lts export --format hf`, a tokenizer saved beside it, transformers' Trainer on a made-up
language, then the `lm_eval` command line on the untrained and on the trained folder. Nothing is downloaded: the
language, the tasks (local YAML and JSON lines) and the tokenizer are made here from a seed.

The language: a noun, perhaps a second one behind a preposition, and the first noun's own verb in its number. Half of
the questions have a second noun of the other number, which fools whoever looks at the nearest noun only, and no pair of
nouns in a question occurs in training. Three tasks: which form of the verb fits (log-likelihoods; guessing is 0.5),
naming the verb (generation, prompts of unlike length in one batch; guessing is 1/12), bits per byte of held-out text.

Needs `pip install "edge-lts[local,export]" lm_eval accelerate`. Fails when a trained model is not right in 95 % of
the choices or the untrained one is, for then the task asks nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, where, where_line, write_result

WANTED_ACCURACY = 0.95
SEED = 0
N_TRAIN, N_QUESTIONS, N_TEXTS = 6000, 400, 100
NOUNS = (
    *("dog", "cat", "bird", "child", "farmer", "doctor", "robot"),
    *("king", "letter", "river", "cloud", "train", "garden", "engine", "teacher"),
)
VERBS = {"run": "runs", "sleep": "sleeps", "fall": "falls", "move": "moves", "wait": "waits", "grow": "grows"}
ADJECTIVES = ("old", "small", "green", "quiet", "heavy", "bright")
PREPOSITIONS = ("near", "behind", "above", "with")
SHAPES = {
    "gpt2": {"layers": [(2, 96), (4, 192), (8, 320)], "d_model": 64},
    "transformer-xl": {"layers": [(4, 128), (2, 256), (8, 192)], "d_model": 64},
}
NEEDED = ("torch", "transformers", "tokenizers", "accelerate", "lm_eval")
SPECIAL = ("<pad>", "<end>")
TASKS = {
    "agreement_choice": """\
output_type: multiple_choice
doc_to_text: "{{prefix}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "agreement_generate": """\
output_type: generate_until
doc_to_text: "{{prefix}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 3, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
filter_list:
  - name: first_word
    filter:
      - {function: regex, regex_pattern: "(\\\\w+)"}
      - {function: take_first}
""",
    "agreement_text": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
}


def plural(noun: str) -> str:
    return "children" if noun == "child" else f"{noun}s"


def sentence(rng: random.Random, *, is_question: bool) -> dict[str, Any]:
    """A sentence as prefix, the two forms of its verb and which is right. Questions have noun pairs of their own."""
    is_plural = rng.random() < 0.5
    first, second = rng.sample(range(len(NOUNS)), 2)
    has_second = is_question or rng.random() < 0.6
    if has_second:
        while ((first + second) % 5 == 0) != is_question:
            first, second = rng.sample(range(len(NOUNS)), 2)
    form = plural(NOUNS[first]) if is_plural else NOUNS[first]
    words = ["the", *([rng.choice(ADJECTIVES)] if rng.random() < 0.5 else []), form]
    is_fooling = rng.random() < 0.5
    if has_second:
        other_plural = is_plural != is_fooling
        words += [rng.choice(PREPOSITIONS), "the", plural(NOUNS[second]) if other_plural else NOUNS[second]]
    bare = sorted(VERBS)[first % len(VERBS)]
    return {"prefix": " ".join(words), "choices": [VERBS[bare], bare], "answer": int(is_plural)}


def text_of(one: dict[str, Any]) -> str:
    return f"{one['prefix']} {one['choices'][one['answer']]} ."


def write_tokenizer(folder: Path) -> None:
    """A word each: the language has fewer than a hundred."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words())}, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        unk_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        padding_side="left",
    )
    fast.save_pretrained(folder)


def words() -> list[str]:
    nouns = [form for noun in NOUNS for form in (noun, plural(noun))]
    verbs = [form for pair in sorted(VERBS.items()) for form in pair]
    return [*SPECIAL, ".", "the", *nouns, *verbs, *ADJECTIVES, *PREPOSITIONS]


def train(start: Path, folder: Path, texts: list[str], steps: int) -> dict[str, float]:
    """Trainer as anybody would use it; the trained model and its tokenizer in `folder`."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(start, trust_remote_code=True)
    data = [{"input_ids": torch.tensor(tokenizer(f"{text} {SPECIAL[1]}")["input_ids"])} for text in texts]
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        logging_steps=max(1, steps // 5),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=SEED,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=collator, processing_class=tokenizer
    )
    begun = time.monotonic()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(str(folder))
    return {"first_loss": losses[0], "last_loss": losses[-1], "train_s": round(time.monotonic() - begun, 1)}


def write_tasks(folder: Path, rng: random.Random) -> None:
    folder.mkdir()
    questions = [sentence(rng, is_question=True) for _ in range(N_QUESTIONS)]
    texts = [{"text": text_of(sentence(rng, is_question=True))} for _ in range(N_TEXTS)]
    for name, rows in (("questions", questions), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, body in TASKS.items():
        data = folder / ("texts.jsonl" if name == "agreement_text" else "questions.jsonl")
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(head + body)


def lm_eval(model: Path, tasks: Path, work: Path) -> dict[str, Any]:
    """Its command line, offline; {task: {metric: value}}."""
    out = work / f"scores-{model.name}"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf"]
    command += ["--model_args", f"pretrained={model},trust_remote_code=True,dtype=float32"]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(tasks), "--device", "cpu", "--batch_size", "16"]
    command += ["--output_path", str(out), "--seed", str(SEED)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(work / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    (path,) = out.rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    return {
        task: {key.partition(",")[0]: value for key, value in values.items() if isinstance(value, float)}
        for task, values in found.items()
    }


def one_backbone(backbone: str, work: Path, steps: int) -> dict[str, Any]:
    from edge_lts.arch import Architecture

    layers = [{"n_head": n_head, "d_inner": d_inner} for n_head, d_inner in SHAPES[backbone]["layers"]]
    shape = {"backbone": backbone, "d_model": SHAPES[backbone]["d_model"], "layers": layers}
    arch = Architecture.from_json({**shape, "vocab_size": len(words()), "max_seq_len": 64})
    (work / "arch.json").write_text(json.dumps(arch.to_json()))
    command = [sys.executable, "-m", "edge_lts_host", "export", str(work / "arch.json"), "--to", str(work)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'host'}"}
    subprocess.run([*command, "--format", "hf"], env=environment, check=True, stdout=subprocess.DEVNULL)
    untrained, trained = work / "hf", work / "trained"
    write_tokenizer(untrained)
    rng = random.Random(SEED)
    texts = [text_of(sentence(rng, is_question=False)) for _ in range(N_TRAIN)]
    write_tasks(work / "tasks", rng)
    entry = {"architecture": arch.to_json(), "arch_id": arch.arch_id, "total_params": arch.total_params}
    entry["training"] = {"steps": steps, **train(untrained, trained, texts, steps)}
    entry["untrained"] = lm_eval(untrained, work / "tasks", work)
    entry["trained"] = lm_eval(trained, work / "tasks", work)
    return entry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--work", type=Path, help="keep what is made here (default: a folder that goes away)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "lm_eval_x86_64_202611.json")
    args = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: needs {', '.join(missing)}")
        return 0
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        entries = {}
        for backbone in SHAPES:
            work = (args.work or Path(scratch)) / backbone
            work.mkdir(parents=True)
            os.environ["HF_HOME"] = str(work / "home")
            entries[backbone] = one_backbone(backbone, work, args.steps)
            print(backbone, json.dumps({key: entries[backbone][key] for key in ("training", "untrained", "trained")}))
    versions = {
        name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "tokenizers", "accelerate")
    }
    found = where(versions=versions)
    write_result(
        args.out,
        {"where": found, "command": f"python benchmarks/bench_lm_eval.py --steps {args.steps}", "backbones": entries},
        page(found, entries),
    )
    accuracies = [(e["untrained"], e["trained"]) for e in entries.values()]
    is_met = all(
        before["agreement_choice"]["acc"] < WANTED_ACCURACY <= after["agreement_choice"]["acc"]
        for before, after in accuracies
    )
    return 0 if is_met else 1


def page(found: dict[str, Any], entries: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# An exported model, trained and judged by lm-evaluation-harness",
        "",
        where_line(found),
        f"{versions}. `python benchmarks/bench_lm_eval.py`; nothing is downloaded, and no code stands between",
        "`export`, Trainer and lm_eval.",
        f"{N_QUESTIONS} questions about a made-up language (see the script): the verb goes with the first of two nouns",
        "",
        "| backbone | parameters | weights | right verb of two | names the right verb | bits per byte |",
        "|---|---|---|---|---|---|",
    ]
    for backbone, entry in entries.items():
        for state in ("untrained", "trained"):
            scores = entry[state]
            words = state if state == "untrained" else f"{entry['training']['steps']} steps"
            lines.append(
                f"| {backbone} | {entry['total_params']:,} | {words} | {scores['agreement_choice']['acc']:.3f} "
                f"| {scores['agreement_generate']['exact_match']:.3f} "
                f"| {scores['agreement_text']['bits_per_byte']:.3f} |"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
