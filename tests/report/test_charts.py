"""Charts as SVG, by their coordinates."""

import re
import xml.etree.ElementTree

import numpy as np

from jaxdet.report import charts

SVG = "{http://www.w3.org/2000/svg}"


def parse(text):
    return xml.etree.ElementTree.fromstring(text.replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def rectangles(root, kind):
    return [each.attrib for each in root.iter(f"{SVG}rect") if each.get("class") == kind]


def test_a_chart_says_what_it_shows():
    line = charts.Line("a <b>", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "k0")
    root = parse(charts.lines("T & t", "D < d", [line], labels=("x", "y")))

    assert (root[0].tag, root[0].text) == (f"{SVG}title", "T & t")
    assert (root[1].tag, root[1].text) == (f"{SVG}desc", "D < d")
    assert root.get("role") == "img"
    assert "a <b>" in [each.text for each in root.iter(f"{SVG}title")]


def test_a_line_goes_from_corner_to_corner():
    line = charts.Line("a", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "k0")
    path = re.search(r'class="line k0" d="([^"]*)"', charts.lines("", "", [line], labels=("", "")))
    right, top = charts.WIDTH - charts.RIGHT, charts.TOP
    bottom = charts.HEIGHT - charts.BOTTOM

    assert path[1] == f"M{float(charts.LEFT)} {float(bottom)}L{float(right)} {float(top)}"


def test_flat_stretches_of_a_line_are_one_piece():
    x = np.arange(101) / 100
    line = charts.Line("a", x, np.where(x < 0.5, 1.0, 0.0), "k0")
    path = re.search(r'class="line k0" d="([^"]*)"', charts.lines("", "", [line], labels=("", "")))

    assert path[1].count("L") == 3


def test_columns_of_a_histogram_stand_on_one_another():
    counts = np.array([[1, 0], [3, 0]])
    root = parse(charts.histogram("", "", counts, labels=("", ""), mark=0.5))
    (right,), (wrong,) = rectangles(root, "right"), rectangles(root, "wrong")
    height = charts.HEIGHT - charts.TOP - charts.BOTTOM

    np.testing.assert_allclose(float(right["height"]), height / 4, atol=0.2)
    np.testing.assert_allclose(float(wrong["height"]), height * 3 / 4, atol=0.2)
    np.testing.assert_allclose(
        float(wrong["y"]) + float(wrong["height"]), float(right["y"]), atol=0.2
    )


def test_unknown_columns_are_left_out():
    text = charts.columns("", "", np.array([np.nan, 0.5]), ["a", "b"], ("", ""))

    assert len(rectangles(parse(text), "right")) == 1


def test_the_longest_bar_fills_the_room():
    root = parse(charts.bars("", "", {"a": 2.0, "b": 1.0, "c": 0.0}, ["2", "1", "0"]))
    widths = [float(each["width"]) for each in rectangles(root, "right")]

    assert widths[0] == 2 * widths[1] and widths[2] == 1
    assert charts.NAMES + widths[0] < charts.WIDTH - 50


def test_bars_of_nothing_are_no_error():
    assert parse(charts.bars("", "", {"a": 0.0}, ["0"])) is not None
