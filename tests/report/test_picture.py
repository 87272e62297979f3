"""An SVG file stands alone: it fetches nothing, needs no page's CSS, and holds whatever names it is given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from jax_mlm.report.charts import COLOURS, Chart, Series
from jax_mlm.report.picture import picture
from jax_mlm.report.theme import DARK, LIGHT, literal, variables

SVG = "{http://www.w3.org/2000/svg}"


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


def test_a_picture_is_one_document_with_title_captions_axes_and_legend():
    names = ["<a> & b", "a run with a long name " * 3, *(f"run {n}" for n in range(COLOURS))]
    series = [Series(name, [(0, 1.0 + n), (60, 2.0)], n, "dots") for n, name in enumerate(names)]
    charts = [Chart("loss", series), Chart('"accuracy"', series, "time", "time"), Chart("empty", [])]
    drawing = picture("Runs <1> & <2>", charts, columns=2)
    root = ElementTree.fromstring(drawing)
    shown = texts(root)
    assert shown[0] == root.findtext(f"{SVG}title") == "Runs <1> & <2>"
    for text in ("loss", '"accuracy"', "step", "time (seconds)", "nothing measured yet", *names):
        assert shown.count(text) == 1, text
    assert len(root.findall(f".//{SVG}polyline[@stroke-dasharray]")) == 3 * (len(names) - COLOURS)
    assert not re.search(r"var\(|url\(|@import|href|<script", drawing)
    assert re.findall(r"https?:[^\"]*", drawing) == ["http://www.w3.org/2000/svg"]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in root.findall(f"{SVG}polyline"):  # the legend's strokes, the only ones outside of a panel
        for x, y in (map(float, pair.split(",")) for pair in line.attrib["points"].split()):
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_names_too_long_for_the_picture_are_cut():
    root = ElementTree.fromstring(picture("t" * 500, [Chart("loss", [Series("s" * 500, [(0, 1.0)])])]))
    title, name = texts(root)[:2]
    assert title.endswith("…")
    assert name.endswith("…")
    assert max(len(title), len(name)) < 80


def test_light_and_dark_have_the_same_colours_by_name_and_rules_use_no_other():
    assert LIGHT.keys() == DARK.keys()
    assert literal("x { fill: var(--c0); }") == (
        f"x {{ fill: {LIGHT['c0']}; }}@media (prefers-color-scheme: dark) {{ x {{ fill: {DARK['c0']}; }} }}\n"
    )
    with pytest.raises(KeyError):
        literal("x { fill: var(--none); }")
    assert all(value in variables() for value in (*LIGHT.values(), *DARK.values()))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_a_picture_can_be_read(tmp_path, chromium, scheme):
    file = tmp_path / "loss.svg"
    file.write_text(picture("mine", [Chart("loss", [Series("train", [(0, 1.0), (9, 2.0)])])]), encoding="utf-8")
    page = chromium.new_page(color_scheme=scheme)
    page.goto(file.as_uri())
    style = "(name, key) => getComputedStyle(document.querySelector(name))[key]"
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"({style})('{name}', 'fill')"))[:3]))
        for name in ("text.title", "rect.paper")
    )
    assert abs(ink - paper) > 450
    assert (paper < 200) == (scheme == "dark")
    assert page.evaluate(f"({style})('polyline', 'stroke')") not in ("", "none")
    page.close()
