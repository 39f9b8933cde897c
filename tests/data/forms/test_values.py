import pytest

from sft_jax.config import Data
from sft_jax.data.forms.formats import demonstrations
from sft_jax.data.read.rows import Record
from sft_jax.errors import BadRow


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"question": "6 * 7?", "answer": 42}, "answer"),
        ({"question": 6, "answer": "42"}, "question"),
        ({"instruction": "6 * 7?", "output": 42.5}, "output"),
        ({"prompt": "6 * 7 =", "completion": True}, "completion"),
        ({"text": 3}, "text"),
    ],
)
def test_the_cure_for_a_number_works_as_it_is_told(row, key, tmp_path):
    with pytest.raises(BadRow) as caught:
        demonstrations(Record("demos.jsonl", 17, row), Data())
    message = str(caught.value)
    assert message.startswith(f"demos.jsonl:17: {key} is ") and "expected a string" in message
    (tmp_path / "mine.py").write_text(message.partition("in mine.py: ")[2])
    assert demonstrations(Record("demos.jsonl", 17, row), Data(function=f"{tmp_path}/mine.py:f"))


def test_a_number_that_stands_deeper_is_to_be_written_as_a_string():
    task = {"instruction": "Halve.", "instances": [{"input": "4", "output": 2}]}
    talk = {"messages": [{"role": "user", "content": 4}, {"role": "assistant", "content": "2"}]}
    for row, where, number in ((task, "instances[0]: output", 2), (talk, "messages[0] (user): content", 4)):
        with pytest.raises(BadRow) as caught:
            demonstrations(Record("demos.jsonl", 17, row), Data())
        assert f"demos.jsonl:17: {where} is a number" in str(caught.value)
        assert str(caught.value).endswith(f'Write it as "{number}"')
