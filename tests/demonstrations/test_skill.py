import json
import math

import numpy as np
import pytest

from sft_jax.demonstrations.skill import Demonstrator, rows, write_task


@pytest.mark.parametrize("demonstrator", [Demonstrator("scattered", 0.6), Demonstrator("systematic", 0.6)])
def test_skill_entropy_and_the_most_probable_answer_are_what_they_say(demonstrator):
    made = rows(demonstrator, 20_000, 0)
    right = np.mean([row["completion"] == row["answer"] for row in made])
    assert right == pytest.approx(demonstrator.skill, abs=0.015)
    nll = [-demonstrator.log_probability(row["prompt"][:-1], row["completion"]) for row in made]
    assert np.mean(nll) == pytest.approx(demonstrator.entropy, abs=0.03)
    question = "70000"  # begins with an odd digit
    odds = [math.exp(demonstrator.log_probability(question, str(digit))) for digit in range(10)]
    assert sum(odds) == pytest.approx(1)
    assert int(np.argmax(odds)) == (7 if demonstrator.errors == "scattered" else 8)


def test_best_of_n_is_what_many_draws_give():
    random = np.random.default_rng(0)
    for demonstrator in (Demonstrator("scattered", 0.6), Demonstrator("systematic", 0.6)):
        for n in (1, 4):
            hits = []
            for question in (f"{number:05d}" for number in random.integers(0, 10**5, 4000)):
                answers = {demonstrator.answer(question, random) for _ in range(n)}
                hits.append(max(question) in answers)
            assert np.mean(hits) == pytest.approx(demonstrator.best_of(n), abs=0.03)


def test_a_perfect_demonstrator_has_no_entropy_and_errors_can_be_so_common_that_greedy_inherits_them():
    perfect = Demonstrator("scattered", 1.0)
    assert (perfect.entropy, perfect.greedy, perfect.best_of(1)) == (0.0, 1.0, 1.0)
    assert Demonstrator("systematic", 0.6).greedy == 0.5 and Demonstrator("systematic", 0.9).greedy == 1.0
    assert Demonstrator("systematic", 0.6).log_probability("20000", "3") == -math.inf


def test_a_task_is_written_once_and_is_a_function_of_its_arguments(tmp_path):
    first, second = (write_task(tmp_path / name, Demonstrator("scattered", 0.6), 30, held_out=10) for name in "ab")
    for name in ("train.jsonl", "held_out.jsonl", "model/config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert len((first / "train.jsonl").read_text().splitlines()) == 30
    (first / "train.jsonl").write_text("")
    write_task(first, Demonstrator("scattered", 0.6), 30)
    assert not (first / "train.jsonl").read_text()
    config = json.loads((first / "model" / "config.json").read_text())
    from sft_jax.data.chat.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(first / "model"), "")
    assert config["vocab_size"] == len(tokenizer) and tokenizer("907=9<end>")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("907=")["input_ids"]) == "907="
