import xml.etree.ElementTree as ElementTree

from sft_jax.report.plots import Point, Series, plot, ticks


def test_a_plot_is_svg_with_every_series_in_its_legend():
    series = [
        Series("measured", [Point(100, 0.5, 0.4, 0.6), Point(1600, 0.3, 0.2, 0.4)]),
        Series("fit <a & b>", [Point(100, 0.5, 0.4, 0.6), Point(3200, 0.25, 0.1, 0.4)], "line"),
        Series("floor", [Point(1, 0.2, 0.2, 0.2)], "level"),
    ]
    root = ElementTree.fromstring(plot(series, "demonstrations", "loss", log_x=True))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"measured", "fit <a & b>", "floor", "demonstrations", "loss", "100", "3200"} <= set(texts)
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2
    # Higher values stand higher, and a logarithmic axis gives 100 to 1600 four fifths of the way to 3200.
    (x0, y0), (x1, y1) = ((float(c.get("cx")), float(c.get("cy"))) for c in circles)
    assert x0 < x1 and y0 < y1
    [line] = [element for element in root.iter() if element.tag.endswith("polyline")]
    end = float(line.get("points").split()[-1].split(",")[0])
    assert abs((x1 - x0) / (end - x0) - 0.8) < 0.01


def test_ticks_are_round_numbers_within_the_axis():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.73, 0.79)[0] >= 0.73 and len(ticks(0.73, 0.79)) >= 3


def test_a_single_point_does_not_divide_by_zero():
    assert "<svg" in plot([Series("one", [Point(1, 1.0, 1.0, 1.0)])], "n", "score", log_x=True)
