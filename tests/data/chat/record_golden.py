"""Record what TRL's SFTTrainer trains on: tests/data/chat/golden/trl.json. Needs torch and trl; the tests need neither.

    python tests/data/chat/record_golden.py

Run it again after a new release of TRL; a difference in the file is a difference in TRL's semantics.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TURNS = [{"role": "user", "content": "the capital of France"}, {"role": "assistant", "content": "Paris"}]
MORE = [*TURNS, {"role": "user", "content": "the weather"}, {"role": "assistant", "content": "hello\n\nworld"}]
CASES = {
    "prompt_completion": {
        "rows": [
            {"prompt": "What is the capital of France?", "completion": " Paris"},
            {"prompt": "hello world ->", "completion": " 123"},
            {"prompt": "hel", "completion": "lo world"},
            {"prompt": "one line\n", "completion": "\nanother line"},
            {"prompt": "ends itself: ", "completion": "yes<|im_end|>"},
            {"prompt": "Grüße, 世界! ", "completion": "🙂 ok"},
            {"prompt": "", "completion": "hello"},
        ]
    },
    "prompt_completion_bos": {
        "add_bos": True,
        "rows": [{"prompt": "hello", "completion": " world"}, {"prompt": "", "completion": "the weather"}],
    },
    "boundary_moves": {"rows": [{"prompt": "123as", "completion": "y"}]},
    "text": {"rows": [{"text": "hello world\n\n123"}, {"text": "done<|im_end|>"}]},
    "truncated": {
        "max_length": 12,
        "rows": [
            {"prompt": "hello", "completion": " a completion that is far too long"},
            {"prompt": "this prompt alone fills all of the row", "completion": " lost"},
            {"prompt": "hello", "completion": " world"},
        ],
    },
    "chat_prompt_completion": {
        "rows": [{"prompt": MORE[:3], "completion": MORE[3:]}, {"prompt": TURNS[:1], "completion": TURNS[1:]}]
    },
    "messages_assistant_only": {
        "template": "MARKED",
        "assistant_only_loss": True,
        "rows": [{"messages": MORE}, {"messages": [*MORE, {"role": "user", "content": "bye"}]}],
    },
}


def main() -> None:
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = importlib.util.spec_from_file_location("tiny", HERE / "conftest.py")
    assert spec and spec.loader
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    golden = {"trl": trl.__version__, "cases": {}}
    for name, case in CASES.items():
        tokenizer = tiny.tiny_tokenizer(
            getattr(tiny, case.get("template", "CHATML")), add_bos=case.get("add_bos", False)
        )
        shape: dict = dict.fromkeys(("hidden_size", "intermediate_size"), 8)
        shape |= dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
        with tempfile.TemporaryDirectory() as folder:
            arguments = trl.SFTConfig(
                folder,
                max_length=case.get("max_length", 256),
                assistant_only_loss=case.get("assistant_only_loss", False),
                use_cpu=True,
                bf16=False,
                report_to="none",
            )
            rows = Dataset.from_list(case["rows"])
            trainer = trl.SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
            prepared = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]
        golden["cases"][name] = {**case, "prepared": prepared}
    path = HERE / "golden" / "trl.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(CASES)} cases from trl {trl.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
