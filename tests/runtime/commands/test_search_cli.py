"""dgl-search: what is searched among, by what, and how it is shown."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dgl_runtime import Retriever
from dgl_runtime.commands.index import index
from dgl_runtime.commands.search import search
from tests.helpers.commands import failure, invoke, run
from tests.helpers.odd_videos import write_video


@pytest.fixture(scope="module")
def library(bundle, videos, tmp_path_factory):
    """The three videos with metadata."""
    folder = tmp_path_factory.mktemp("library")
    copied = shutil.copytree(videos, folder / "videos")
    (copied / "list.csv").write_text(
        "video,camera,year\nvideo0.mp4,north,2024\nvideo1.mp4,south,2025\nelsewhere.mp4,north,2025\n"
    )
    arguments = (bundle, copied, "--gallery", folder / "g", "--window", "1s", "--stride", "500ms")
    said = invoke_with_errors(index, *arguments, "--metadata", copied / "list.csv")
    assert "metadata of 2 videos taken" in said
    assert "names videos that the gallery does not hold: elsewhere.mp4." in said
    return folder


def invoke_with_errors(command, *arguments):
    from click.testing import CliRunner

    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def hits(library, *arguments):
    (row,) = json.loads(invoke(search, library / "g", *arguments, "--json", "--top", 100))
    return row["hits"]


def videos_of(found):
    return {Path(hit["video"]).name for hit in found}


def test_conditions_choose_among_clips(library):
    every = hits(library, "a dog", "--group", "none")
    assert len(every) == 3 + 5 + 7
    north = hits(library, "a dog", "--group", "none", "--where", "camera = 'north'")
    assert videos_of(north) == {"video0.mp4"}
    late = hits(library, "a dog", "--group", "none", "--where", "year >= 2025 OR year IS NULL")
    assert videos_of(late) == {"video1.mp4", "video2.mp4"}
    part = hits(library, "a dog", "--group", "none", "--from", "1.2s", "--until", "0:01.7")
    assert part
    assert all(hit["end_s"] > 1.2 and hit["start_s"] < 1.7 for hit in part)
    assert len(part) == sum(hit["end_s"] > 1.2 and hit["start_s"] < 1.7 for hit in every)
    assert hits(library, "a dog", "--group", "none", "--from", "0", "--until", "1h") == every
    assert hits(library, "a dog", "--until", "0:00.0") == []
    line, _ = failure("search", library / "g", "a dog", "--where", "colour = 'red'")
    assert "no such column: colour" in line
    assert "camera, year" in line


def test_clips_of_a_video_become_moments(library):
    assert len(hits(library, "a dog", "--group", "video")) == 3
    merged = hits(library, "a dog", "--group", "merge")
    assert [
        (one["start_s"], one["end_s"]) for one in sorted(merged, key=lambda one: one["end_s"])
    ] == [(0.0, pytest.approx(end_s)) for end_s in (2.0, 3.0, 4.0)]
    apart = hits(library, "a dog", "--group", "apart")
    for one in apart:
        for other in apart:
            if one is not other and one["video"] == other["video"]:
                assert one["end_s"] <= other["start_s"] or other["end_s"] <= one["start_s"]


def test_an_example_finds_what_it_was_taken_from(library, tmp_path):
    found = hits(library, "--like", f"{library / 'videos' / 'video2.mp4'}@3.5")
    best = found[0]
    assert Path(best["video"]).name == "video2.mp4"
    assert (best["start_s"], best["end_s"]) == (3.0, 4.0)
    assert best["similarity"] > 0.9999
    for time in ("0:03.5", "3.5s", "3500ms", "0m3.5s"):
        assert hits(library, "--like", f"{library / 'videos' / 'video2.mp4'}@{time}") == found
    for name in ("grey@2.png", "grey@2", "grey@"):
        Image.new("RGB", (64, 48), (40, 40, 40)).save(tmp_path / name, "png")
        assert hits(library, "--like", tmp_path / name)  # the whole name is a file
    shutil.copy(library / "videos" / "video2.mp4", tmp_path / "at@home.mp4")
    assert hits(library, "--like", f"{tmp_path}/at@home.mp4@3.5") == found
    early, earliest, whole = (
        hits(library, "--like", f"{tmp_path}/at@home.mp4{time}") for time in ("@0:00.2", "@0", "")
    )
    assert early == hits(library, "--like", f"{tmp_path}/at@home.mp4@0.2")
    assert earliest != early != whole != earliest  # each shows something else
    for name, said in {
        "absent.mp4": "does not exist",
        "absent.mp4@3": "absent.mp4 does not exist",
        "absent@home.mp4": "absent@home.mp4 does not exist",
        f"{library / 'videos' / 'video2.mp4'}@99": "lasts 4 s, so it has no second 99",
    }.items():
        line, _ = failure("search", library / "g", "--like", name)
        assert said in line
    result = CliRunner().invoke(search, [str(library / "g"), "--like", f"{tmp_path}/grey@2@soon"])
    assert result.exit_code == 2
    assert (
        "grey@2@soon: 'soon' is not a time such as 90s, 1.5m, 1h30m, 500ms or 1:30."
        in result.stderr
    )


def test_an_example_is_looked_at_as_it_is_shown(library, tmp_path):
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 4  # upside down and mirrored
    shown.save(tmp_path / "shown.png")
    shown.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "stored.tiff", exif=exif)
    shown.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "plain.png")
    found = [
        hits(library, "--like", tmp_path / name)
        for name in ("shown.png", "stored.tiff", "plain.png")
    ]
    assert found[0] == found[1] != found[2]


def test_many_queries_come_from_a_file(library, tmp_path):
    (tmp_path / "queries.txt").write_text("a dog\n\n  a red car\n猫\n", encoding="utf-8")
    out = invoke(search, library / "g", "first", "--queries", tmp_path / "queries.txt", "--json")
    assert [row["query"] for row in json.loads(out)] == ["first", "a dog", "a red car", "猫"]
    (tmp_path / "empty.txt").write_text("\n \n")
    line, _ = failure("search", library / "g", "--queries", tmp_path / "empty.txt")
    assert line == f"{tmp_path}/empty.txt has no line with a query in it."
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    line, _ = failure("search", library / "g", "--queries", tmp_path / "latin.txt")
    assert "is not text in UTF-8" in line


def test_queries_that_are_cut_are_told_once(library, bundle, tmp_path):
    most = Retriever(bundle).tokenizer.spec.most_pieces
    fits, long = (" ".join(["dog"] * count) for count in (most, most + 3))
    told = (
        f"{long[:40] + '...'!r} is too long for this model, which reads its first {most} of {most + 3} words "
        f"({most} of {most + 3} tokens), up to 'dog dog dog dog'. Say it in fewer words."
    )
    (tmp_path / "queries.txt").write_text("\n".join([long] * 4))
    for arguments, lines in (
        ((fits,), []),
        ((fits, long), [f"Warning: the query {told}"]),
        (
            (long, "--queries", tmp_path / "queries.txt"),
            [f"Warning: the query {told}"] * 3 + ["Warning: 2 more queries are too long."],
        ),
    ):
        result = CliRunner().invoke(search, list(map(str, (library / "g", *arguments, "--json"))))
        assert (result.exit_code, result.stderr.splitlines()) == (0, lines)
    with Retriever(bundle, library / "g", threads=1) as retriever:
        with pytest.warns(UserWarning, match=re.escape(f"The query {told}")) as warned:
            assert retriever.search(long) == retriever.search(fits)
        assert len(warned) == 1
        assert warned[0].filename == __file__  # where it was asked
        assert retriever.tell_cut(fits) is None


def test_a_bank_of_queries_ranks_hubs_down_and_keeps_similarities(library, tmp_path):
    (tmp_path / "bank.txt").write_text("\n".join(f"number {n}" for n in range(50)))
    plain = hits(library, "a dog", "--group", "none")
    ranked = hits(library, "a dog", "--group", "none", "--querybank", tmp_path / "bank.txt")
    key = lambda hit: (hit["row"], hit["similarity"])  # noqa: E731
    assert sorted(map(key, plain)) == sorted(map(key, ranked))
    assert [hit["row"] for hit in plain] != [hit["row"] for hit in ranked]


def test_a_page_shows_hits_and_plays_them(library, tmp_path):
    page = tmp_path / "new" / "hits.html"
    query = "<b>a dog</b> & more"
    out = invoke_with_errors(search, library / "g", query, "--html", page, "--top", 2)
    assert f"Page: {page}" in out
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;a dog&lt;/b&gt; &amp; more" in text
    assert "<b>a dog" not in text
    assert len(re.findall(r'src="data:image/jpeg;base64,[A-Za-z0-9+/=]{100,}"', text)) == 2
    assert len(re.findall(r'href="file:///\S+\.mp4#t=[0-9.]+,[0-9.]+"', text)) == 2


def test_what_failed_is_written_as_a_table(bundle, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "good.mp4")
    (videos / "bad, really.mp4").write_bytes(b"no video")
    arguments = (bundle, videos, "--gallery", tmp_path / "g", "--report", tmp_path / "broken.csv")
    failure("index", *arguments)
    header, line = (tmp_path / "broken.csv").read_text().splitlines()
    assert header == "video,reason"
    assert line.startswith(f'"{videos}/bad, really.mp4",')
    assert "is not a video or is damaged" in line


def test_names_may_be_typed_in_either_form_of_unicode(bundle, videos, tmp_path):
    there, asked = (unicodedata.normalize(form, "größe.mp4") for form in ("NFD", "NFC"))
    folder = tmp_path / unicodedata.normalize("NFD", "Überwachung")
    folder.mkdir()
    shutil.copy(videos / "video0.mp4", folder / there)
    typed = tmp_path / unicodedata.normalize("NFC", "Überwachung") / asked
    out = invoke_with_errors(
        index, bundle, typed, "--gallery", tmp_path / "g", "--report", tmp_path / "r"
    )
    assert "1 videos: 1 clips added, 0 already indexed, 0 videos broken" in out
    out = invoke_with_errors(index, bundle, typed.parent, "--gallery", tmp_path / "g", "--prune")
    assert "1 videos: 0 clips added, 1 already indexed, 0 videos broken" in out
    for example in (typed, f"{typed}@0.5"):
        assert invoke(search, tmp_path / "g", "--like", example, "--json")
    (hit,) = json.loads(
        invoke(search, tmp_path / "g", "a", "--where", f"video = '{typed}'", "--json")
    )[0]["hits"]
    assert hit["video"] == str(folder / there)
    upper = folder / asked.upper()
    for command in (
        ("search", tmp_path / "g", "--like", upper),
        ("index", bundle, upper, "--gallery", tmp_path / "g"),
    ):
        line, _ = failure(*command)
        assert line == (
            f"{upper} does not exist; there is {folder / there}, whose name differs only in case or in "
            "Unicode's form. Check the path."
        )


def test_what_may_not_be_meant_in_metadata_is_told_once_and_before_indexing(
    bundle, videos, tmp_path
):
    (tmp_path / "list.csv").write_text(f'video,title\n{videos}/video0.mp4,"a\nb"\n')
    asked = (
        bundle,
        videos / "video0.mp4",
        "--gallery",
        tmp_path / "g",
        "--metadata",
        tmp_path / "list.csv",
    )
    code, out, err = run("index", *map(str, asked))
    assert (code, err.count("Note: ")) == (0, 1)
    assert f"Note: {tmp_path}/list.csv has cells with line breaks, 1 of them" in err
    assert "metadata of 1 videos taken" in out
    (tmp_path / "list.csv").write_text(
        f"video,title\n{videos}/video0.mp4,a\n{videos}/video0.mp4,b\n"
    )
    line, out = failure("index", bundle, videos / "video1.mp4", *asked[2:])
    assert (
        line
        == f"{tmp_path}/list.csv lines 2 and 3 are both about {videos}/video0.mp4. Keep one of them."
    )
    assert out == ""
