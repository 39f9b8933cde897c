"""The command line: one sub-command, one function. It composes the rooms; heavy imports wait until they are needed.

Exit status: 0 done, 1 failed, 2 bad input (one clear message), 42 preempted after a committed checkpoint.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sft_jax.arguments import parse, require, resolve_config
from sft_jax.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_PREEMPTED,
    BadInput,
    NonFinite,
    Preempted,
    nearest,
)

if TYPE_CHECKING:
    import jax

    from sft_jax.config import RunConfig
    from sft_jax.model.architecture import Architecture
    from sft_jax.train.pretrained import Pretrained
    from sft_jax.train.setup import Inputs
    from sft_jax.train.step import TrainState

USAGE = """\
sft-jax: supervised fine-tuning in JAX

  sft-jax train CONFIG [--section.field value ...]     fine-tune; running it again continues
  sft-jax sample MODEL --prompts F --out F             completions of prompts
  sft-jax score MODEL --data F --out F                 log p of every token of examples
  sft-jax export MODEL --out DIR                       a Hugging Face directory

MODEL is a Hugging Face directory, a .gguf file, a run's workdir (newest checkpoint), or hf://org/name.
`sft-jax COMMAND --help` lists every option with its default.
"""


# --- train ------------------------------------------------------------------------------------------------------------


def train(arguments: Sequence[str]) -> int:
    """sft-jax train CONFIG [--section.field value ...]"""
    run_training(resolve_config(arguments, "sft-jax train"))
    return EXIT_DONE


def run_training(config: "RunConfig") -> "tuple[Inputs, Architecture, TrainState, jax.sharding.Mesh]":
    """A whole run from its config: inputs, devices, state, loop, report. Returns what came of it.

    Raises:
      BadInput, NonFinite, Preempted: see `main` for the exit status of each.
    """
    from rich.console import Console

    from sft_jax.parallel.start import start
    from sft_jax.train.setup import claim_workdir, read_inputs

    distributed = config.distributed
    if distributed.auto:
        start(distributed)  # the cluster alone knows which process this is
        import jax

        first_process = jax.process_index() == 0
    else:
        first_process = distributed.process_id == 0
    inputs = read_inputs(config, first_process)
    if not distributed.auto:
        start(distributed)

    import jax

    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.parallel.rules import layout
    from sft_jax.plan.chips import peak_flops
    from sft_jax.report.page import write_page
    from sft_jax.report.terminal import TrainingProgress
    from sft_jax.train.loop import Callables, Schedule
    from sft_jax.train.loop import train as run_loop
    from sft_jax.train.metrics import MetricsWriter
    from sft_jax.train.preemption import watch_for_preemption
    from sft_jax.train.pretrained import padded
    from sft_jax.train.setup import assemble, batch_shapes_of, check_batch

    mesh = make_mesh(config.mesh)
    check_batch(inputs.config, batch_shapes_of(inputs.source), mesh)
    architecture = padded(inputs.pretrained.architecture, config, mesh)
    claim_workdir(inputs, first_process)
    config = inputs.config
    console = Console(stderr=True, quiet=not first_process, soft_wrap=True, highlight=False)
    for note in inputs.notes:
        console.print(note)
    poll = watch_for_preemption()
    with layout(mesh, config.sharding), contextlib.ExitStack() as stack:
        assembled = assemble(inputs, mesh, poll)
        begin = int(assembled.state.step)
        if begin >= config.train.steps:
            console.print(f"{config.workdir}: already at step {begin} of {config.train.steps}; nothing to do")
            return inputs, architecture, assembled.state, mesh
        if begin:
            console.print(f"continuing {config.workdir} after step {begin} of {config.train.steps}")
        show = stack.enter_context(TrainingProgress(console, begin, config.train.steps)).show
        writer = None
        if first_process:
            writer = MetricsWriter(config.workdir, begin, config.train.tensorboard)
            stack.callback(writer.close)

        def report(row: dict[str, Any]) -> None:
            if writer is not None:
                writer.write(row)
            show(row)

        peak = peak_flops(jax.devices()[0].device_kind)
        state = run_loop(
            assembled.state,
            assembled.frozen,
            inputs.source,
            assembled.shapes,
            assembled.shardings,
            Callables(assembled.update, assembled.evaluate, report, poll),
            Schedule(config.train.steps, config.train.eval_every, config.train.save_every),
            assembled.manager,
            inputs.record,
            architecture,
            peak * jax.device_count() if peak else None,
        )
    if first_process:
        write_page(Path(config.workdir))
        console.print(f"done: {config.workdir} (metrics.jsonl, checkpoints/, report.html)")
    return inputs, architecture, state, mesh


# --- using a model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Devices:
    """How a command that only reads a model is laid out."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    cpu_devices: int = 0
    """Simulate this many CPU devices; 0 leaves the platform's own."""
    fsdp: int = -1
    """Devices that share the parameters and the rows of a batch; -1 takes all."""
    tensor: int = 1
    """Devices that share heads, MLP width and vocabulary."""


