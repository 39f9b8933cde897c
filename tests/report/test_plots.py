import json
import xml.etree.ElementTree as ElementTree

import pytest

from sft_jax.report.plots import LEFT, RIGHT, WIDTH, Point, Series, downsample, histogram, plot, short, text_of, ticks


def _drawn(svg: str, tag: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith(tag)]


def _texts(svg: str) -> list[str | None]:
    return [element.text for element in _drawn(svg, "text")]


def _readings(svg: str) -> list[tuple[float, str]]:
    return json.loads(ElementTree.fromstring(svg).get("data-readings") or "")


def test_a_plot_is_svg_with_every_series_in_its_legend():
    series = [
        Series("measured", [Point(100, 0.5, 0.4, 0.6), Point(1600, 0.3, 0.2, 0.4)]),
        Series("fit <a & b>", [Point(100, 0.5, 0.4, 0.6), Point(3200, 0.25, 0.1, 0.4)], "line"),
        Series("floor", [Point(1, 0.2)], "level"),
    ]
    svg = plot(series, "demonstrations", "loss", log_x=True)
    assert {"measured", "fit <a & b>", "floor", "demonstrations", "loss", "100", "3200"} <= set(_texts(svg))
    circles = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in _drawn(svg, "circle")]
    assert len(circles) == 3, "two points, and the one in the legend"
    # Higher values stand higher, and a logarithmic axis gives 100 to 1600 four fifths of the way to 3200.
    (x0, y0), (x1, y1) = circles[:2]
    assert x0 < x1 and y0 < y1
    [line] = _drawn(svg, "polyline")
    end = float(line.get("points", "").split()[-1].split(",")[0])
    assert abs((x1 - x0) / (end - x0) - 0.8) < 0.01
    assert len(_drawn(svg, "polygon")) == 1


def test_a_plot_spans_its_smallest_and_largest_value_and_one_series_needs_no_legend():
    svg = plot([Series("loss", [Point(1, 8.0), Point(3, 2.0), Point(5, 4.0)], "joined")], "step", "loss")
    at = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in _drawn(svg, "circle")]
    assert at[0][0] == LEFT and at[-1][0] == WIDTH - RIGHT
    assert at[0][1] < at[2][1] < at[1][1]
    assert {"1", "3", "5", "2", "8", "step", "loss"} <= set(_texts(svg)) and _texts(svg).count("loss") == 1


def test_the_numbers_of_every_series_at_a_place_are_there_for_the_pointer_and_for_those_who_cannot_see():
    series = [
        Series("training", [Point(1, 2.5), Point(2, 1.25)], "line"),
        Series("held out", [Point(2, 1.5, 1.25, 1.75)], "joined"),
        Series("floor", [Point(1, 1.0)], "level"),
    ]
    svg = plot(series, "step", "loss")
    assert [text for _, text in _readings(svg)] == [
        "step 1: training 2.5", "step 2: training 1.25; held out 1.5 [1.25, 1.75]"
    ]  # fmt: skip
    label = ElementTree.fromstring(svg).get("aria-label")
    assert label == "loss by step. training: 2.5 at 1, 1.25 at 2; held out: 1.5; floor: 1"


def test_a_plot_for_a_file_brings_its_style_and_one_for_a_page_does_not():
    series = [Series("one", [Point(1, 1.0)])]
    assert "http" not in plot(series, "n", "score") and "<style>" not in plot(series, "n", "score")
    alone = plot(series, "n", "score", standalone=True)
    assert 'xmlns="http://www.w3.org/2000/svg"' in alone and "prefers-color-scheme: dark" in alone


def test_a_histogram_has_a_bar_for_each_bin_as_high_as_its_count():
    svg = histogram([4, 0, 2], [10.0, 12.0, 14.0, 16.0], "tokens", "documents")
    heights = [float(bar.get("height", "")) for bar in _drawn(svg, "rect")]
    assert heights[0] == pytest.approx(2 * heights[2], abs=0.2) and heights[1] == 0
    assert next(text for _, text in _readings(svg)) == "10 to 12 tokens: 4 documents"
    assert histogram([7], [2.5, 3.5], "tokens", "documents").count("<rect") == 1


def test_many_points_are_drawn_as_means_with_a_band_and_few_as_they_are():
    points = [Point(step, float(step % 10)) for step in range(1, 1001)]
    assert downsample(points, 1000) == points
    few = downsample(points, 100)
    assert len(few) == 100 and few[0] == Point(10, 4.5, 0.0, 9.0, "1 to 10")
    assert len(downsample(points, 300)) == 250


def test_ticks_are_round_numbers_within_the_axis():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.73, 0.79)[0] >= 0.73 and len(ticks(0.73, 0.79)) >= 3
    assert ticks(1, 3, whole=True) == [1, 2, 3] and ticks(5, 5) == [5]


def test_numbers_are_short_on_an_axis_and_exact_enough_elsewhere():
    assert [short(x) for x in (0, 0.25, 5e-5, 0.00094, 3200, 16_000, 2.5e6)] == [
        "0", "0.25", "5e-5", "9.4e-4", "3200", "16k", "2.5M"
    ]  # fmt: skip
    assert [text_of(x) for x in (1200, 0.12345, 12345.6, 5e-5)] == ["1,200", "0.1235", "12,346", "5e-05"]


def test_a_single_point_does_not_divide_by_zero():
    assert "<svg" in plot([Series("one", [Point(1, 1.0, 1.0, 1.0)])], "n", "score", log_x=True)
    assert "<svg" in plot([Series("zero", [Point(1, 0.0), Point(2, 0.0)], "line")], "n", "score")
