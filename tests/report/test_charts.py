"""Charts: round ticks that hold the data, thinning that keeps the ends, and nothing but what is finite."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from jax_mlm.report.charts import Chart, Series, figure, number, thinned, ticks
from jax_mlm.report.smoothing import smoothed
from jax_mlm.report.theme import COLOURS


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (3.83, 8.41), (0, 1204), (2e-5, 2e-3), (-5, 5), (7, 7), (0, 0), (0, 3e9), (0.1, 0.1001)]
)
def test_ticks_are_few_even_and_hold_the_data(low, high):
    at = ticks(low, high)
    assert at[0] <= low
    assert at[-1] >= high
    assert 2 <= len(at) <= 8
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert len({number(x) for x in at}) == len(at), "each has a text of its own"


def test_thinning_keeps_the_ends_and_the_mean():
    points = [(float(i), float(i % 7)) for i in range(10_001)]
    thin = thinned(points, 300)
    assert len(thin) == 300
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    assert sum(y for _, y in thin) / 300 == pytest.approx(3.0, abs=0.05)
    assert thinned(points[:300], 300) == points[:300]


def test_smoothing_leaves_a_constant_and_a_single_point():
    assert smoothed([(x, 2.5) for x in range(500)]) == [(x, pytest.approx(2.5)) for x in range(500)]
    assert smoothed([(1, 9.0)]) == [(1, 9.0)]


def test_a_drawing_is_well_formed_and_lies_inside_its_frame():
    wild = [(0, 1.0), (10, float("nan")), (20, float("inf")), (30, 3.0)]
    for drawing in (
        figure(Chart('loss "x"', [Series("<a> & b", wild, 0, "dots"), Series("c", [(5, 2.0)], COLOURS)])),
        figure(Chart("flat", [Series("a", [(0, 0.0), (3, 0.0)])], "time", "time", from_zero=True)),
    ):
        root = ElementTree.fromstring(drawing).find("svg")
        assert root is not None
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for line in root.iter("polyline"):
            for x, y in (map(float, pair.split(",")) for pair in line.attrib["points"].split()):
                assert 0 <= x <= width
                assert 0 <= y <= height
        assert not re.search(r"nan|inf", "".join(line.attrib["points"] for line in root.iter("polyline")))
    assert "nothing measured" in figure(Chart("loss", [Series("a", [])]))
    assert "&lt;a&gt;" in figure(Chart("t", [Series("<a>", wild)]))
