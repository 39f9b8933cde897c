"""Inputs of a run that are read from files, identical on every process and mesh; uses no devices."""

import dataclasses
import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_jax.config import LOSSES, Data, RunConfig
from sft_jax.data.pack.batches import Batches, batches_of
from sft_jax.data.pack.dataset import Locate, Progress, account, open_entry, prepare_entry
from sft_jax.data.pack.mixture import Mixture, row_shares
from sft_jax.data.pack.packing import Plan, choose_target_capacity, permutation, plan_packing
from sft_jax.data.pack.prepare import check_vocabulary, describe_counts
from sft_jax.data.pack.store import INFO, Chosen, Joined, Store, is_store
from sft_jax.distributed.agree import run_on_first_process, wait_for
from sft_jax.errors import BadInput
from sft_jax.losses.kinds import check_head
from sft_jax.storage.location import Location
from sft_jax.train.workdir import begun_as_first_sees_it, check_same_record, check_same_run
from sft_jax.weights.pretrained import Pretrained, open_base

if TYPE_CHECKING:
    from sft_jax.data.pack.streaming import Streamed

TARGET_MULTIPLE = 32
"""M is a multiple of this times the context axis. The head multiplies b * M rows at once, so its matmuls are aligned to
128 for four rows or more; multiples of 128 would waste two thirds of the head on short rows."""

PREPARED = "prepared"
"""Subdirectory of the workdir for tokenised demonstrations."""


@dataclass(frozen=True)
class Inputs:
    """Everything read from files, identical on every process and mesh."""

    config: RunConfig
    """With target_capacity, steps and template_date resolved."""
    workdir: Location
    pretrained: Pretrained
    source: "Batches | Mixture | Streamed"
    evaluation: Batches | None
    record: dict[str, Any]
    """Fingerprints of the data and of the packing plan, saved with every checkpoint."""
    notes: list[str]
    """Lines for the log: counts, what was dropped, fill."""


@dataclass(frozen=True)
class Demonstrations:
    """The data of a config, tokenised."""

    pretrained: Pretrained
    data: Data
    """With template_date resolved."""
    train: tuple[Store, ...]
    """One store per entry of data.train; none if streaming."""
    eval: tuple[Store, ...]


def read_demonstrations(
    config: RunConfig,
    workdir: Location,
    progress: Progress | None = None,
    locate: Locate = Location,
    begun: RunConfig | None = None,
) -> Demonstrations:
    """Open the model's config and tokenizer, and tokenise the demonstrations unless that has been done.

    Process 0 reads the demonstrations and determines the date for all processes.

    Args:
      workdir: where tokenised demonstrations are stored.
      begun: the resolved config of the run to resume, if any.
      progress: called with the number of rows encoded so far, restarting at 0 for each entry.
      locate: returns the same Location for the same name, if several runs share their copies from a bucket.

    Raises:
      BadInput: the model or data is unusable, or sequences exceed the model's positions.
    """
    locate = functools.cache(locate)  # data.train and data.eval may name two splits of one dataset
    pretrained = open_base(config, locate)
    limit = pretrained.architecture.max_positions
    if config.data.sequence_length > limit:
        raise BadInput(
            f"data.sequence_length is {config.data.sequence_length}, but {config.model.path} supports at most "
            f"{limit} positions. Lower data.sequence_length to {limit} or less."
        )
    check_head(config, pretrained.architecture)
    seconds = config.distributed.timeout_seconds
    date = run_on_first_process(
        "determines the date", lambda _: template_date(config, pretrained.tokenizer, begun), seconds
    )
    data = dataclasses.replace(read_as(config).data, template_date=date)

    def opened(entry: str) -> Store:
        tokenizer, cache = pretrained.tokenizer, workdir / PREPARED
        name = run_on_first_process(
            "prepares the data",
            lambda keep_alive: prepare_entry(data, tokenizer, entry, cache, progress, locate, keep_alive),
            seconds,
        )
        if name:
            wait_for(lambda: is_store(cache / name), cache / name / INFO, seconds)
        store = open_entry(data, tokenizer, entry, cache, name, locate)
        check_vocabulary(store, pretrained.architecture.vocab, config.model.path)
        return store

    train, held_out = (tuple(map(opened, entries)) for entries in ((() if data.streaming else data.train), data.eval))
    return Demonstrations(pretrained, data, train, held_out)


