"""How fast demonstrations become batches, beside TRL and beside the raw reads; and how much memory it takes.

  make bench-data ARGS="--gsm8k train.jsonl [--rounds 3] [--million 134] [--large-gigabytes 5]"

train.jsonl is GSM8K's (github.com/openai/grade-school-math, MIT): 7,473 rows of question and answer.

preparation   render, tokenise and mask GSM8K's training rows as conversations with SmolLM2's tokenizer: `sft-jax data
              prepare` in its own process against TRL's SFTTrainer, which prepares in its constructor. TRL needs a
              template with {% generation %} marks for it (one written here); both use every core. Start-up of the
              interpreter, imports and the tokenizer are in neither time.
batches       batches of prepared data on one core, against reading the same records raw in the same order.
plans         choosing M and planning the rows of 1 M and 10 M documents with GSM8K's lengths.
start         a prepared set of 1 M examples: from opening it to its first batch.
memory        the highest resident memory while a large JSONL is prepared, all processes together.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MODEL = ".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARKED = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}
{% else %}{{ m['content'] }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def conversations(source: Path, target: Path, copies: int = 1) -> int:
    """GSM8K's rows as messages, `copies` times; returns how many."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for _ in range(copies):
            for row in rows:
                turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
                file.write(json.dumps({"messages": turns}) + "\n")
    return len(rows) * copies


def ours(file: Path, template: str) -> float:
    """Seconds to prepare `file`."""
    from sft_jax.config import Data
    from sft_jax.data.chat.tokenizer import load_tokenizer
    from sft_jax.data.pack.dataset import prepare_split
    from sft_jax.data.pack.store import finish

    tokenizer = load_tokenizer(MODEL)
    if template:
        tokenizer.chat_template = template
    data = Data(train=(str(file),), sequence_length=2048)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        finish(Path(folder), {"train": prepare_split(data, tokenizer, data.train, Path(folder), "train")}, "", "")
        return time.perf_counter() - began


def theirs(file: Path, workers: int) -> float:
    """Seconds that SFTTrainer's constructor takes for `file`, less those it takes for one row."""
    import trl
    from datasets import Dataset, disable_caching, disable_progress_bars
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft_jax.data.chat.tokenizer import load_tokenizer

    disable_caching()
    disable_progress_bars()
    tokenizer = load_tokenizer(MODEL)
    tokenizer.chat_template = MARKED
    shape: dict = dict.fromkeys(("hidden_size", "intermediate_size"), 8)
    shape |= dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def construct(some: list) -> float:
        with tempfile.TemporaryDirectory() as folder:
            arguments = trl.SFTConfig(
                folder, max_length=2048, assistant_only_loss=True, use_cpu=True, bf16=False, report_to="none",
                dataset_num_proc=workers if len(some) > 1 else None,
            )  # fmt: skip
            dataset = Dataset.from_list(some)
            began = time.perf_counter()
            trl.SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer)
            return time.perf_counter() - began

    return construct(rows) - construct(rows[:1])


