"""report.html: one file that shows what the manifest holds, whatever it holds."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from athe_export.bundle.manifest import FrontierPoint, Manifest, RouterEntry, parse_manifest
from athe_export.report.gallery import SHOWN, shown_ids, thumbnail
from athe_export.report.html import report_html
from athe_export.report.measured import in_unit, limit_said
from athe_export.report.plots import Curve, Point, plot, scatter, span_of, strip, ticks
from tests.parity_example import parity_example

OLD = Path(__file__).parent.parent / "bundles/v1/tiny/manifest.json"
LABELS = tuple(f"label {i}" for i in range(100))
VOID = {"meta", "img", "br", "path", "rect", "circle", "polyline", "wbr", "link", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def old_manifest() -> Manifest:
    return parse_manifest(OLD.read_text(), "manifest.json")


def full_manifest() -> Manifest:
    """With everything that a report can show."""
    router = RouterEntry("mobilenet_v1_0.25", 32, {"reference": (0.5,), "onnx": (0.5,)}, {"reference": FRONTIER},
                         {"split": "holdout", "images": 400})  # fmt: skip
    return old_manifest()._replace(parity=parity_example(), verdict="fail", router=router)


FRONTIER = tuple(FrontierPoint((s / 20,), (s / 20, 1 - s / 20), 0.9 - s / 200, 20 - s / 2, s == 10) for s in range(21))


def test_the_report_shows_every_part_that_the_manifest_holds() -> None:
    page = Page(report_html(full_manifest(), LABELS))
    wanted = ["Limits", "Findings", "Hop by hop", "Where images were lost", "Router: accuracy against cost",
              "Images whose answer changed", "Between targets", "What stays float", "Recipe", "Provenance"]  # fmt: skip
    assert set(wanted) <= set(page.headings)
    for said in ("60,500", "label 7", "holdout", "in use", "61 images lost, 49 won"):
        assert said in page.text, said


def test_an_old_manifest_gets_a_report_without_what_it_lacks() -> None:
    manifest = old_manifest()
    assert manifest.router is not None and not manifest.router.frontier
    page = Page(report_html(manifest))
    assert {"What was built", "Limits", "Recipe"} <= set(page.headings)
    assert not {"Hop by hop", "Where images were lost", "Images whose answer changed"} & set(page.headings)
    assert not [h for h in page.headings if h.startswith("Router")]


def test_a_manifest_that_was_never_gated_gets_a_report() -> None:
    page = Page(report_html(old_manifest()._replace(parity=None, verdict="not_gated")))
    assert "never trained" in page.text and "Limits" not in page.headings


def test_the_page_needs_nothing_from_elsewhere() -> None:
    png = thumbnail(np.zeros((32, 32, 3), np.uint8))
    text = report_html(full_manifest(), LABELS, dict.fromkeys(shown_ids(parity_example()), png))
    page = Page(text)
    assert page.count("script") == page.count("link") == 0
    for name, attributes in page.tags:
        for value in (attributes.get("src"), attributes.get("href")):
            assert value is None or value.startswith("data:image/png;base64,"), (name, value)
    assert "url(" not in text and "@import" not in text


def test_every_limit_is_drawn_against_its_interval() -> None:
    parity = parity_example()
    page = Page(report_html(full_manifest()))
    drawn = [a["aria-label"] or "" for name, a in page.tags if name == "svg"]
    for limit in parity["limits"]:
        ends = (limit["value"],) * 2 if limit["lower"] is None else (limit["lower"], limit["upper"])
        assert f"{ends[0]:.4g} to {ends[1]:.4g}, limit {limit['limit']:g}" in drawn


def test_every_hop_is_a_row() -> None:
    text = report_html(full_manifest())
    table = text.partition("Hop by hop")[2].partition("</table>")[0]
    rows = [row for row in re.findall(r"<tr>.*?</tr>", table) if "<td>" in row]
    assert len(rows) == len(parity_example()["hops"])
    assert "different numbers of tokens" in text


def test_names_in_a_bundle_cannot_write_into_the_page() -> None:
    evil = "<script>alert(1)</script>"
    parity = parity_example()
    parity["limits"][0]["name"] = f"onnx.{evil}"
    parity["hops"][0]["from"] = parity["findings"][0] = evil
    parity["targets"][evil] = parity["targets"].pop("litert")
    manifest = full_manifest()._replace(name=evil, parity=parity, notes=(evil,))
    assert Page(report_html(manifest, (evil,) * 100)).count("script") == 0


# gallery


def test_the_gallery_shows_lost_images_first_and_counts_those_that_it_leaves_out() -> None:
    parity = parity_example()
    changed = parity["targets"]["litert"]["attribution"]["changed"]
    page = Page(report_html(full_manifest(), LABELS))
    assert page.count("figcaption") == SHOWN + len(parity["targets"]["onnx"]["attribution"]["changed"])
    assert f"litert: {len(changed)} images whose answer changed; {len(changed) - SHOWN} are left out" in page.text
    lost = {c["id"] for c in changed if c["before"]["answer"] == c["label"]}
    shown = set(map(int, re.findall(r"#(\d+)", page.text.rpartition("litert: ")[2])))
    assert len(shown) == SHOWN and shown <= lost


def test_a_picture_says_what_was_answered_before_and_after_and_which_branch_answered() -> None:
    parity = parity_example()
    change = parity["targets"]["onnx"]["attribution"]["changed"][0]
    png = thumbnail(np.full((40, 20, 3), 7, np.uint8))
    card = report_html(full_manifest(), LABELS, {change["id"]: png}).partition('<div class="gallery">')[2]
    card = card.partition("</figure>")[0]
    assert "data:image/png" in card
    for said in ("label 0 → label 1", "simple → complex", "routed elsewhere", "lost"):
        assert said in card


@pytest.mark.parametrize(("shape", "size"), [((32, 32), (32, 32)), ((256, 128), (32, 64)), ((20, 200), (64, 6))])
def test_a_thumbnail_is_a_png_of_at_most_64_pixels_a_side(
    tmp_path: Path, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)
    (tmp_path / "x.png").write_bytes(thumbnail(pixels))
    with Image.open(tmp_path / "x.png") as image:
        assert (image.format, image.size) == ("PNG", size)
        if shape == (32, 32):
            assert np.array_equal(np.asarray(image), pixels)


# drawings


def test_the_limit_stands_between_what_is_inside_and_what_is_shaded() -> None:
    def parts(at_most: bool) -> tuple[float, float, float]:
        drawn = strip(0.1, 0.4, limit=0.7, at_most=at_most, span=(0, 1), verdict="pass")
        shaded, wide = re.findall(r'<rect x="([\d.]+)" y="1" width="([\d.]+)"', drawn)[0]
        return float(shaded), float(wide), float(re.findall(r'd="M([\d.]+) 0V18', drawn)[0])

    start, wide, line = parts(at_most=True)
    assert start == line and start + wide == pytest.approx(192, abs=0.2)
    start, wide, line = parts(at_most=False)
    assert start == 8 and start + wide == pytest.approx(line, abs=0.2)


def test_an_interval_beyond_the_scale_stays_in_the_drawing() -> None:
    drawn = strip(-5, 9, limit=0.5, at_most=True, span=(0, 1), verdict="fail")
    starts = [float(x) for x in re.findall(r"M([\d.-]+)", drawn)]
    assert starts and all(0 <= x <= 200 for x in starts)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.8123, 0.8129), (-30, 1200), (1e-7, 3e-7)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low <= t <= high for t in found)


@pytest.mark.parametrize("points", [((1.0, 2.0),), ((1.0, 2.0), (1.0, 2.0)), ((0.0, 0.0), (1.0, 1.0))])
def test_a_plot_of_few_points_is_drawn(points: tuple[tuple[float, float], ...]) -> None:
    drawn = plot([Curve("a & b", points, points[:1])], "x", "y")
    Page(drawn)
    assert "nan" not in drawn and "a &amp; b" in drawn


def test_a_scale_holds_all_values_with_room() -> None:
    assert span_of([1.0, 3.0])[0] < 1 and span_of([1.0, 3.0])[1] > 3
    low, high = span_of([2.0])
    assert low < 2 < high


# words


def test_a_limit_is_said_in_its_unit_with_what_would_decide_it() -> None:
    limits = {x["name"]: x for x in parity_example()["limits"]}
    said = limit_said(limits["litert.max_top1_drop_pp"])
    assert (
        "the limit 0.70 pp cannot be decided" in said
        and "measured 0.60 pp; bounds 0.05 pp to 1.15 pp" in said
        and "60,500 images" in said
    )
    assert "the limit 97.00% is broken" in limit_said(limits["litert.min_agreement"])


def test_nothing_is_shown_as_minus_nothing() -> None:
    assert in_unit("x_pp", -0.001) == "0.00 pp"
    assert in_unit("x.min_sqnr_db", 29.4091) == "29.4 dB"


@pytest.mark.parametrize("filled", [(), (0,), (0, 1, 2)], ids=["none", "one", "all"])
def test_a_scatter_draws_every_point_with_its_label_and_a_line_of_steps_through_the_filled_ones(
    filled: tuple[int, ...],
) -> None:
    points = [Point(x, 50 + 10 * x, (x - 0.2, x + 0.2), (50.0, 60.0), f"p{x}", x, x in filled) for x in range(3)]
    drawn = Page(scatter(points, "ms", "top-1"))
    assert all(f"p{x}" in drawn.text for x in range(3))
    assert len([1 for tag, _ in drawn.tags if tag == "circle"]) == 3
    (line,) = [attrs["points"] or "" for tag, attrs in drawn.tags if tag == "polyline"]
    corners = [tuple(map(float, corner.split(","))) for corner in line.split()]
    assert len(corners) == max(0, 2 * len(filled) - 1)
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(corners))