@contextlib.contextmanager
def loaded(model: str, devices: Devices, chat_template: str = "") -> "Iterator[tuple[Pretrained, Architecture, dict]]":
    """MODEL on its devices: (what it is, architecture as laid out, parameters), with the layout active."""
    from sft_jax.config import Distributed, Mesh, RunConfig
    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.parallel.rules import layout
    from sft_jax.parallel.start import start
    from sft_jax.train.pretrained import open_pretrained, place

    pretrained = open_pretrained(model, chat_template=chat_template)
    start(Distributed(cpu_devices=devices.cpu_devices))
    config = RunConfig(mesh=Mesh(fsdp=devices.fsdp, tensor=devices.tensor))
    mesh = make_mesh(config.mesh)
    with layout(mesh, config.sharding):
        yield (pretrained, *place(pretrained, config, mesh))


@dataclass(frozen=True)
class Sample:
    """Complete prompts: JSONL records with `messages` (rendered by the chat template) or `prompt` (raw text)."""

    model: Annotated[str, tyro.conf.Positional]
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    prompts: str = ""
    """JSONL file of prompts."""
    out: str = ""
    """JSONL file to write: the record's line as `id`, and its completions; empty prints to the terminal."""
    n: int = 1
    """Completions a prompt."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches top_p."""
    seed: int = 0
    """Seed of the draws."""
    max_new_tokens: int = 256
    """Longest completion, in tokens."""
    batch_size: int = 16
    """Completions generated at once."""
    devices: Devices = field(default_factory=Devices)


def sample(arguments: Sequence[str]) -> int:
    """sft-jax sample MODEL --prompts F --n 4 --temperature T --seed S --out F"""
    options = parse(Sample, arguments, "sft-jax sample")
    require(options, "prompts")
    from sft_jax.data.records import read_records
    from sft_jax.model.decoder import Compute
    from sft_jax.sample.generate import Generator, Sampling
    from sft_jax.sample.prompts import prompt_tokens

    with loaded(options.model, options.devices) as (pretrained, architecture, parameters):
        tokenizer = pretrained.tokenizer
        records = list(read_records((options.prompts,)))
        prompts = [prompt_tokens(record, tokenizer) for record in records]
        longest = max(map(len, prompts)) + options.max_new_tokens
        if longest > architecture.max_positions:
            raise BadInput(
                f"{options.prompts}: the longest prompt and max_new_tokens need {longest} positions, "
                f"{options.model} has {architecture.max_positions}. Lower --max-new-tokens."
            )
        generator = Generator(
            architecture, Compute(dtype=options.devices.dtype), pretrained.stop_ids, len(tokenizer), options.batch_size
        )
        sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
        answers = generator(parameters, prompts, sampling, options.n)
    rows = (
        {
            "id": record.value.get("id", record.where),
            **{key: record.value[key] for key in ("messages", "prompt") if key in record.value},
            "completions": [
                {"text": tokenizer.decode(one.tokens, skip_special_tokens=True), "stopped": one.stopped} for one in each
            ],
        }
        for record, each in zip(records, answers, strict=True)
    )
    _write_lines(rows, options.out)
    return EXIT_DONE