def read_as(config: RunConfig) -> RunConfig:
    """The config with the resolved data.format: a reward run always reads pairs.

    Apply this before comparing a config with a resolved config or with prepared data.
    """
    if not LOSSES.settings_type(config.loss.kind).reads_pairs:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, format="pair"))


def template_date(config: RunConfig, tokenizer: Any, begun: RunConfig | None = None) -> str:
    """The date for the chat template: the config's, the resumed run's, or today; "" if it prints no date."""
    if config.data.template_date or "strftime_now" not in str(tokenizer.chat_template):
        return config.data.template_date
    before = begun.data.template_date if begun else ""
    return before or datetime.date.today().isoformat()


def read_inputs(
    config: RunConfig,
    workdir: Location,
    progress: Progress | None = None,
    locate: Locate = Location,
) -> Inputs:
    """`read_demonstrations`, then plan the packing and the number of steps.

    Args:
      progress, locate: as `read_demonstrations`.

    Raises:
      BadInput: as `read_demonstrations`; a workdir that holds another run, or is in a bucket and not writable.
    """
    config = read_as(config)
    begun = begun_as_first_sees_it(config, workdir)
    check_same_run(config, begun)
    found = read_demonstrations(config, workdir, progress, locate, begun)
    config = dataclasses.replace(config, data=found.data)
    if config.data.streaming:
        source, record, notes = _streamed(config, workdir if begun else None, found.pretrained)
        steps = config.train.steps
    else:
        source, steps, record, notes = _packed(config, workdir if begun else None, found.train, begun)
    evaluation = None
    if found.eval:
        counts, dropped = account(found.eval)
        held_out = Joined(found.eval)
        length, packing = config.data.sequence_length, config.data.packing
        capacity = choose_target_capacity(held_out.lengths, held_out.targets, length, packing, _multiple(config))
        plan = plan_packing(held_out.lengths, held_out.targets, length, capacity, packing)
        pairs = LOSSES.settings_type(config.loss.kind).reads_pairs
        evaluation = batches_of(held_out, plan, config.train.batch_size, config.train.accumulation, pairs)
        notes += [f"held out: {line}" for line in (*describe_counts(counts, dropped), plan.summary())]
    resolved = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, target_capacity=source.targets_per_row),
        train=dataclasses.replace(config.train, steps=steps),
    )
    check_same_run(resolved, begun)
    return Inputs(resolved, workdir, found.pretrained, source, evaluation, record, notes)


def _packed(
    config: RunConfig, workdir: Location | None, stores: Sequence[Store], begun: RunConfig | None
) -> tuple[Batches | Mixture, int, dict[str, Any], list[str]]:
    """Source, steps, record and notes of prepared data.

    Args:
      workdir, begun: of the run that is continued; None where a run begins.
    """
    record = {"data": drawn(config, stores).fingerprint}
    check_same_record(workdir, record)
    source, plans, notes = pack(config, stores, begun)
    record["plan"] = " ".join(plan.hash for plan in plans)
    check_same_record(workdir, record)
    rows = source.rows_per_epoch
    # With data.limit, small data is intended.
    if rows < config.train.batch_size and not config.data.limit:
        raise BadInput(
            f"{', '.join(config.data.train)}: {sum(map(len, stores)):,} documents fill {rows:,} rows of "
            f"{config.data.sequence_length:,} tokens, fewer than the {config.train.batch_size:,} of train.batch_size: "
            "a step would hold the same document twice, or be mostly padding. "
            f"Set train.batch_size to {rows:,} or less, or lower data.sequence_length."
        )
    of_epochs = source.steps_for(config.train.epochs)
    steps = config.train.steps or of_epochs
    # Also when steps come from a resolved config: a run of whole epochs ends with padding, not with extra rows.
    source.total_rows = config.train.epochs * source.rows_per_epoch if steps == of_epochs else None
    notes = [*describe_counts(*account(stores)), *_describe_limit(config, stores), *notes]
    if isinstance(source, Mixture):
        notes += describe_mixture(config, source, steps)
    return source, steps, record, notes


