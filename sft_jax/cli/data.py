"""The commands that look at demonstrations and train nothing: data audit, data prepare, data dump."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_jax.cli.arguments import check_writable, config_with_options, require
from sft_jax.config import RunConfig, Train, validate
from sft_jax.errors import EXIT_BAD_INPUT, EXIT_DONE, BadInput, nearest
from sft_jax.storage.location import Location, require_local

USUAL = (
    "model.path", "data.train", "data.eval", "data.sequence-length", "data.train-on", "data.over-length",
    "data.bad-rows", "data.chat-template", "data.format", "data.fields", "data.function",
)  # fmt: skip
"""What `--help` shows of the sections."""
USAGE = """\
usage: sft-jax data audit|prepare|dump [CONFIG] [--option value ...]

  audit              what trains, what is left out and why, what looks wrong
  prepare --out DIR  tokenise once, for many runs
  dump --out FILE    tokens and loss weights of every example, as JSONL

The options of each: sft-jax data audit --help
"""


@dataclass(frozen=True)
class Audit(RunConfig):
    """Show which tokens train, what is dropped, and problems with the data."""

    json: bool = False
    """Print the audit as JSON instead of tables."""
    html: str = ""
    """HTML page to write."""
    examples: int = 12
    """Examples to show with their tokens."""


@dataclass(frozen=True)
class Prepare(RunConfig):
    """Tokenise demonstrations once, for many runs, into a TFDS dataset."""

    out: str = ""
    """Directory to create, local or gs://bucket/path. Interrupted preparations resume. Train with --data.train DIR
    --data.eval DIR:eval."""
    licence: str = ""
    """Licence of the demonstrations, stored in the dataset's metadata."""
    description: str = ""
    """What the demonstrations are, stored in the dataset's metadata."""


@dataclass(frozen=True)
class Dump(RunConfig):
    """Write the tokens and loss weights of every training example, in source order."""

    out: str = ""
    """JSONL file to write: id, source, tokens, weights."""


def data(arguments: Sequence[str]) -> int:
    """sft-jax data audit|prepare|dump CONFIG [--section.field value ...]"""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return EXIT_DONE if arguments else EXIT_BAD_INPUT
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise BadInput(f"sft-jax data: unknown command {name!r}. {nearest(name, tuple(COMMANDS))}")
    return COMMANDS[name](rest)


def audit(arguments: Sequence[str]) -> int:
    """sft-jax data audit [CONFIG] [--json] [--html F]"""
    given, options = config_with_options(Audit, arguments, "sft-jax data audit", USUAL, check=lambda _: None)
    config = for_audit(given)
    validate(config)
    require_local(options.html, "--html")
    check_writable(options.html, option="--html")
    if options.examples < 1:
        raise BadInput(f"--examples is {options.examples}, expected at least 1")
    from rich.console import Console

    from sft_jax.data import audit as checks
    from sft_jax.data.pack.prepare import NothingTrains
    from sft_jax.report.audit import audit_page, audit_tables, faults_text
    from sft_jax.storage.atomic import write_atomic
    from sft_jax.train.inputs import pack, read_demonstrations

    try:
        found = read_demonstrations(config, Location(config.workdir), _progress())
    except NothingTrains as error:
        faults = checks.faults_of(error.dropped, error.counts)
        print(json.dumps({"faults": faults}) if options.json else "\n".join(faults_text(faults)))
        raise
    config = dataclasses.replace(config, data=found.data)
    source, _, _ = pack(config, found.train)
    stops, limit = set(found.pretrained.stop_ids), config.data.sequence_length
    report: dict[str, Any] = {}
    report["train"], digests = checks.audit_split(found.train, stops, limit)
    if found.eval:
        report["eval"], _ = checks.audit_split(found.eval, stops, limit)
        report["overlap"] = checks.overlap(digests, found.eval)
    steps = config.train.steps or source.steps_for(config.train.epochs)
    report["packing"] = checks.packing_of(source, steps)
    tokenizer = found.pretrained.tokenizer
    report["examples"] = checks.shown_examples(found.train, tokenizer, options.examples)
    report["packed_rows"] = checks.shown_rows(source, tokenizer, 2)
    if options.html:
        page = audit_page(report, f"Audit of {', '.join(config.data.train)}")
        write_atomic(Path(options.html), lambda file: file.write(page.encode()))
        print(options.html, file=sys.stderr)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        Console(soft_wrap=True, highlight=False).print(audit_tables(report))
    refused = checks.refusals(given.data, [report[split] for split in ("train", "eval") if split in report])
    if refused:
        raise BadInput("\n".join(refused))
    return EXIT_DONE