@dataclass(frozen=True)
class Score:
    """log p of every token of examples, and which of them train, under a model."""

    model: Annotated[str, tyro.conf.Positional]
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    data: str = ""
    """JSONL file or glob of demonstrations."""
    out: str = ""
    """JSONL file to write: id, tokens, weights, logprobs (null for the first token); empty prints."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Which tokens have a weight."""
    sequence_length: int = 0
    """Longest example; longer ones are refused. 0 means the model's positions."""
    batch_size: int = 8
    """Examples scored at once."""
    devices: Devices = field(default_factory=Devices)


def score(arguments: Sequence[str]) -> int:
    """sft-jax score MODEL --data F --out F"""
    options = parse(Score, arguments, "sft-jax score")
    require(options, "data")
    from sft_jax.config import Data
    from sft_jax.data.prepare import prepare
    from sft_jax.model.decoder import Compute
    from sft_jax.sample.score import score_examples

    with loaded(options.model, options.devices) as (pretrained, architecture, parameters):
        length = options.sequence_length or architecture.max_positions
        data = Data((options.data,), train_on=options.train_on, over_length="error", sequence_length=length)
        examples = prepare(data, pretrained.tokenizer).examples
        compute = Compute(dtype=options.devices.dtype)
        scores = score_examples(architecture, compute, parameters, examples, options.batch_size)
        rows = (
            {
                "id": example.id,
                "tokens": example.tokens.tolist(),
                "weights": example.weights.tolist(),
                "logprobs": [None, *log_p.tolist()],
            }
            for example, log_p in zip(examples, scores, strict=True)
        )
        _write_lines(rows, options.out)
    return EXIT_DONE


@dataclass(frozen=True)
class Export:
    """Write a model as a Hugging Face directory that transformers, vLLM and others load."""

    model: Annotated[str, tyro.conf.Positional]
    """A Hugging Face directory, a .gguf file, a workdir, or hf://org/name."""
    out: str = ""
    """Directory to create."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Element type of the written tensors."""
    max_shard_bytes: int = 5 * 2**30
    """Largest safetensors file."""
    devices: Devices = field(default_factory=Devices)


def export(arguments: Sequence[str]) -> int:
    """sft-jax export MODEL --out DIR"""
    options = parse(Export, arguments, "sft-jax export")
    require(options, "out")
    from sft_jax.weights.export import export as write_directory

    with loaded(options.model, options.devices) as (pretrained, architecture, parameters):
        write_directory(
            parameters,
            architecture,
            pretrained.hf_config,
            pretrained.tokenizer,
            options.out,
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_bytes,
            generation_config=pretrained.generation_config,
        )
    print(options.out)
    return EXIT_DONE


def _write_lines(rows: Iterator[dict[str, Any]], path: str) -> None:
    """JSON lines into a file, or to the terminal when `path` is empty."""
    with contextlib.ExitStack() as stack:
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        out = stack.enter_context(open(path, "w", encoding="utf-8")) if path else sys.stdout
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- dispatch ---------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sample": sample,
    "score": score,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    sys.exit(run_command(list(sys.argv[1:] if arguments is None else arguments)))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    return exit_status(_dispatch, arguments)


def _dispatch(arguments: Sequence[str]) -> int:
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise BadInput(f"sft-jax: unknown command {name!r}. {nearest(name, tuple(COMMANDS))}")
    return COMMANDS[name](rest)


def exit_status(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run `command`; an expected failure becomes one message on stderr and its status."""
    try:
        return command(arguments)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except NonFinite as error:
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Preempted as error:
        print(f"preempted: {error}", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_FAILED
