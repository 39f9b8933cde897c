from decimal import Decimal

import pytest

from sft_jax.errors import BadInput
from sft_jax.evaluate.answers import exact, final_number, numeric, references


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,250", "1250"),
        ("First #### 3, then\n#### -4.50", "-4.5"),
        ("so 12 / 4 = 3\nA: 18", "18"),
        ("That makes $2,000.50 in all.", "2000.50"),
        ("A: unknown, though 5 of 6 say so", "6"),
        ("She needs 9 eggs.", "9"),
        ("so it is 16-3", "3"),
        ("x = -3", "-3"),
        ("<<3-8=-5>>-5", "-5"),
        ("it is \u22125 degrees", "-5"),
    ],
)
def test_the_final_number_stands_behind_the_mark_or_last(text, number):
    assert final_number(text) == Decimal(number)


def test_a_text_without_a_number_has_none():
    assert final_number("no idea") is None


def test_numbers_are_compared_as_numbers_and_the_format_apart(task, said):
    one = task("She makes 9 * 2 = <<9*2=18>>18.\n#### 18")
    assert numeric(one, said("It is $18.00")) == {"numeric": 1.0, "number_marked": 0.0}
    assert numeric(one, said("#### 18")) == {"numeric": 1.0, "number_marked": 1.0}
    assert numeric(one, said("#### 19"))["numeric"] == 0.0
    assert numeric(one, said("nothing"))["numeric"] == 0.0


def test_what_the_row_calls_right_goes_before_what_was_demonstrated(task, said):
    one = task("#### 7", answer="#### 8")
    assert references(one) == ["#### 8"]
    assert numeric(one, said("8"))["numeric"] == 1.0 and numeric(one, said("7"))["numeric"] == 0.0
    assert exact(task("no", answer=["yes", "Yes."]), said(" Yes.\n")) == {"exact": 1.0}
    assert exact(task("no"), said("yes")) == {"exact": 0.0}


def test_a_row_that_says_nothing_of_the_answer_is_refused(task, said):
    with pytest.raises(BadInput, match=r"rows.jsonl:1: the check exact needs"):
        exact(task(), said("x"))
    with pytest.raises(BadInput, match="no number in the right answer 'none'"):
        numeric(task("none"), said("1"))
