"""The report as a page: complete, alone, and harmless whatever a caption holds."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from dgl_train.data.batches import FrameFormat, evaluation_batches, read_batches
from dgl_train.evaluation.evaluate import Encoders, embed_dataset, report
from dgl_train.evaluation.models import CHOSEN_ON_TEST
from dgl_train.evaluation.post_process import calibrate, post_process
from dgl_train.evaluation.report_page import ModelPages, make_page, write_report
from dgl_train.evaluation.report_table import Evaluation, Table, make_tables, selection_lines
from dgl_train.evaluation.worst_queries import draw_worst, rank_clips, rank_queries
from tests.helpers.specs import frame_spec

NASTY = "<script>alert('x')</script> & \"quotes\" \udcff"
SETTINGS = {"dataset": "<set>.csv", "split": "test", "zero_shot": False}


@pytest.fixture(scope="module")
def rows(clips):
    return [replace(clips[0], caption=NASTY), *clips[1:7], replace(clips[7], start_s=0.0)]


@pytest.fixture(scope="module")
def encoders(rows):
    """A model that knows the clips, but takes the first caption for one of the last clip."""
    (batch,) = read_batches(rows, FrameFormat(frame_spec(2, 16)), evaluation_batches(8, 8))
    known = {frames.tobytes(): row for row, frames in enumerate(batch.frames.numpy())}
    words = [clip.caption for clip in rows]
    directions = np.eye(8, dtype=np.float32) + np.linspace(0, 0.4, 8, dtype=np.float32)

    def embed_captions(captions):
        return directions[[words.index(caption) if caption != NASTY else 7 for caption in captions]]

    return Encoders(
        embed_captions,
        lambda frames: directions[[known[one.tobytes()] for one in frames]],
        lambda frames: np.full(frames.shape[:2], 0.5, np.float32),
        tokenizer=None,
        frames=frame_spec(2, 16),
    )


@pytest.fixture(scope="module")
def pages(rows, encoders):
    found = embed_dataset(encoders, rows, progress=False)
    calibration = calibrate(encoders, rows, rows, progress=False)
    queries = rank_queries(rows, found)
    evaluation = Evaluation(
        "runs/<b>", "epoch chosen on validation", report(found), post_process(found, calibration)
    )
    return ModelPages(
        evaluation,
        queries,
        rank_clips(rows, found, group_captions=False),
        draw_worst(encoders, rows, found, queries),
    )


class Reader(HTMLParser):
    """Collects tags, attributes and text; every tag must be closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.waiting = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in {"meta", "img"}:
            self.waiting.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.waiting.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.waiting == []
    return reader


def test_the_page_begins_with_the_selection_and_shows_every_part(pages):
    page = make_page(SETTINGS, [pages])
    first = page.index('<p class="selection">epoch chosen on validation</p>')
    assert page.index("<body>") < first < page.index("<h1>")
    reader = read(page)
    text = "".join(reader.text)
    for part in ("similarity as it is", "dual softmax, uses the whole test set", "QB-Norm"):
        assert part in text
    assert reader.tags.count("svg") == 1
    assert reader.tags.count("img") == 1  # one caption did not find its clip first
    assert "zero_shot" in text


def test_the_page_asks_nothing_of_anyone(pages):
    reader = read(make_page(SETTINGS, [pages]))
    assert {"script", "link", "iframe", "object", "b"} & set(reader.tags) == set()
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in {"src", "href"}:
            assert value.startswith("data:image/jpeg;base64,")
    assert "url(" not in make_page(SETTINGS, [pages])


def test_the_page_is_light_or_dark_as_the_reader_likes(pages):
    assert "@media (prefers-color-scheme: dark)" in make_page(SETTINGS, [pages])


def test_the_histogram_counts_every_query(pages):
    page = make_page(SETTINGS, [pages])
    (spoken,) = re.findall(r'aria-label="([^"]*)"', page)
    assert spoken.startswith("rank 1: 7, rank 2-5: 0, rank 6-10: 1, rank 11-50: 0")


def test_the_worst_query_is_drawn_with_its_clip_and_those_before_it(pages, rows):
    (worst,) = pages.worst
    assert worst.query.caption == NASTY
    assert worst.query.rank == 8
    assert worst.query.clip == str(rows[0].video)
    assert worst.query.best_clip == f"{rows[7].video}, 0 s to end"
    assert worst.picture.startswith(b"\xff\xd8\xff")  # JPEG


def test_files_replace_old_ones_and_leave_nothing_else(pages, tmp_path):
    for models in ([pages], [pages, pages]):
        write_report(tmp_path / "report", SETTINGS, models)
        names = sorted(path.name for path in (tmp_path / "report").iterdir())
        assert names == ["report.html", "report.json"]
        document = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
        assert len(document["models"]) == len(models)
    assert document["summary"]["spread"]["text_to_video"]["r1"] == 0
    assert [query["rank"] for query in document["models"][0]["queries"]] == [8] + 7 * [1]


def test_models_chosen_in_different_ways_are_named_one_by_one(pages):
    other = replace(pages.evaluation, model="b", selection="last epoch, not chosen")
    assert selection_lines([pages.evaluation, other]) == [
        "runs/<b>: epoch chosen on validation",
        "b: last epoch, not chosen",
    ]
    on_test = replace(other, model="c", selection=CHOSEN_ON_TEST)
    assert selection_lines([pages.evaluation, on_test])[0] == f"c: {CHOSEN_ON_TEST}"


def test_a_table_is_aligned():
    table = Table("title", ("", "R@1"), [("text to video", "7.0"), ("mean", "100.0")])
    assert str(table).splitlines() == [
        "title",
        "                 R@1",
        "text to video    7.0",
        "mean           100.0",
    ]


def test_mean_and_sample_deviation_stand_below_several_models(pages):
    one = pages.evaluation
    worse = replace(one.report, text_to_video=replace(one.report.text_to_video, r1=85.5))
    (table, *_) = make_tables([one, replace(one, model="b", report=worse)])
    cells = {row[0]: row[1] for row in table.rows if row[0].startswith("text")}
    assert cells == {
        "text to video, runs/<b>": "87.5",
        "text to video, b": "85.5",
        "text to video, mean": "86.5",
        "text to video, spread": "1.4",
    }
