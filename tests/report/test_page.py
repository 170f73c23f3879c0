"""report.html: complete where the run is, honest where it is not, and in need of nothing but itself."""

from __future__ import annotations

import base64
import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lana_ray.errors import UserError
from lana_ray.report.artifacts import RunFiles
from lana_ray.report.notes import notes
from lana_ray.report.page import write_page
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import Summary

from .rundir import DIVERGED

PICTURES_PER_TARGET = 6
LOADING_TAGS = {"script", "link", "iframe", "object", "embed", "video", "audio", "base"}


class _Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.styles, self.words = "", ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.words += " "
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self._open == "style":
            self.styles += data
        else:
            self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    @property
    def pictures(self) -> list[str]:
        head = "data:image/svg+xml;base64,"
        return [base64.b64decode(v.removeprefix(head)).decode() for n, v in self.attributes if n == "src"]


def page_of(storage: Storage) -> _Page:
    write_page(storage)
    return _Page(storage.read_text("report.html"))


@pytest.fixture(scope="session")
def page(finished: Storage) -> _Page:
    return _Page(finished.read_text("report.html"))


def test_the_page_loads_nothing(page: _Page) -> None:
    assert not LOADING_TAGS & set(page.tags)
    assert not re.search(r"url\(|@import", page.styles)
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "srcset", "action")
        assert name != "src" or value.startswith("data:image/svg+xml;base64,")


def test_every_picture_is_sound_svg_with_a_description(page: _Page) -> None:
    assert len(page.pictures) == 2 * PICTURES_PER_TARGET + 4
    for picture in page.pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    descriptions = [value for name, value in page.attributes if name == "alt"]
    assert len(descriptions) == len(page.pictures)
    assert all(len(text) > 40 for text in descriptions)


def test_axes_carry_their_units(page: _Page) -> None:
    whole = "".join(page.pictures)
    for label in (
        "measured latency (ms per batch)",
        "predicted latency (ms per batch)",
        "test accuracy (%)",
        "loss on the score split (nats)",
        "summed score (nats)",
        "score (nats)",
    ):
        assert f"<!-- {label} -->" in whole


def test_the_headline_has_every_result(finished: Storage, page: _Page) -> None:
    results = Summary.read(finished).results
    assert len(results) == 4
    for row in results:
        assert f"{100 * row.accuracy:.1f} %" in page.text
        assert f"{row.speedup:.2f}×" in page.text
        assert (row.model_uri or "not registered") in page.text


def test_the_notes_stand_on_the_page(finished: Storage, page: _Page) -> None:
    found = notes(RunFiles.read(finished))
    assert found
    assert all(note in page.text for note in found)


def test_the_use_of_every_split_is_told(page: _Page) -> None:
    assert "test 360 the accuracies of this report, and nothing else" in page.text
    assert "score 180 scores of the candidates, and the choice among the measured students" in page.text


def test_a_candidate_that_diverged_is_counted_and_marked(page: _Page) -> None:
    row = re.search(rf"{DIVERGED[1]} 16 0\.\d+ 0\.\d+ 0\.\d+ blocks\.\d\.\d (\d)", page.text)
    assert row is not None
    assert row[1] == "1"
    assert "<!-- div. -->" in page.pictures[-3]


def test_what_was_asked_stands_on_the_page_without_secrets(finished: Storage, page: _Page) -> None:
    for words in (
        "teacher timm efficientnet_lite0 weights s3://bucket/net.safetensors data source digits",
        "target torch-2t runtime torch device cpu threads 1 batch_size 1 precision fp32",
        "budgets latency_ms 70%, 50% params 2500000 pool preset tiny max_cost null (default: 1)",
        "distill steps 60 (default: 200) Everything else",
        "max_undecodable: 0.01",  # the whole configuration
    ):
        assert words in page.text
    assert "c4nary" in finished.read_text("run.yaml")
    assert "c4nary" not in finished.read_text("report.html")


def test_the_hours_of_all_invocations_are_told(page: _Page) -> None:
    # 720 s a stage more each: 20160 s and what the second invocation took for the first two again, 4 s.
    for words in (
        "teacher 12 min 2 s 3 % 2.0 s 0.401",
        "distill 1 h 12 min 19 % 36 min 0 s 2.400",
        "register 1 h 24 min 23 % 1 h 24 min 2.800",
        "all 6 h 12 min 100 % 5 h 0 min 12.401",
        "summed over 2 invocations",
        "Killed, with up to a minute that is not counted: distill.",
        "Set ray.node_price_per_hour to see their cost.",
    ):
        assert words in page.text


def test_a_price_makes_money_of_node_hours(run: Storage) -> None:
    write_page(run, 0.5)
    text = _Page(run.read_text("report.html")).text
    assert "teacher 12 min 2 s 3 % 2.0 s 0.401 0.20" in text
    assert "A node-hour costs 0.5 (ray.node_price_per_hour)" in text


@pytest.mark.parametrize(
    ("absent", "pictures", "sentence"),
    [
        ("scores.parquet", 8, "scores.parquet is missing"),
        ("selections.parquet", 8, "no student of this target has been measured"),
        ("costs/ort-1t.parquet", 8, "costs/ort-1t.parquet is missing"),
        ("profiles/ort-1t.parquet", 9, "the target's runtime has no profile, or stage profile has not run"),
        ("run.yaml", 10, "run.yaml is missing"),
    ],
)
def test_what_is_missing_is_left_out_with_a_sentence(
    run: Storage, absent: str, pictures: int, sentence: str
) -> None:
    run.remove(absent)
    page = page_of(run)
    assert len(page.pictures) == pictures
    assert sentence in page.text


def test_a_summary_alone_makes_a_page(finished: Storage, tmp_path: Path) -> None:
    empty = Storage(str(tmp_path))
    replace(Summary.read(finished), results=()).write(empty)
    page = page_of(empty)
    assert page.pictures == []
    assert "No student was finished." in page.text


def test_the_same_run_makes_the_same_page(run: Storage) -> None:
    write_page(run)
    first = run.read_bytes("report.html")
    write_page(run)
    assert run.read_bytes("report.html") == first


def test_names_are_shown_as_they_are(run: Storage) -> None:
    name = "<script>alert(1)</script> & $x^{"
    summary = Summary.read(run)
    first, *others = summary.results
    replace(
        summary,
        teacher=replace(summary.teacher, name=name),
        results=(replace(first, budget="$\\frac"), *others),
    ).write(run)
    page = page_of(run)
    assert "script" not in page.tags
    assert name in page.text
    assert html.escape(name) in run.read_text("report.html")


def test_without_a_summary_the_command_that_makes_it_is_named(run: Storage) -> None:
    run.remove("summary.json")
    with pytest.raises(UserError, match=r"summary\.json: missing; run `lana-ray run CONFIG\.yaml` first"):
        write_page(run)
    for content in ('{"teacher": ', "{}"):
        run.write_text("summary.json", content)
        with pytest.raises(
            UserError, match=r"summary\.json: damaged .*`lana-ray run CONFIG\.yaml`"
        ) as raised:
            write_page(run)
        assert raised.value.code == "damaged_file"


def test_a_damaged_table_is_named_and_no_page_is_left_half_written(run: Storage) -> None:
    run.write_bytes("scores.parquet", run.read_bytes("scores.parquet")[:100])
    with pytest.raises(UserError, match=r"scores\.parquet: damaged"):
        write_page(run)
    assert not run.exists("report.html")