def for_audit(config: RunConfig) -> RunConfig:
    """The config as an audit reads it: every row, whatever is wrong with it, and nothing of how a run trains."""
    data, train = config.data, config.train
    over_length = "drop" if data.over_length == "error" else data.over_length
    return RunConfig(
        workdir=config.workdir,
        model=config.model,
        data=dataclasses.replace(data, bad_rows="skip", over_length=over_length, streaming=False),
        train=Train(steps=train.steps, epochs=train.epochs, batch_size=train.batch_size, seed=train.seed),
        loss=config.loss,
    )


def prepare(arguments: Sequence[str]) -> int:
    """sft-jax data prepare CONFIG --out DIR"""
    config, options = config_with_options(Prepare, arguments, "sft-jax data prepare")
    require(options, "out", "sft-jax data prepare")
    check_writable(options.out, directory=True)
    if config.data.weights:
        raise BadInput(
            "data.weights: a mixture is made when a run reads it. Prepare each entry of data.train into a directory "
            "of its own, and give those as data.train with the weights."
        )
    from sft_jax.data.pack.dataset import prepare_split, provenance
    from sft_jax.data.pack.store import METADATA, Store, finish, is_store
    from sft_jax.train.inputs import read_as, template_date
    from sft_jax.weights.pretrained import open_pretrained

    tokenizer = open_pretrained(config.model.path, config.data.tokenizer, config.data.chat_template).tokenizer
    date = template_date(config, tokenizer)
    chosen = dataclasses.replace(read_as(config).data, template_date=date)
    out = Location(options.out)
    directory = out.local()
    wanted = {"train": chosen.train, **({"eval": chosen.eval} if chosen.eval else {})}
    if is_store(directory):
        before = json.loads((directory / METADATA).read_text(encoding="utf-8"))
        same = before.keys() == wanted.keys() and all(
            before[split].items() >= provenance(chosen, tokenizer, files).items() for split, files in wanted.items()
        )
        if not same:
            raise BadInput(f"--out {out} holds another dataset; name a new directory or remove it")
        print(f"{out}: prepared already", file=sys.stderr)
        return EXIT_DONE
    made = {
        split: prepare_split(chosen, tokenizer, files, directory, split, _progress()) for split, files in wanted.items()
    }
    about = options.description or f"Demonstrations tokenised by sft_jax: {', '.join(chosen.train)}"
    finish(directory, made, about, options.licence)
    out.publish()
    for split in made:
        store = Store(directory, split)
        print(
            f"{out}:{split}: {len(store):,} examples, {int(store.lengths.sum(dtype='int64')):,} tokens, "
            f"{int(store.targets.sum(dtype='int64')):,} trained"
        )
    return EXIT_DONE


def dump(arguments: Sequence[str]) -> int:
    """sft-jax data dump CONFIG --out F"""
    config, options = config_with_options(Dump, arguments, "sft-jax data dump")
    require(options, "out", "sft-jax data dump")
    _refuse_streaming(config)
    require_local(options.out, "--out")
    check_writable(options.out)
    from sft_jax.train.inputs import read_demonstrations

    found = read_demonstrations(config, Location(config.workdir), _progress())
    with open(options.out, "w", encoding="utf-8") as file:
        for store in found.train:
            for e in store:
                row = {"id": e.id, "source": e.where, "tokens": e.tokens.tolist(), "weights": e.weights.tolist()}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return EXIT_DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"audit": audit, "prepare": prepare, "dump": dump}


def _refuse_streaming(config: RunConfig) -> None:
    if config.data.streaming:
        raise BadInput(
            "data.streaming: nothing is prepared, so there is nothing to look at as a whole. Prepare it here with "
            "--data.streaming False, perhaps a part of it (--data.train)."
        )


def _progress() -> Callable[[int], None]:
    from rich.console import Console

    from sft_jax.report.terminal import rows_progress

    return rows_progress(Console(stderr=True, highlight=False))