def batches(file: Path) -> dict[str, float]:
    """Tokens a second of one core: raw reads, and batches, in the order of an epoch."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from sft_jax.data.pack.batches import Batches
    from sft_jax.data.pack.packing import choose_target_capacity, plan_packing
    from sft_jax.data.pack.store import Store

    store = Store(file)
    capacity = choose_target_capacity(store.lengths, store.targets, 2048)
    plan = plan_packing(store.lengths, store.targets, 2048, capacity)
    source = Batches(store, plan, 0, 8)
    order = [i for row in range(plan.rows) for i in source.numbers_of(row)]
    raw, made = [], []
    for _ in range(3):
        began = time.perf_counter()
        for i in order:
            store.raw(i)
        raw.append(time.perf_counter() - began)
        began = time.perf_counter()
        for step in range(source.steps_for(1)):
            source.batch(step)
        made.append(time.perf_counter() - began)
    tokens = int(store.lengths.sum())
    return {"raw": tokens / statistics.median(raw), "batches": tokens / statistics.median(made), "fill": plan.fill}


def plan(folder: Path, documents: int) -> dict[str, float]:
    """Seconds and bytes to choose M and plan the rows of so many documents, drawn from those of a prepared set."""
    import resource

    import numpy as np

    from sft_jax.data.pack.packing import choose_target_capacity, plan_packing
    from sft_jax.data.pack.store import Store

    store = Store(folder)
    drawn = np.random.default_rng(0).integers(0, len(store), documents)
    lengths, targets = store.lengths[drawn], store.targets[drawn]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    made = plan_packing(lengths, targets, 2048, choose_target_capacity(lengths, targets, 2048))
    took = time.perf_counter() - began
    return {"seconds": took, "bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
            "fill": made.fill}  # fmt: skip


def start(folder: Path) -> float:
    """Seconds from opening a prepared set to its first batch."""
    began = time.perf_counter()
    from sft_jax.data.pack.batches import Batches
    from sft_jax.data.pack.packing import choose_target_capacity, plan_packing
    from sft_jax.data.pack.store import Store

    store = Store(folder)
    capacity = choose_target_capacity(store.lengths, store.targets, 2048)
    source = Batches(store, plan_packing(store.lengths, store.targets, 2048, capacity), 0, 64)
    source.batch(0)
    return time.perf_counter() - began


def large(file: Path, out: Path) -> float:
    """Prepare `file` into `out`."""
    from sft_jax.config import Data
    from sft_jax.data.chat.tokenizer import load_tokenizer
    from sft_jax.data.pack.dataset import prepare_split
    from sft_jax.data.pack.store import finish

    data = Data(train=(str(file),), sequence_length=2048)
    began = time.perf_counter()
    finish(out, {"train": prepare_split(data, load_tokenizer(MODEL), data.train, out, "train")}, "", "")
    return time.perf_counter() - began


def peak_of(command: list[str]) -> tuple[str, float]:
    """What a command prints, and the highest resident memory of it and all its children together, in bytes."""
    import psutil

    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, running = 0.0, True

    def watch() -> None:
        nonlocal peak
        me = psutil.Process(process.pid)
        while running:
            total = 0
            for one in [me, *me.children(recursive=True)] if me.is_running() else []:
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)
            time.sleep(0.2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    output, _ = process.communicate()
    running = False
    thread.join(1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return output, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", required="--side" not in sys.argv, help="GSM8K's train.jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-gigabytes", type=float, default=5.0, help="0 leaves the memory part out")
    parser.add_argument("--million", type=int, default=134, help="copies of GSM8K for the start; 134 make 1 M; 0: none")
    parser.add_argument("--side", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, *rest = options.side
        calls = {
            "ours": lambda: ours(Path(rest[0]), ""),
            "ours-marked": lambda: ours(Path(rest[0]), MARKED),
            "theirs": lambda: theirs(Path(rest[0]), len(os.sched_getaffinity(0))),
            "batches": lambda: batches(Path(rest[0])),
            "plan": lambda: plan(Path(rest[0]), int(rest[1])),
            "start": lambda: start(Path(rest[0])),
            "large": lambda: large(Path(rest[0]), Path(rest[1])),
        }
        print(json.dumps(calls[name]()))
        return
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch))


def side(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.parity.bench_data", "--side", *arguments]


def told(*arguments: str) -> Any:
    return json.loads(subprocess.run(side(*arguments), check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def run(options: argparse.Namespace, scratch: Path) -> None:
    chats = scratch / "chats.jsonl"
    rows = conversations(Path(options.gsm8k), chats)
    names = ("ours", "ours-marked", "theirs")
    seconds = {name: [told(name, str(chats)) for _ in range(1)] for name in names}
    for _ in range(options.rounds - 1):
        for name in names:
            seconds[name].append(told(name, str(chats)))
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name in names:
        print(f"preparation, {name}: {rows / middle[name]:,.0f} rows/s ({middle[name]:.2f} s for {rows:,})")
    print(
        f"preparation: {middle['theirs'] / middle['ours']:.1f} x TRL with the stock template, "
        f"{middle['theirs'] / middle['ours-marked']:.1f} x with the marked one"
    )
    prepared = scratch / "prepared"
    large(chats, prepared)
    rates = told("batches", str(prepared))
    print(
        f"batches on one core: {rates['batches'] / 1e6:.1f} M tokens/s, {rates['batches'] / rates['raw']:.0%} of the "
        f"raw reads ({rates['raw'] / 1e6:.1f} M tokens/s); rows of 2,048 tokens {rates['fill']:.2%} full"
    )
    for documents in (1_000_000, 10_000_000):
        planned = told("plan", str(prepared), str(documents))
        print(
            f"plan of {documents:,} documents: {planned['seconds']:.1f} s, {planned['bytes'] / 2**30:.2f} GiB, rows "
            f"{planned['fill']:.2%} full"
        )
    if options.million:
        many = scratch / "many.jsonl"
        number = conversations(Path(options.gsm8k), many, options.million)
        took = told("large", str(many), str(scratch / "many"))
        print(f"preparation of {number:,} rows: {number / took:,.0f} rows/s")
        print(f"start with {number:,} prepared examples: {told('start', str(scratch / 'many')):.1f} s")
        many.unlink()
    if options.large_gigabytes:
        big = scratch / "big.jsonl"
        copies = max(1, round(options.large_gigabytes * 1e9 / chats.stat().st_size))
        conversations(Path(options.gsm8k), big, copies)
        output, peak = peak_of(side("large", str(big), str(scratch / "big")))
        took = json.loads(output.splitlines()[-1])
        print(f"memory: {big.stat().st_size / 1e9:.1f} GB of JSONL prepared in {took:,.0f} s, peak {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
