"""Plain strings: one BOS, one EOS, and prompts that end where the model goes on."""

import numpy as np
import pytest

from sft_jax.data.chat.encode import encode
from sft_jax.data.chat.rendering import RenderOptions
from sft_jax.data.chat.strings import prompt_ids
from sft_jax.data.forms.demonstration import PromptCompletion, Text

BOS, EOS = "<|endoftext|>", "<|im_end|>"
TOKENIZERS = [{}, {"add_bos": True}, {"add_eos": True}, {"add_bos": True, "add_eos": True}]


def written(tokenizer, one, train_on="assistant", **options):
    encoded = encode("f:1", one, tokenizer, train_on, RenderOptions(**options))
    trained = np.flatnonzero(encoded.weights)
    return tokenizer.decode(encoded.tokens), tokenizer.decode(encoded.tokens[trained])


@pytest.mark.parametrize("settings", TOKENIZERS)
@pytest.mark.parametrize("end", ["", EOS, f"{EOS}\n", f"{EOS}\n\n"])
def test_a_text_that_ends_with_its_eos_gets_no_second_one_and_what_follows_it_does_not_train(
    make_tokenizer, settings, end
):
    tokenizer = make_tokenizer(**settings)
    bos = BOS if settings.get("add_bos") else ""
    behind = end.removeprefix(EOS)
    whole, trained = written(tokenizer, PromptCompletion("hello", " world" + end))
    assert (whole, trained) == (f"{bos}hello world{EOS}{behind}", f" world{EOS}")
    whole, trained = written(tokenizer, Text("hello world" + end))
    assert (whole, trained.removeprefix(bos)) == (f"{bos}hello world{EOS}{behind}", f"hello world{EOS}")
    assert written(tokenizer, Text("hello" + end), "all")[1] == f"{bos}hello{EOS}{behind}"
    assert written(tokenizer, PromptCompletion("hello", " world" + end), end_of_turn=False)[1] == " world"


@pytest.mark.parametrize("settings", TOKENIZERS)
def test_a_bos_that_the_text_holds_is_not_doubled(make_tokenizer, settings):
    tokenizer = make_tokenizer(**settings)
    assert written(tokenizer, Text(f"{BOS}hello"))[0] == f"{BOS}hello{EOS}"
    assert written(tokenizer, PromptCompletion(f"{BOS}hello", " world"))[0] == f"{BOS}hello world{EOS}"
    assert tokenizer.decode(prompt_ids(f"{BOS}hello", tokenizer)) == f"{BOS}hello"
    bos = BOS if settings.get("add_bos") else ""
    assert written(tokenizer, Text(f"hello{BOS}"))[0] == f"{bos}hello{BOS}{EOS}", "in the middle it is a text's own"


@pytest.mark.parametrize("settings", TOKENIZERS)
def test_a_prompt_is_what_training_has_before_the_completion(make_tokenizer, settings):
    tokenizer = make_tokenizer(**settings)
    encoded = encode("f:1", PromptCompletion("hello", " world"), tokenizer, "assistant")
    ids = prompt_ids("hello", tokenizer)
    assert ids == encoded.tokens[: int(np.argmax(encoded.weights > 0))].tolist()
    assert tokenizer.eos_token_id not in ids
    assert prompt_ids(f"a{EOS}", tokenizer)[-1] == tokenizer.eos_token_id, "an EOS of its own is the prompt's"
    assert prompt_ids("", tokenizer) == ([tokenizer.bos_token_id] if settings.get("add_bos") else [])
