"""A fast tokenizer from a Hugging Face directory or a GGUF file, offline and without torch."""

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sft_jax.data.chat.render_process import OverLimit, Request, Settings, TemplateFails, render
from sft_jax.errors import BadInput, nearest
from sft_jax.storage.gguf_header import read_header

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {
    "gpt-2": "",
    "smollm": "digits",
    "llama-bpe": _CONTRACTIONS + _WORDS + r"|\p{N}{1,3}" + _REST,
    "qwen2": _CONTRACTIONS + _WORDS + r"|\p{N}" + _REST,
}
"""`tokenizer.ggml.pre` -> how text is split before the merges: a pattern, single digits, or GPT-2's own pattern."""
_CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 3, 4, 5, 6


def load_tokenizer(path: str | Path, chat_template_file: str | Path = "") -> Any:
    """A transformers fast tokenizer with its own chat template, or with that of `chat_template_file`.

    Args:
      path: a Hugging Face directory, or a `.gguf` file (its vocabulary, merges and template are read).
      chat_template_file: a Jinja file, or "generic", for base models without a template; empty keeps the
        tokenizer's own.

    Raises:
      BadInput: no tokenizer there, one without a fast version, a GGUF vocabulary of an unknown kind, or no such
        template file.
    """
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        tokenizer = _from_gguf(path)
    elif path.is_dir():
        tokenizer = _from_directory(path)
    else:
        around = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = nearest(path.name, around) if around else f"{path.parent} does not exist either."
        raise BadInput(f"{path}: no such tokenizer: expected a Hugging Face directory or a .gguf file. {hint}")
    if chat_template_file:
        tokenizer.chat_template = read_template(str(chat_template_file), tokenizer)
    return tokenizer


def with_stops(tokenizer: Any, generation_config: Mapping[str, Any]) -> Any:
    """Attach the stop tokens from the model's generation config to the tokenizer."""
    given = generation_config.get("eos_token_id")
    tokenizer.model_stop_ids = tuple(given) if isinstance(given, list) else () if given is None else (given,)
    return tokenizer


def model_stops(tokenizer: Any) -> tuple[int, ...]:
    """The stop tokens of the tokenizer's model, in order; () if unknown."""
    return getattr(tokenizer, "model_stop_ids", ())


GENERIC = "generic"
"""The name of the chat template that ships with this package, for base models without one."""


def read_template(name: str, tokenizer: Any) -> str:
    """The text of a Jinja file, or of the bundled template if `name` is "generic" and no such file exists.

    The bundled template begins with BOS if the tokenizer adds BOS to texts.

    Raises:
      BadInput: no such file, not a Jinja template, or a tokenizer without the EOS token that ends turns in the bundled
        template.
    """
    path = Path(name)
    if path.is_file():
        return _checked(path)
    if name != GENERIC:
        raise BadInput(
            f"{path}: no such chat template file (data.chat_template); {GENERIC!r} is the one that ships with sft_jax"
        )
    if not tokenizer.eos_token:
        raise BadInput(f"data.chat_template {GENERIC!r} ends turns with the EOS token, and the tokenizer has none")
    text = (Path(__file__).parent / "templates" / "generic.jinja").read_text(encoding="utf-8")
    begins = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return text.replace("{%- if add_bos %}{{ bos_token }}{% endif -%}", "{{- bos_token -}}" if begins else "")


def _checked(path: Path) -> str:
    """Read a template file and check that it compiles; failing on an empty conversation is fine."""
    try:
        text = path.read_text(encoding="utf-8")
        render(Request(Settings(text), []))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not valid UTF-8 at byte {error.start} (data.chat_template)") from error
    except OverLimit as error:
        raise BadInput(f"{path}: the template {error}. Use another one (data.chat_template).") from error
    except TemplateFails as error:
        if error.line is not None:
            raise BadInput(f"{path}:{error.line}: not a valid Jinja template: {error} (data.chat_template)") from error
    return text


def _from_directory(path: Path) -> Any:
    transformers = _transformers()
    # tokenizer.json is complete. The class named in tokenizer_config.json may not be: transformers 5 rebuilds a
    # GPT2Tokenizer without the single-digit splitting in SmolLM2's tokenizer.json.
    whole = (path / "tokenizer.json").is_file()
    reader = transformers.PreTrainedTokenizerFast if whole else transformers.AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:20]) or "nothing"
        raise BadInput(
            f"{path}: no usable tokenizer ({str(error).splitlines()[0]}). The directory contains: {names}"
        ) from error
    if not tokenizer.is_fast:
        raise BadInput(f"{path}: {type(tokenizer).__name__} has no fast version; save one with a tokenizer.json")
    return tokenizer


