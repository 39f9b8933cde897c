import xml.etree.ElementTree as ElementTree

import numpy as np

from sft_jax.experiments.objectives import objectives
from sft_jax.report.plots import token_boxes


def test_pretraining_trains_every_token_and_imitation_the_assistants_alone(tokenizer):
    """One text, one code path: only the weights differ."""
    text, assistant, last = objectives(tokenizer)
    whole = "".join(assistant.tokens)
    assert "".join(text.tokens).startswith(whole.rstrip("\n"))
    assert text.weights[0] == 0 and all(weight == 1 for weight in text.weights[1:-1])
    assert (text.tokens[-1], text.weights[-1]) == ("\n", 0), "what stands behind the text's own EOS"

    def trained(one) -> str:
        return "".join(token for token, weight in zip(one.tokens, one.weights, strict=True) if weight)

    assert trained(assistant) == "Yes, it is.<|im_end|>/timer minutes: 4 | label: tea<|im_end|>"
    assert trained(last) == "/timer minutes: 4 | label: tea<|im_end|>"
    assert 0 < np.mean(last.weights) < np.mean(assistant.weights) < 0.9


def test_the_picture_colours_the_trained_tokens(tokenizer):
    documents = objectives(tokenizer)
    root = ElementTree.fromstring(token_boxes(documents))
    boxes = [element for element in root.iter() if element.tag.endswith("rect")]
    coloured = [group for group in root.iter() if group.get("class") == "trained"]
    assert len(boxes) == sum(len(one.tokens) for one in documents)
    assert len(coloured) == sum(int(np.count_nonzero(one.weights)) for one in documents)
