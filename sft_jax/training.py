"""A whole run from its config: what `sft-jax train` does, and what other commands do several times."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_jax.using import agree_on_options

if TYPE_CHECKING:
    import jax

    from sft_jax.config import RunConfig
    from sft_jax.model.architecture import Architecture
    from sft_jax.train.inputs import Inputs
    from sft_jax.train.metrics import MetricsRow
    from sft_jax.train.step import TrainState

SAMPLES = "samples.jsonl"
"""In a workdir: the answers to held-out prompts at each evaluation, with their scores."""


class Trained(NamedTuple):
    """What came of a run, or what it begins with."""

    inputs: "Inputs"
    architecture: "Architecture"
    """As laid out."""
    state: "TrainState"
    mesh: "jax.sharding.Mesh"


Watch = Callable[[Mapping[str, Any], int], "MetricsRow"]
"""(parameters, step) -> numbers for the evaluation's row of metrics.jsonl; every process calls it."""


def run_training(config: "RunConfig", watch: Callable[[Trained], Watch] | None = None) -> Trained:
    """A whole run from its config: inputs, devices, state, loop, report. Returns what came of it.

    Args:
      watch: makes what is called at each evaluation besides the held-out loss, from the run as it begins.

    Raises:
      BadInput, NonFinite, Preempted: see `main` for the exit status of each.
    """
    from rich.console import Console

    from sft_jax.distributed import start as starting
    from sft_jax.report.process_log import LOG, process_log
    from sft_jax.report.terminal import TrainingProgress, rows_progress
    from sft_jax.storage.bucket import forget, is_remote, local, local_file, publish_results, publishing
    from sft_jax.train.inputs import claim_workdir, read_inputs

    starting.start(config.distributed)
    agree_on_options(config)
    forget(config.workdir)  # an earlier command of this process may have left an older copy

    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from sft_jax.data.pack.batches import PreparedRows
    from sft_jax.distributed.agree import agreed
    from sft_jax.parallel.mesh import make_mesh
    from sft_jax.parallel.rules import layout
    from sft_jax.plan.chips import peak_flops
    from sft_jax.report.page import REPORT, write_page
    from sft_jax.train.loop import Callables, Schedule
    from sft_jax.train.loop import train as run_loop
    from sft_jax.train.metrics import MetricsWriter, has_evaluation
    from sft_jax.train.preemption import watch_for_preemption
    from sft_jax.train.setup import assemble, check_layout
    from sft_jax.weights.pretrained import padded

    first_process = jax.process_index() == 0
    console = Console(stderr=True, quiet=not first_process, soft_wrap=True, highlight=False)
    inputs = agreed(
        "data",
        lambda: read_inputs(config, first_process, rows_progress(console)),
        lambda inputs: {"steps": inputs.config.train.steps, "capacity": inputs.source.targets_per_row, **inputs.record},
        "Every process must see the same files.",
        config.distributed.timeout_seconds,
    )
    mesh = make_mesh(config.mesh)
    check_layout(inputs, mesh)
    architecture = padded(inputs.pretrained.architecture, config, mesh)
    if first_process:
        claim_workdir(inputs)
    config, workdir = inputs.config, local(inputs.config.workdir)

    def say(text: str) -> None:
        console.print(text)
        log.info("%s", text)

    def send() -> None:
        publish_results(config.workdir)

    with contextlib.ExitStack() as stack:
        stack.callback(forget, config.workdir)
        stack.enter_context(publishing(config.workdir))
        path = local_file(config.workdir, LOG.format(jax.process_index()))
        log = stack.enter_context(process_log(path, goes_with_the_process=is_remote(config.workdir)))
        if starting.watch is not None:
            starting.watch.last_words = send
        log.info("%s", where_it_runs())
        stack.enter_context(layout(mesh, config.sharding))
        for note in inputs.notes:
            say(note)
        poll = stack.enter_context(watch_for_preemption())
        assembled = assemble(inputs, mesh, poll)
        begin = int(assembled.state.step)
        if begin >= config.train.steps:
            say(f"{config.workdir}: already at step {begin} of {config.train.steps}; nothing to do")
            if first_process and not (workdir / REPORT).exists():  # a kill came right before it
                write_page(workdir)
            finished = Trained(inputs, architecture, assembled.state, mesh)
            hand_over(finished)
            return finished
        if begin:
            say(f"continuing {config.workdir} after step {begin} of {config.train.steps}")
        source = inputs.source
        if not isinstance(source, PreparedRows):
            stack.callback(lambda: [say(f"streamed: {line}") for line in source.account()])
        show = stack.enter_context(TrainingProgress(console, begin, config.train.steps)).show
        writer = None
        if first_process:
            writer = MetricsWriter(workdir, begin, config.train.tensorboard)
            stack.callback(writer.close)

        def report(row: dict[str, Any]) -> None:
            if writer is not None:
                writer.write(row)
            show(row)

        eval_every = config.train.eval_every
        due = bool(begin and eval_every and begin % eval_every == 0)
        missed = due and first_process and not has_evaluation(workdir, begin)
        evaluate_first = bool(multihost_utils.broadcast_one_to_all(np.int32(missed)))
        begun = Trained(inputs, architecture, assembled.state, mesh)
        watches = [make(begun) for make in (watch, samples_watch if config.train.eval_samples else None) if make]
        peak = peak_flops(jax.devices()[0].device_kind)
        state = run_loop(
            assembled.state,
            assembled.frozen,
            source,
            assembled.shapes,
            assembled.shardings,
            Callables(assembled.update, _watched(assembled.evaluate, watches), report, poll, send),
            Schedule(config.train.steps, eval_every, config.train.save_every, evaluate_first),
            assembled.manager,
            inputs.record,
            architecture,
            peak * jax.device_count() if peak else None,
        )
        trained = Trained(inputs, architecture, state, mesh)
        hand_over(trained)
        if first_process:
            write_page(workdir)
    console.print(f"done: {config.workdir} (metrics.jsonl, checkpoints/, report.html, handoff.json)")
    return trained