def _transformers() -> Any:
    # transformers recommends installing torch at every import; this project doesn't need it.
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
    import transformers

    return transformers


@lru_cache(maxsize=4)
def offset_backend(tokenizer: Any) -> Any:
    """The underlying `tokenizers.Tokenizer`, with the same ids and with offsets that include white space.

    A ByteLevel post-processor may trim spaces from offsets ("trim_offsets"): a token of only a space then has no
    characters, and whether it overlaps a trained span is unknown. Ids don't depend on it.
    """
    import tokenizers

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    _untrim(tree.get("post_processor"))
    backend = tokenizers.Tokenizer.from_str(json.dumps(tree))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _untrim(node: Any) -> None:
    if isinstance(node, dict):
        if "trim_offsets" in node:
            node["trim_offsets"] = False
        for child in node.values():
            _untrim(child)
    elif isinstance(node, list):
        for child in node:
            _untrim(child)


def vocabulary_size(tokenizer: Any) -> int:
    """The highest id plus one; not the number of tokens, which is smaller if a file lists a token twice."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) of everything that decides ids: vocabulary, rules, special tokens and chat template."""
    import hashlib

    parts = (tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map, tokenizer.chat_template)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _from_gguf(path: Path) -> Any:
    """Own GGUF reader: the one in transformers needs torch, and doesn't split digits for SmolLM2."""
    import tokenizers

    meta = read_header(path).metadata
    kind = meta.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise BadInput(
            f"{path}: its tokenizer is {kind!r}; supported: gpt2 (byte-level BPE), llama (SentencePiece BPE)"
        )
    needed = {"gpt2": ("tokens", "merges"), "llama": ("tokens", "scores")}[kind]
    missing = [f"tokenizer.ggml.{key}" for key in needed if f"tokenizer.ggml.{key}" not in meta]
    if missing:
        raise BadInput(
            f"{path}: the GGUF file lacks {', '.join(missing)}. Set data.tokenizer to the model's tokenizer."
        )
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    types: list[int] = meta.get("tokenizer.ggml.token_type", [])
    if len(types) == len(tokens):
        while types and types[-1] == _UNUSED:  # llama.cpp pads to the embedding size: "[PAD151646]", …
            types.pop()
        del tokens[len(types) :]
    backend = _byte_level(path, tokens, meta) if kind == "gpt2" else _sentencepiece(tokens, meta)
    for special, wanted in ((True, _CONTROL), (False, _USER_DEFINED)):
        marked = [token for token, t in zip(tokens, types, strict=False) if t == wanted]
        added = [tokenizers.AddedToken(token, normalized=False, special=special) for token in marked]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)
    names = {
        f"{name}_token": tokens[meta[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in meta
    }
    # llama.cpp prepends BOS to these two vocabularies unless the file says otherwise.
    by_default = kind == "llama" or meta.get("tokenizer.ggml.pre") == "llama-bpe"
    ends = [
        names.get(f"{name}_token") if meta.get(f"tokenizer.ggml.add_{name}_token", default) else None
        for name, default in (("bos", by_default), ("eos", False))
    ]
    present = [token for token in ends if token]
    if present:
        template = [ends[0], "$A", ends[1]]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=" ".join(part for part in template if part),
            special_tokens=[(token, tokens.index(token)) for token in present],
        )
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=meta.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=meta.get(f"{meta.get('general.architecture')}.context_length"),
        **names,
    )


def _byte_level(path: Path, tokens: list[str], meta: dict[str, Any]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = meta.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise BadInput(
            f"{path}: unknown pre-tokenizer tokenizer.ggml.pre {pre!r}; supported: "
            f"{', '.join(_PRE_TOKENIZERS)}. Set data.tokenizer to the model's Hugging Face tokenizer directory."
        )
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    pattern = _PRE_TOKENIZERS[pre]
    own_pattern = pattern in ("", "digits")
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_pattern)]
    if pattern == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif pattern:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(tokens: list[str], meta: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    # The file has no merges: SentencePiece BPE merges the pair whose union has the highest score.
    vocabulary = {token: i for i, token in enumerate(tokens)}
    scores, types = meta["tokenizer.ggml.scores"], meta.get("tokenizer.ggml.token_type", [0] * len(tokens))
    ranked = []
    for i, token in enumerate(tokens):
        if types[i] in (_CONTROL, _USER_DEFINED, _BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[i], vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    merges = [(left, right) for *_, left, right in ranked]
    unknown = tokens[meta.get("tokenizer.ggml.unknown_token_id", 0)]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend
