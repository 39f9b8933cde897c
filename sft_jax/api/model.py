"""A loaded model: show what a row trains, generate, score, export."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from sft_jax.api.shown import Shown
from sft_jax.config import Data, Distributed, Mesh, RunConfig, Sharding, layout_problems
from sft_jax.config import Model as ModelSection
from sft_jax.data.pack.prepare import check_vocabulary, encode_rows
from sft_jax.data.pack.store import Example
from sft_jax.data.read.rows import Record, Row
from sft_jax.distributed.agree import is_first_process, publish_and_wait
from sft_jax.distributed.start import start
from sft_jax.errors import BadInput
from sft_jax.evaluate.complete import prompts_of
from sft_jax.evaluate.task import Task, task_of
from sft_jax.handoff.artefact import describe_handoff, write_handoff
from sft_jax.model.architecture import Architecture
from sft_jax.model.layers import Compute
from sft_jax.parallel.mesh import make_mesh
from sft_jax.parallel.rules import Layout
from sft_jax.sample.draw import Sampling
from sft_jax.sample.generate import Finish, Generated, Generator, generator_of
from sft_jax.sample.score import check_lengths, score_examples
from sft_jax.storage.location import Location, as_location
from sft_jax.weights.export import export
from sft_jax.weights.fingerprint import weights_fingerprint
from sft_jax.weights.pretrained import Pretrained, open_pretrained, put_on_devices

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A text to continue, messages, or a whole row in any form that training reads."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote."""

    text: str
    """Without special tokens; cut before the stop string, if one was found."""
    tokens: list[int]
    """Including the stop token, if one ended the completion."""
    logprobs: list[float]
    """log p of each of `tokens` under the model itself (temperature 1, its whole vocabulary)."""
    finish: Finish
    """stop (a stop token), stop_string, or length."""


class Model:
    """A model on its devices."""

    def __init__(
        self,
        pretrained: Pretrained,
        architecture: Architecture,
        parameters: Callable[[], Mapping[str, jax.Array]],
        compute: Compute,
    ):
        """
        Args:
          architecture: as laid out.
          parameters: returns the current parameters, which a training run keeps updating.
          compute: dtype and layout.
        """
        self.pretrained, self.architecture, self.compute = pretrained, architecture, compute
        self._parameters = parameters
        self._generators: dict[int, Generator] = {}

    @property
    def name(self) -> str:
        """MODEL, as the user named it."""
        return self.pretrained.origin

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, with its chat template."""
        return self.pretrained.tokenizer

    @property
    def parameters(self) -> Mapping[str, jax.Array]:
        """Name -> array; see `sft_jax.model.decoder`. A run's next step replaces them."""
        return self._parameters()

    def __repr__(self) -> str:
        a = self.architecture
        count = sum(array.size for array in self.parameters.values())
        return f"Model({self.name!r}: {count / 1e6:,.1f} M parameters, {a.depth} layers, {self.compute.dtype})"

    def show(self, row: Mapping[str, Any] | str, train_on: str = "assistant") -> Shown:
        """Which tokens of a row train: coloured in a notebook and on a terminal.

        Raises:
          BadInput: a row that cannot train, with the reason.
        """
        [example] = self.examples([{"text": row} if isinstance(row, str) else row], train_on)
        return Shown(example, self.tokenizer)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        n: int = 1,
        temperature: float = 0.0,
        max_new_tokens: int = 256,
        seed: int = 0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        batch_size: int = 16,
    ) -> list[list[Completion]]:
        """`n` completions of every prompt, in order.

        A completion depends on the seed, its prompt's position and its own number, not on batches or mesh. See
        `sample.draw.Sampling` for the other arguments.

        Raises:
          BadInput: an empty prompt, or one that leaves no room for `max_new_tokens`.
        """
        if isinstance(prompts, str | Mapping):
            prompts = [prompts]
        tasks = [self._task(number, prompt) for number, prompt in enumerate(prompts)]  # type: ignore[arg-type]
        sampling = Sampling(max_new_tokens, temperature, top_p, seed, top_k, min_p, tuple(stop))
        return [[self._completion(one) for one in each] for each in self.answer(tasks, sampling, n, batch_size)]

    def answer(
        self,
        tasks: Sequence[Task],
        sampling: Sampling,
        n: int = 1,
        batch_size: int = 16,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Generated]]:
        """`n` completions of every task, as tokens; `generate`, sample and evaluate build on it.

        Args:
          progress: called after each batch with (completions made, completions wanted).
        """
        prompts = self.prompts(tasks, sampling)
        return self.generator(batch_size)(self.parameters, prompts, sampling, n, progress)

    def prompts(self, tasks: Sequence[Task], sampling: Sampling) -> list[list[int]]:
        """What the model is asked to continue, as tokens.

        Raises:
          BadInput: a prompt that leaves no room for `sampling.max_new_tokens`.
        """
        return prompts_of(tasks, self.pretrained, self.architecture, sampling.max_new_tokens)

    def generator(self, batch_size: int) -> Generator:
        """Generates in batches of this size; compiled programs are kept."""
        if batch_size not in self._generators:
            self._generators[batch_size] = generator_of(self.pretrained, self.architecture, self.compute, batch_size)
        return self._generators[batch_size]

    def score(
        self, rows: Sequence[Mapping[str, Any] | str], train_on: str = "assistant", batch_size: int = 8
    ) -> list[dict[str, Any]]:
        """For each row: id, tokens, weights, and logprobs (null for the first token)."""
        examples = self.examples([{"text": row} if isinstance(row, str) else row for row in rows], train_on)
        scores = score_examples(self.architecture, self.compute, self.parameters, examples, batch_size)
        return [scored_row(example, log_p) for example, log_p in zip(examples, scores, strict=True)]

    def examples(self, rows: Sequence[Mapping[str, Any]], train_on: str = "assistant") -> tuple[Example, ...]:
        """Rows as the documents that training makes of them; nothing is cut, and all are kept.

        Raises:
          BadInput: a row in no known form, or longer than the model's positions.
        """
        numbered = (Row("row", number, dict(row)) for number, row in enumerate(rows, start=1))
        data = self.data((), train_on)
        found = encode_rows(numbered, data, self.tokenizer, keep_untrained=True).examples
        self.check(found)
        return found

    def data(self, files: tuple[str, ...], train_on: str = "assistant") -> Data:
        """How rows are read for this model: as its training read them; nothing is cut or left out,
        and only its positions limit the length."""
        trained = self.pretrained.data
        return Data(
            files,
            train_on=train_on,  # type: ignore[arg-type]
            sequence_length=sys.maxsize,
            template_date=trained.template_date,
            template_kwargs=trained.template_kwargs,
            special_text=trained.special_text,
        )

    def check(self, examples: Sequence[Example]) -> None:
        """Raises BadInput where documents are longer, or have other tokens, than the model knows."""
        check_lengths(examples, self.architecture, self.name)
        check_vocabulary(examples, self.architecture.vocab, self.name)

    def export(
        self,
        out: str | Path | Location,
        format: Literal["hf"] = "hf",
        dtype: str = "float32",
        max_shard_bytes: int = 5 * 2**30,
    ) -> None:
        """Write a Hugging Face directory that transformers, vLLM and others load, and handoff.json; every process of a
        run takes part.

        Raises:
          BadInput: `out` is not empty, or cannot be written; another format.
        """
        if format != "hf":
            raise BadInput(f"format is {format!r}. Known: hf")
        location = as_location(out)
        location.check_writable()
        with location.url_in_errors():
            export(
                self.parameters,
                self.architecture,
                self.pretrained.hf_config,
                self.tokenizer,
                location.local(),
                dtype=dtype,
                max_shard_bytes=max_shard_bytes,
                generation_config=self.pretrained.generation_config,
            )
            fingerprint = weights_fingerprint(self.parameters)
            if is_first_process():
                stops, rendering = self.pretrained.stop_ids, self.pretrained.rendering
                about = describe_handoff(self.tokenizer, stops, fingerprint, ".", ".", rendering)
                write_handoff(location.local(), about)
            publish_and_wait(location)

    def _task(self, number: int, prompt: Prompt) -> Task:
        if isinstance(prompt, str):
            prompt = {"prompt": prompt}
        elif not isinstance(prompt, Mapping):
            prompt = {"messages": list(prompt)}
        return task_of(Record("prompt", number + 1, dict(prompt)), Data(()))

    def _completion(self, one: Generated) -> Completion:
        text = self.tokenizer.decode(one.tokens, skip_special_tokens=True) if one.text is None else one.text
        return Completion(text, one.ids, one.logprobs, one.finish)