def where_it_runs() -> str:
    """One line about this process, its machine and its devices."""
    import os
    import platform

    import jax

    import sft_jax

    kinds = sorted({device.device_kind for device in jax.local_devices()})
    return (
        f"sft_jax {sft_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}: process "
        f"{jax.process_index()} of {jax.process_count()} on {platform.node()} (pid {os.getpid()}), "
        f"{jax.local_device_count()} of {jax.device_count()} devices: {', '.join(kinds)}"
    )


def hand_over(trained: Trained) -> None:
    """Write what the RL stage starts from into the workdir; every process takes part."""
    import jax

    from sft_jax.handoff.artefact import describe_handoff, weights_fingerprint, write_handoff
    from sft_jax.storage.bucket import local
    from sft_jax.weights.pretrained import MODEL_FILES

    fingerprint = weights_fingerprint(trained.state.trainable)
    if jax.process_index() == 0:
        config, pretrained = trained.inputs.config, trained.inputs.pretrained
        policy, date = f"checkpoints/{int(trained.state.step)}", config.data.template_date
        about = describe_handoff(pretrained.tokenizer, pretrained.stop_ids, fingerprint, policy, MODEL_FILES, date)
        write_handoff(local(config.workdir), about)


def _watched(evaluate: Any, watches: Sequence[Watch]) -> Any:
    """The loop's evaluation, with what each watch adds to its row."""
    if not watches:
        return evaluate

    def both(state: "TrainState", step: int, may_give_up: bool) -> "MetricsRow | None":
        row = evaluate(state, step, may_give_up)
        if row is not None:
            for watch in watches:
                row.update(watch(state.trainable, step))
        return row

    return both


def samples_watch(begun: Trained) -> Watch:
    """Greedy answers to held-out prompts, judged: their texts into samples.jsonl, their mean scores into the row.

    The answers are made on the training mesh from the parameters as they lie there; the next batch is prepared
    meanwhile.
    """
    import jax

    from sft_jax.evaluate.checks import judge, make_checks, summarise
    from sft_jax.evaluate.complete import complete, prompts_of
    from sft_jax.evaluate.measure import read_tasks
    from sft_jax.model.decoder import Compute
    from sft_jax.sample.draw import Sampling
    from sft_jax.sample.generate import generator_of
    from sft_jax.storage.bucket import local
    from sft_jax.train.metrics import cut_after

    config, architecture, pretrained = begun.inputs.config, begun.architecture, begun.inputs.pretrained
    train = config.train
    tasks = read_tasks(config.data, config.data.eval, train.eval_samples)
    checks = make_checks(train.eval_checks, train.eval_scorer, tasks)
    prompts = prompts_of(tasks, pretrained, architecture, train.eval_new_tokens, config.data.template_date)
    compute = Compute(config.model.dtype, attention=config.model.attention)
    generator = generator_of(pretrained, architecture, compute, batch_size=min(32, len(prompts)))
    path = local(config.workdir) / SAMPLES
    if jax.process_index() == 0:
        cut_after(path, int(begun.state.step))

    def watch(parameters: Mapping[str, Any], step: int) -> "MetricsRow":
        sampling = Sampling(train.eval_new_tokens)
        completions = [one for [one] in complete(generator, parameters, pretrained.tokenizer, prompts, sampling)]
        scores = judge(tasks, completions, checks)
        if jax.process_index() == 0:
            with path.open("a", encoding="utf-8") as file:
                for task, one, row in zip(tasks, completions, scores, strict=True):
                    line = {"step": step, "id": task.id, "text": one.text, "demonstration": task.shown, "scores": row}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return {f"eval/{name}": mean.value for name, mean in summarise(scores).items()}

    return watch
