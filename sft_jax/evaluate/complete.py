"""A model's answers to held-out tasks: prompts rendered by its chat template, completions as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from sft_jax.data.chat.encode import DEFAULT, generation_prompt
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.strings import prompt_ids
from sft_jax.data.pack.prepare import check_ids
from sft_jax.errors import BadInput
from sft_jax.evaluate.bfcl import is_bfcl, system_prompt
from sft_jax.evaluate.task import Answer, Task
from sft_jax.model.architecture import Architecture
from sft_jax.sample.draw import Sampling
from sft_jax.sample.generate import Generated, Generator
from sft_jax.weights.pretrained import Pretrained


def task_tokens(task: Task, tokenizer: Any, options: RenderOptions = DEFAULT) -> list[int]:
    """Token ids of the prompt: those that training sees before the answer.

    Questions of the Berkeley Function Calling Leaderboard must show their tools: a chat template without support for
    tools gets them described in the system turn. Rows of demonstrations are rendered as in training, tools or not.

    Args:
      options: how the model's own training rendered conversations.

    Raises:
      BadInput: no chat template, or one that fails.
    """
    if not task.messages:
        return prompt_ids(task.prompt, tokenizer)

    def prompted(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        return generation_prompt(task.where, messages, tools, tokenizer, options, task.template_kwargs)

    messages, tools = list(task.messages), list(task.tools or ())
    ids = prompted(messages, tools or None)
    if not is_bfcl(task.row) or ids != prompted(messages, None):
        return ids
    given = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
    text = "\n\n".join(part for part in (given, system_prompt(tools)) if part)
    return prompted([{"role": "system", "content": text}, *messages], None)


def prompts_of(
    tasks: Sequence[Task], pretrained: Pretrained, architecture: Architecture, max_new_tokens: int
) -> list[list[int]]:
    """The prompts of all tasks, checked to leave room for `max_new_tokens`.

    Raises:
      BadInput: names the task and the numbers.
    """
    prompts = [task_tokens(task, pretrained.tokenizer, pretrained.rendering) for task in tasks]
    for task, prompt in zip(tasks, prompts, strict=True):
        check_ids(task.where, prompt, architecture.vocab, pretrained.origin)
        if not prompt or len(prompt) + max_new_tokens > architecture.max_positions:
            raise BadInput(
                f"{task.where}: a prompt of {len(prompt)} tokens plus {max_new_tokens} new tokens; expected a "
                f"non-empty prompt and at most {architecture.max_positions} in total, the maximum of "
                f"{pretrained.origin}. Lower the number of new tokens."
            )
    return prompts


def complete(
    generator: Generator,
    parameters: Mapping[str, jax.Array],
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    n: int = 1,
) -> list[list[Answer]]:
    """n completions of every prompt, in order."""
    return [[answer_of(one, tokenizer) for one in each] for each in generator(parameters, prompts, sampling, n)]


def answer_of(one: Generated, tokenizer: Any) -> Answer:
    """A completion as an Answer, the input of checks."""
    return Answer(
        tokenizer.decode(one.tokens, skip_special_tokens=True),
        one.stopped,
        len(one.tokens),
        tokenizer.decode(one.tokens, skip_special_tokens=False),
    )
