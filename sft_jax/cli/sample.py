"""sft-jax sample MODEL --prompts F --n 4 --out F"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft_jax.cli.arguments import check_writable, parse
from sft_jax.cli.options import ModelOptions, ModelPath, at_least, load_model, stages, write_lines, write_text
from sft_jax.config import Data
from sft_jax.errors import EXIT_DONE, BadInput

if TYPE_CHECKING:
    from sft_jax.evaluate.task import Task


@dataclass(frozen=True)
class Sample(ModelOptions):
    """Complete prompts, once or several times each."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a run's workdir, or hf://org/name."""
    prompt: tuple[str, ...] = ()
    """Prompts to answer right here, as user messages; the completions are printed as text."""
    prompts: str = ""
    """File of rows, in any form that trains; the prompt is everything before the first trained assistant turn."""
    out: str = ""
    """JSONL file to write: id, messages or prompt, completions with tokens and log-probabilities. Empty: print."""
    n: int = 1
    """Completions per prompt."""
    temperature: float = 0.0
    """0 is greedy: the most probable token."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches top_p."""
    top_k: int = 0
    """Sample from the k most probable tokens; 0: all."""
    min_p: float = 0.0
    """Sample from tokens at least min_p times as probable as the most probable one."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are not part of it."""
    seed: int = 0
    """Sampling seed. A completion depends on it, its prompt's position and its own number, not on batches or mesh."""
    max_new_tokens: int = 256
    """Longest completion, in tokens."""
    batch_size: int = 16
    """Completions per batch."""


def sample(arguments: Sequence[str]) -> int:
    """sft-jax sample MODEL --prompts F --n 4 --temperature T --seed S --out F"""
    options = parse(Sample, arguments, "sft-jax sample")
    if bool(options.prompts) == bool(options.prompt):
        given = "both" if options.prompt else "neither"
        raise BadInput(f'sft-jax sample: give --prompts FILE or --prompt "TEXT": found {given}')
    at_least(options, 1, "n", "max_new_tokens", "batch_size")
    at_least(options, 0, "temperature", "seed", "top_k", "min_p")
    if not 0 < options.top_p <= 1:
        raise BadInput(f"--top-p is {options.top_p}, expected more than 0 and at most 1")
    if not options.min_p <= 1:
        raise BadInput(f"--min-p is {options.min_p}, expected at most 1")
    if "" in options.stop:
        raise BadInput("--stop has an empty string, which would end every completion at once")
    check_writable(options.out)
    from rich.console import Console

    from sft_jax.evaluate.evaluation import read_tasks
    from sft_jax.evaluate.sampled import sampled_row, written
    from sft_jax.report.terminal import count_progress
    from sft_jax.sample.draw import Sampling

    tasks = read_tasks(Data((options.prompts,)), (options.prompts,)) if options.prompts else None
    if tasks is not None and not tasks:
        raise BadInput(f"{options.prompts}: no row has a prompt to answer: text and tokens have none")
    model = load_model(options.model, options)
    if tasks is None:
        tasks = _typed(options.prompt, bool(model.tokenizer.chat_template))
    sampling = Sampling(
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.seed,
        options.top_k,
        options.min_p,
        options.stop,
    )
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with stages()(f"generating {len(tasks) * options.n:,} completions"):
        progress = count_progress(console, "completions")
        answers = model.answer(tasks, sampling, options.n, options.batch_size, progress)
    rows = [sampled_row(task, each, model.tokenizer) for task, each in zip(tasks, answers, strict=True)]
    if options.prompt and not options.out:
        write_text("\n".join(written(one).strip() for one in row["completions"]) for row in rows)
    else:
        write_lines(rows, options.out)
    return EXIT_DONE


def _typed(prompts: Sequence[str], is_chat: bool) -> "list[Task]":
    """Prompts from the command line: user messages, or plain text for a model without a chat template."""
    from sft_jax.data.read.rows import Record
    from sft_jax.evaluate.task import task_of

    rows = [{"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text} for text in prompts]
    return [task_of(Record("--prompt", number, row), Data(())) for number, row in enumerate(rows, start=1)]