def _streamed(
    config: RunConfig, workdir: Location | None, pretrained: Pretrained
) -> tuple["Streamed", dict[str, Any], list[str]]:
    """Source, record and notes of streamed data."""
    from sft_jax.data.pack.streaming import Streamed

    train, vocab = config.train, pretrained.architecture.vocab
    source = Streamed(config.data, pretrained.tokenizer, vocab, train.seed, train.batch_size, train.accumulation)
    record = {"data": source.fingerprint, "plan": "streamed"}
    check_same_record(workdir, record)
    return source, record, [f"streaming {', '.join(config.data.train)} in {config.data.streams} stream(s)"]


def _multiple(config: RunConfig) -> int:
    return TARGET_MULTIPLE * max(1, config.mesh.context)


LIMIT_STREAM = 2**62
"""The stream of `permutation` for data.limit; epochs use those from 0."""


def drawn(config: RunConfig, stores: Sequence[Store]) -> Joined | Chosen:
    """The examples that train, in source order: all, or data.limit of them, sampled with train.seed."""
    whole, limit = Joined(stores), config.data.limit
    if not limit or limit >= len(whole):
        return whole
    return Chosen(whole, np.sort(permutation(config.train.seed, LIMIT_STREAM, len(whole))[:limit]))


def _describe_limit(config: RunConfig, stores: Sequence[Store]) -> list[str]:
    limit, found = config.data.limit, sum(map(len, stores))
    return [f"data.limit: {min(limit, found):,} of {found:,} demonstrations train"] if limit else []


def pack(
    config: RunConfig, stores: Sequence[Store], begun: RunConfig | None = None
) -> tuple[Batches | Mixture, list[Plan], list[str]]:
    """The endless batches of a run, its packing plans, and log lines about them.

    Args:
      begun: the resolved config of the run to resume, if any.
    """
    data, train = config.data, config.train
    length = data.sequence_length
    groups = list(stores) if data.weights else [drawn(config, stores)]
    # A resumed run keeps its capacity: the context axis may change, but the rows must not.
    capacity = data.target_capacity or (begun.data.target_capacity if begun else 0)
    capacity = capacity or max(
        choose_target_capacity(group.lengths, group.targets, length, data.packing, _multiple(config))
        for group in groups
    )
    plans = [plan_packing(group.lengths, group.targets, length, capacity, data.packing) for group in groups]
    rows, parts = train.batch_size, train.accumulation
    pairs = LOSSES.settings_type(config.loss.kind).reads_pairs
    sources = [
        # Each source has its own order, even if two of them are the same files.
        Batches(group, plan, train.seed + number * 1_000_003, rows, parts, data.shuffle, pairs=pairs)
        for number, (group, plan) in enumerate(zip(groups, plans, strict=True))
    ]
    if not data.weights:
        return sources[0], plans, [plans[0].summary(rows)]
    shares = row_shares(sources, data.weights, data.weights_count)
    notes = [f"{entry}: {plan.summary(rows)}" for entry, plan in zip(data.train, plans, strict=True)]
    return Mixture(sources, shares, rows, parts), plans, notes


def describe_mixture(config: RunConfig, source: Mixture, steps: int) -> list[str]:
    """The number of epochs of each source."""
    rows = steps * config.train.batch_size if source.total_rows is None else source.total_rows
    taken = source.rows_taken(rows)
    return [
        f"{entry}: weight {weight:g}, {number:,} of {rows:,} rows, {number / one.rows_per_epoch:.2f} epochs"
        for entry, weight, number, one in zip(
            config.data.train, config.data.weights, taken.tolist(), source.sources, strict=True
        )
    ]
