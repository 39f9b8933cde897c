"""Small real tokenizers, built here: byte-level BPE with a few merges, and templates that behave like those in use."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

WORDS = (
    *("hello", " world", " the", " and", "\n\n", "  ", " capital", " France", " Paris", " weather", "system", "user"),
    *("assistant", "tool", "\n", " is", " of", "ing", "123", "think", "get_weather", "city", "ab", "abc", "cd"),
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

CHATML = """{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content if m.content else '' }}{% for call in m.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

CHATML_THINKS = CHATML.replace(
    "{{ m.content if", "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content if"
)

DROPS_CALLS = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>
{% endgeneration %}{% else %}{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

REWRITES_HISTORY = """{%- set ns = namespace(last_user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{% set parts = (m.content or '').split('</think>') %}
{%- if loop.last and loop.index0 > ns.last_user %}{{ '<think>\n' + (parts[0].split('<think>')[-1].strip() if
parts | length > 1 else '') + '\n</think>\n\n' }}{% endif %}{{ parts[-1].strip() }}
{%- for call in m.tool_calls or [] %}{{ '\n<tool_call>{"name": "' + call.function.name + '", "arguments": ' +
(call.function.arguments | tojson) + '}</tool_call>' }}{% endfor %}
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

CLOSES_TEXT = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}<|endoftext|>{% endif %}"""

ALWAYS_PROMPTS = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}
{%- endfor %}
{{- '<|im_start|>assistant\n' }}"""

NO_PROMPT = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}
{{- '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + ' <|endoftext|>' }}{% endif %}{% endfor %}"""

NEVER_STOPS = """{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""

PROMPT_OPENS_THINKING = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""

TWO_STOPS = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{{- '<|endoftext|>' if loop.last and m.role == 'assistant' else '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


CUT = (  # Llama 3's: unlike GPT-2's, it keeps two newlines before a word together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_tokenizer(
    template: str | None = CHATML, pad: str = "<|im_end|>", add_bos: bool = False, add_eos: bool = False
) -> Any:
    """Byte-level BPE whose post-processor trims white space from offsets, as GPT-2's does. EOS is <|im_end|>."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = spell.pre_tokenize_str(word)[0][0]
        for k in range(1, len(letters)):
            if letters[: k + 1] not in vocabulary:
                merges.append((letters[:k], letters[k]))
                vocabulary[letters[: k + 1]] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CUT), behavior="isolated"), spell])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    steps: list[Any] = [processors.ByteLevel(trim_offsets=True)]
    for added, token, template_text in (
        (add_bos, "<|endoftext|>", "<|endoftext|> $A"),
        (add_eos, "<|im_end|>", "$A <|im_end|>"),
    ):
        if added:
            number = backend.token_to_id(token)
            steps.append(processors.TemplateProcessing(single=template_text, special_tokens=[(token, number)]))
    backend.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token=pad,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def templates() -> SimpleNamespace:
    """The templates by name."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if name.isupper()})


@pytest.fixture(scope="session")
def make_tokenizer() -> Any:
    """`tiny_tokenizer`, made once for each combination of arguments."""
    made: dict[Any, Any] = {}

    def make(
        template: str | None = CHATML, pad: str = "<|im_end|>", add_bos: bool = False, add_eos: bool = False
    ) -> Any:
        if (template, pad, add_bos, add_eos) not in made:
            made[template, pad, add_bos, add_eos] = tiny_tokenizer(template, pad, add_bos, add_eos)
        return made[template, pad, add_bos, add_eos]

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Any:
    """`jsonl(rows, name)` writes a file of rows and gives its path."""
    return lambda rows, name="demos.jsonl": write_jsonl(tmp_path / name, rows)
