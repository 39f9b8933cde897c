"""Greedy generation, the filters of sampling and log-probabilities of the real SmolLM2, against transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sft_jax.config import Data, RunConfig
from sft_jax.data.chat.encode import generation_prompt
from sft_jax.data.pack.prepare import prepare
from sft_jax.model.layers import Compute
from sft_jax.parallel.rules import Layout
from sft_jax.sample.draw import Sampling, filtered
from sft_jax.sample.generate import PROMPT_BUCKET, Generator
from sft_jax.sample.score import score_examples
from sft_jax.weights.pretrained import open_pretrained, put_on_devices

NEW_TOKENS = 64
BATCH_SIZE = 4
"""Smaller than the number of conversations: the second batch is not full."""

CONVERSATIONS = (
    ["What is the capital of France?"],
    ["Answer with one word: is the sky blue or green?"],
    ["Write a haiku about rain."],
    ["How do I boil an egg? Give me short numbered steps, and say how long each of them takes."],
    ["My name is Zoë.", "Nice to meet you, Zoë! How can I help?", "What is my name?"],
    [
        "Summarise this in one sentence: The lighthouse at the end of the pier was built in 1872, after three ships "
        "had been lost within a single winter. It was tended by one family for four generations, who kept a diary of "
        "every storm, until the lamp was made automatic in 1981 and the house was turned into a small museum."
    ],
)
"""Turns of user and assistant in turn; rendered by the model's own chat template."""

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("one_thread_of_torch")]


@pytest.fixture(scope="module")
def ours(model_path, mesh_of):
    """(what it is, architecture, parameters, how it computes)."""
    config, mesh = RunConfig(), mesh_of()
    pretrained = open_pretrained(str(model_path))
    return (pretrained, *put_on_devices(pretrained, config, mesh), Compute(layout=Layout(mesh, config.sharding)))


@pytest.fixture(scope="module")
def theirs(model_path):
    """transformers' own reading of the same file."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_path.parent, gguf_file=model_path.name, dtype=torch.float32
    )
    return model.eval()


def test_greedy_generation_is_identical_token_by_token(ours, theirs):
    pretrained, architecture, parameters, compute = ours
    prompts = [
        generation_prompt(
            turns[-1],
            [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)],
            None,
            pretrained.tokenizer,
        )
        for turns in CONVERSATIONS
    ]
    # Both batches are ragged, and the prompts fill more than one bucket of the generator.
    assert len({len(prompt) for prompt in prompts}) > BATCH_SIZE and max(map(len, prompts)) > PROMPT_BUCKET
    stops = pretrained.stop_ids
    generator = Generator(architecture, compute, stops, len(pretrained.tokenizer), BATCH_SIZE)
    answers = generator(parameters, prompts, Sampling(max_new_tokens=NEW_TOKENS))
    stopped = 0
    for turns, prompt, (answer,) in zip(CONVERSATIONS, prompts, answers, strict=True):
        with torch.no_grad():
            whole = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=list(stops),
                pad_token_id=stops[0],
            )
        expected = whole[0, len(prompt) :].tolist()
        print(f"{len(expected)} tokens: {pretrained.tokenizer.decode(expected)!r}")
        if answer.stopped:
            assert expected[-1] in stops, turns[-1]
            expected.pop()
        assert answer.tokens == expected, turns[-1]
        assert answer.stopped or len(answer.tokens) == NEW_TOKENS
        stopped += answer.stopped
    # Both ways to end are met: by a stop token and by the limit.
    assert 0 < stopped < len(prompts)


def test_log_probabilities_of_demonstrations_are_those_of_transformers(ours, theirs, pytestconfig):
    pretrained, architecture, parameters, compute = ours
    file = pytestconfig.rootpath / "sft_jax" / "demonstrations" / "train.jsonl"
    examples = prepare(Data(train=(str(file),), sequence_length=256), pretrained.tokenizer).examples
    # Of different lengths and kinds: a short answer, a call and the longest.
    examples = [examples[1], examples[2], max(examples, key=lambda example: len(example.tokens))]
    scores = list(score_examples(architecture, compute, parameters, examples, batch_size=2))
    for example, log_p in zip(examples, scores, strict=True):
        tokens = torch.from_numpy(example.tokens).long()
        with torch.no_grad():
            every = torch.log_softmax(theirs(tokens[None]).logits[0, :-1], dim=-1)
        expected = every.gather(1, tokens[1:, None])[:, 0].numpy()
        difference = np.abs(log_p - expected).max()
        print(f"{len(tokens)} tokens: largest difference {difference:.1e}, lowest log p {expected.min():.1f}")
        assert log_p.shape == expected.shape
        assert difference <= 2e-3


def _warped(kept: dict, logits: torch.Tensor) -> torch.Tensor:
    """transformers' own filters in the order in which its `generate` applies them; the temperature comes first."""
    warpers = [transformers.TemperatureLogitsWarper(kept["temperature"])]
    if "top_k" in kept:
        warpers.append(transformers.TopKLogitsWarper(kept["top_k"]))
    if "top_p" in kept:
        warpers.append(transformers.TopPLogitsWarper(kept["top_p"]))
    if "min_p" in kept:
        warpers.append(transformers.MinPLogitsWarper(kept["min_p"]))
    for warper in warpers:
        logits = warper(torch.zeros(len(logits), 1, dtype=torch.long), logits)
    return logits


@pytest.mark.parametrize(
    "kept",
    [
        {"temperature": 0.7, "top_k": 40},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 1e-4},
        {"temperature": 1.3, "min_p": 0.05},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.5, "top_k": 200, "top_p": 0.8, "min_p": 0.02},
    ],
    ids=str,
)
def test_top_k_top_p_and_min_p_keep_the_tokens_that_transformers_keeps(kept, ours, theirs):
    """On the real model's logits at every place of a demonstration, flat and peaked ones."""
    prompt = ours[0].tokenizer("The capital of France is Paris, and that of Italy is Rome. 1, 2, 3, 4, 5, 6,")[
        "input_ids"
    ]
    with torch.no_grad():
        raw = theirs(torch.tensor([prompt])).logits[0]
    expected = _warped(kept, raw.clone()).numpy()
    found = np.asarray(filtered(jnp.asarray(raw.numpy()) / kept["temperature"], Sampling(**kept)))
    counts = np.isfinite(expected).sum(-1)
    print(f"kept per place: {counts.tolist()}")
    assert counts.min() >= 1 and counts.max() < raw.shape[-1]
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
