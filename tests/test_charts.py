"""Pictures of curves, looked at by their pixels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from zk0desk.charts import COLOURS, Line, Mark, Panel, draw, ticks


def reddish(path, colour):
    """Places (x, y) of the pixels that have about this colour."""
    wanted = ImageColor.getrgb(colour)
    with Image.open(path) as picture:
        pixels, (width, height) = picture.convert("RGB").load(), picture.size
        return [
            (x, y)
            for x in range(84, width - 210)
            for y in range(height)
            if max(abs(a - b) for a, b in zip(pixels[x, y], wanted, strict=True)) < 40
        ]


def test_a_line_goes_from_its_first_value_to_its_last(tmp_path):
    path = draw(tmp_path / "a.png", "A run", [Panel("loss", [Line("loss", [0, 10], [1.0, 3.0])])])
    places = reddish(path, COLOURS[0])
    left, right = min(places), max(places)
    assert left[0] < 90 and right[0] > 740 and left[1] > right[1] + 150, "it rises from the left to the right"


def test_values_that_are_not_finite_leave_a_gap_and_a_logarithm_leaves_out_what_is_not_above_zero(tmp_path):
    for panel in (
        Panel("gap", [Line("a", [0, 1, 2, 3, 4], [1.0, 1.0, math.nan, 1.0, 1.0])]),
        Panel("log", [Line("a", [0, 1, 2, 3, 4], [0.1, 0.1, 0.0, 0.1, 0.1])], log=True),
    ):
        columns = {x for x, _ in reddish(draw(tmp_path / "a.png", "", [panel]), COLOURS[0])}
        middle = 84 + (960 - 84 - 210) // 2
        assert columns and not {x for x in columns if abs(x - middle) < 100}


def test_a_flat_line_is_in_the_middle_of_its_own_size(tmp_path):
    rows = {y for _, y in reddish(draw(tmp_path / "a.png", "", [Panel("mu", [Line("mu", [0, 1], [0.01, 0.01])])]), COLOURS[0])}
    assert max(rows) - min(rows) < 6 and abs(sum(rows) / len(rows) - (40 + 36 + 300 - 52 + 40) / 2) < 20


def test_every_kind_of_panel_can_be_drawn_even_with_one_point_or_none(tmp_path):
    panels = [
        Panel("one", [Line("a", [1], [2.0], [0.1]), Line("b", [1], [2.0], dashed=True, dots=True)], marks=[Mark(1, "here")]),
        Panel("none", [Line("a", [], [])], "round"),
        Panel("flat", [Line("a", [0, 1], [0.0, 0.0], [0.0, math.nan])]),
    ]
    with Image.open(draw(tmp_path / "deep" / "a.png", "t", panels, height=200)) as picture:
        assert picture.size == (960, 640)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(tmp_path / "b.png", "t", [])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_numbers_within_the_range(low, width):
    found = ticks(low, low + width)
    assert len(found) <= 9 and all(low - 1e-6 * width <= each <= low + width * 1.000001 for each in found)
