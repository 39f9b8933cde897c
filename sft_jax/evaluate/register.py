"""The register of answers (length, formality, markup), to compare with that of the demonstrations."""

import re
from collections.abc import Sequence

import numpy as np

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SHARES = {
    "markdown heading": re.compile(r"^#{1,6} ", re.MULTILINE),
    "markdown list": re.compile(r"^\s*(?:[-*+]|\d+[.)]) ", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code block": re.compile(r"^```", re.MULTILINE),
    "exclamation mark": re.compile(r"!"),
    "question mark": re.compile(r"\?"),
    "first person": re.compile(r"\b(?:I|me|my|mine|we|us|our)\b|\bI['\u2019]", re.IGNORECASE),
    "second person": re.compile(r"\b(?:you|your|yours)\b|\byou['\u2019]", re.IGNORECASE),
    "contraction": re.compile(r"\b\w+['\u2019](?:t|re|ve|ll|d|m|s)\b", re.IGNORECASE),
    "stock opening": re.compile(
        r"\s*(?:sure|certainly|of course|absolutely|great question|as an ai\b|i['\u2019]m sorry|here (?:is|are)\b)",
        re.IGNORECASE,
    ),
    "capital first": re.compile(r"\s*[^\w\s]*[A-Z]"),
    "full stop last": re.compile(r"[.!?][\"'\u201d\u2019)]*\s*\Z"),
}
_AT_START = ("stock opening", "capital first")


def register(texts: Sequence[str]) -> dict[str, float]:
    """Lengths in words and sentences (mean, median, 90th percentile), shares of answers with each mark, distinct-n.

    Shares are in [0, 1]; distinct-n is the number of distinct word n-grams over all n-grams of all answers (Li et al.
    2016).

    Raises:
      ValueError: no texts.
    """
    if not texts:
        raise ValueError("no texts to describe")
    words = [_WORD.findall(text) for text in texts]
    counts = np.array([len(each) for each in words], np.float64)
    sentences = np.array([max(1, len(_SENTENCE_END.findall(text))) for text in texts], np.float64)
    found = {
        "words": float(counts.mean()),
        "words, median": float(np.median(counts)),
        "words, 90th percentile": float(np.percentile(counts, 90)),
        "sentences": float(sentences.mean()),
        "sentences, median": float(np.median(sentences)),
        "sentences, 90th percentile": float(np.percentile(sentences, 90)),
        "words a sentence": float(counts.sum() / sentences.sum()),
        "empty": float(np.mean([not text.strip() for text in texts])),
    }
    for name, pattern in _SHARES.items():
        matches = pattern.match if name in _AT_START else pattern.search
        found[name] = float(np.mean([bool(matches(text)) for text in texts]))
    for n in (1, 2):
        grams = [tuple(each[i : i + n]) for each in words for i in range(len(each) - n + 1)]
        found[f"distinct-{n}"] = len(set(grams)) / max(1, len(grams))
    return found
