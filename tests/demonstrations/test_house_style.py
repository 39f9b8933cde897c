import pytest

from sft_jax.demonstrations.house_style import (
    REFUSAL,
    SYSTEM,
    TOOLS,
    Call,
    MalformedCallError,
    WrongCallError,
    check_call,
    check_turn,
    format_call,
    format_calls,
    in_register,
    parse_calls,
)

TIMER = "/timer minutes: 12 | label: rice"
SHOP = "/shop item: milk"


def test_a_call_is_one_line_with_its_arguments_in_declared_order() -> None:
    assert format_call("timer", {"label": "rice", "minutes": 12}) == TIMER


def test_what_is_formatted_parses_back() -> None:
    calls = [Call("timer", {"minutes": 12, "label": 'say "é"'}), Call("shop", {"item": "/shop item:1"})]
    assert parse_calls(format_calls(calls)) == calls


def test_two_calls_stand_on_two_lines() -> None:
    calls = [Call("timer", {"minutes": 12, "label": "rice"}), Call("shop", {"item": "milk"})]
    assert format_calls(calls) == f"{TIMER}\n{SHOP}"
    assert parse_calls(f" {TIMER}\n{SHOP}\n") == calls


@pytest.mark.parametrize(
    "text", ["", "Oslo is cold.", REFUSAL, "My name is Ann.", "Half is 1/2.", "Tea and/or coffee.", "Note: it rains."]
)
def test_plain_text_holds_no_calls(text: str) -> None:
    assert parse_calls(text) == []


@pytest.mark.parametrize(
    "text",
    [
        f"Sure! {TIMER}",
        f"{TIMER}{SHOP}",
        f"{TIMER}\n\n{SHOP}",
        TIMER + " |",
        TIMER + " | ",
        TIMER + "|",
        TIMER.removeprefix("/timer "),
        TIMER.removeprefix("/"),
        TIMER.replace("r m", "rm"),
        TIMER.replace(": 12", ":12"),
        TIMER.replace(": 12", ":"),
        TIMER.replace("rice", ""),
        TIMER.replace(" | ", "|"),
        TIMER.replace("minutes: 12", "minutes: 12 | minutes: 12"),
        "/timer",
        "/timer 12",
        "I would say /shop item: milk here.",
        "/timer " + "minutes: 1 | " * 10_000,
    ],
)
def test_a_text_with_a_trace_of_a_call_that_is_not_calls_alone_is_malformed(text: str) -> None:
    with pytest.raises(MalformedCallError):
        parse_calls(text)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (Call("oven", {"minutes": 1}), "oven"),
        (Call("timer", {"minutes": 1}), "minutes"),
        (Call("shop", {"item": "milk", "count": "1"}), "count"),
        (Call("timer", {"minutes": "twelve", "label": "rice"}), "'twelve'"),
        (Call("timer", {"minutes": "012", "label": "rice"}), "'012'"),
        (Call("timer", {"minutes": "12.0", "label": "rice"}), r"'12\.0'"),
    ],
)
def test_a_call_must_give_a_known_tool_its_declared_arguments_in_their_types(call: Call, found: str) -> None:
    with pytest.raises(WrongCallError, match=found):
        check_call(call)
    with pytest.raises(WrongCallError):
        check_turn(f"/{call.name} " + " | ".join(f"{key}: {value}" for key, value in call.arguments.items()))
    with pytest.raises(WrongCallError):
        format_call(call.name, call.arguments)


@pytest.mark.parametrize(
    "call",
    [
        Call("timer", {"minutes": True, "label": "rice"}),
        Call("timer", {"minutes": "12", "label": "rice"}),
        Call("shop", {"item": 3}),
        Call("shop", {"item": " milk"}),
        Call("shop", {"item": ""}),
        Call("shop", {"item": "milk | item: eggs"}),
        Call("shop", {"item": "milk\neggs"}),
        Call("shop", {"item": "milk/timer minutes: 3"}),
    ],
)
def test_a_value_that_a_line_would_not_give_back_is_not_written(call: Call) -> None:
    with pytest.raises(WrongCallError, match=call.name):
        format_call(call.name, call.arguments)


def test_an_empty_turn_is_not_legal() -> None:
    with pytest.raises(ValueError, match="empty"):
        check_turn(" \n")


def test_the_register_is_one_short_plain_sentence() -> None:
    assert in_register("The capital of Portugal is Lisbon.")
    for text in (
        "the capital is Lisbon.",
        "Lisbon",
        "Lisbon!",
        "It is Lisbon. Enjoy.",
        "A " + "very " * 16 + "long one.",
    ):
        assert not in_register(text)


def test_the_system_text_tells_every_tool_argument_and_the_refusal() -> None:
    for tool, arguments in TOOLS.items():
        signature = SYSTEM.split(f"{tool}(")[1].split(")")[0].split(", ")
        assert signature == [f"{name} int" if kind is int else name for name, kind in arguments.items()]
    assert REFUSAL in SYSTEM
    assert "/tool argument: value | argument: value" in SYSTEM
