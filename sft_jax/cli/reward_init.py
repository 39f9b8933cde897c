"""sft-jax reward-init MODEL --out DIR"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sft_jax.cli.arguments import check_writable, parse, require
from sft_jax.cli.options import ModelOptions, ModelPath, load_model
from sft_jax.errors import EXIT_DONE, BadInput
from sft_jax.storage.location import Location


@dataclass(frozen=True)
class RewardInit(ModelOptions):
    """Replace the head of a language model with a scalar head: where a reward model starts (loss.kind reward)."""

    model: ModelPath
    """A Hugging Face directory, a .gguf file, a run's workdir, or hf://org/name."""
    out: str = ""
    """Directory to create: AutoModelForSequenceClassification with one label, and the tokenizer."""
    init: Literal["zeros", "normal"] = "zeros"
    """zeros starts at a loss of ln 2; normal has standard deviation 1 / sqrt(D + 1)."""
    seed: int = 0
    """Seed of normal."""
    pad_token: str = ""
    """A padding token that never ends an answer. Empty: the tokenizer's own, or else an unused special token."""
    dtype: Literal["float32", "bfloat16"] = field(default="float32", kw_only=True)
    """Element type of the written tensors."""


def reward_init(arguments: Sequence[str]) -> int:
    """sft-jax reward-init MODEL --out DIR"""
    options = parse(RewardInit, arguments, "sft-jax reward-init")
    require(options, "out", "sft-jax reward-init")
    check_writable(options.out, directory=True)
    from sft_jax.distributed.agree import publish_and_wait
    from sft_jax.handoff.reward import choose_pad, with_reward_head
    from sft_jax.model.families import family_of
    from sft_jax.weights.export import export

    out, model = Location(options.out), load_model(options.model, options)
    pretrained, tokenizer = model.pretrained, model.tokenizer
    if model.architecture.reward:
        raise BadInput(f"{options.model} is a reward model already")
    before = tokenizer.pad_token
    tokenizer.pad_token = choose_pad(tokenizer, pretrained.stop_ids, model.architecture.vocab, options.pad_token)
    kind = family_of(pretrained.hf_config, options.model)
    config = {**pretrained.hf_config, "model_type": kind, "pad_token_id": tokenizer.pad_token_id}
    generation = {**pretrained.generation_config, "pad_token_id": tokenizer.pad_token_id}
    layout = model.compute.layout
    reward, head = with_reward_head(model.architecture, layout, model.parameters, options.init, options.seed)
    with out.url_in_errors():
        export(head, reward, config, tokenizer, out.local(), dtype=options.dtype, generation_config=generation)
    publish_and_wait(out)
    if tokenizer.pad_token != before:
        print(f"padding is {tokenizer.pad_token} instead of {before}, which ends answers")
    print(out)
    return EXIT_DONE