def scored_row(example: Example, log_p: Any) -> dict[str, Any]:
    """What score says of a document, as JSON."""
    return {
        "id": example.id,
        "tokens": example.tokens.tolist(),
        "weights": example.weights.tolist(),
        "logprobs": [None, *log_p.tolist()],
    }


def load(
    model: str | Path | Location,
    mesh: Mesh | jax.sharding.Mesh | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    sharding: Sharding | None = None,
    distributed: Distributed | None = None,
    quantization: Literal["none", "int8"] = "none",
) -> Model:
    """MODEL on its devices: a Hugging Face directory, a `.gguf` file, a run's workdir (newest checkpoint), each also at
    `gs://bucket/path`, or `hf://org/name`.

    Args:
      mesh: how many devices share each axis; by default all of them share the parameters. Or a mesh that is there.
      dtype: compute dtype.
      distributed: simulated devices, or several processes; JAX must not have been used before.
      quantization: int8 stores kernels as int8 values and scales.

    Raises:
      BadInput: no such model, an unsupported one, or a layout that does not fit it.
    """
    sharding, distributed = sharding or Sharding(), distributed or Distributed()
    sizes = mesh if isinstance(mesh, Mesh) else Mesh()
    if problems := layout_problems(sizes, sharding, distributed):
        raise BadInput("\n".join(problems))
    start(distributed)
    devices = mesh if isinstance(mesh, jax.sharding.Mesh) else make_mesh(sizes)
    location = as_location(model)
    try:
        pretrained = open_pretrained(location)
        section = ModelSection(str(location), dtype, quantization=quantization)
        architecture, parameters = put_on_devices(pretrained, RunConfig(model=section, sharding=sharding), devices)
    finally:
        location.discard_copy()
    return Model(pretrained, architecture, lambda: parameters, Compute(dtype, layout=Layout(devices, sharding)))
