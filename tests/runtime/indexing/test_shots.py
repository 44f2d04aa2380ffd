"""dgl-index --shots: what the gallery holds then, by itself and with windows, at first and again."""

import pytest
from click.testing import CliRunner

from dgl_runtime.commands.index import index
from dgl_runtime.gallery.gallery import Gallery
from tests.helpers.commands import failure, invoke
from tests.helpers.made_galleries import clips_of
from tests.helpers.odd_videos import write_video
from tests.helpers.scenes import write_scenes

SHOTS = {(0.0, 2.0), (2.0, 3.5), (3.5, 6.5)}


def spans_in(gallery):
    with Gallery.open(gallery) as opened:
        return {(round(clip.start_s, 3), round(clip.end_s, 3)) for _, clip in clips_of(opened)}


def test_a_gallery_holds_the_shots_and_those_that_are_there_are_kept(bundle, tmp_path):
    pytest.importorskip("scenedetect")
    pytest.importorskip("cv2", exc_type=ImportError)
    video = write_scenes(tmp_path / "a.mp4", [20, 15, 30])
    spans = set()
    for cut, new, kept in (
        (("--shots",), SHOTS, 0),
        (("--shots",), set(), 3),
        (("--shots", "--window", "1500ms"), {(0, 1.5), (0.5, 2), (3.5, 5), (5, 6.5)}, 1),
        (("--shots", "--window", "2s", "--stride", "500ms"), {(3.5, 5.5), (4, 6), (4.5, 6.5)}, 2),
        ((), {(0.0, 6.5)}, 0),
        (("--shots",), set(), 11),  # all of the video's, as nothing is missing of its shots
    ):
        said = invoke(index, bundle, video, "--gallery", tmp_path / "g", *cut)
        assert f"1 videos: {len(new)} clips added, {kept} already indexed" in said, cut
        spans |= new
        assert spans_in(tmp_path / "g") == spans, cut


def test_a_stride_needs_a_window_at_shots_too(tmp_path):
    arguments = [str(tmp_path), str(tmp_path), "--gallery", "g", "--shots", "--stride", "1s"]
    refused = CliRunner().invoke(index, arguments)
    assert refused.exit_code == 2
    assert "Error: --stride needs --window." in refused.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "scenedetect",
            None,
            "dgl-index needs the package 'scenedetect', which is not installed. ",
        ),
        ("cv2", None, "dgl-index needs the package 'cv2', which is not installed. "),
        (
            "cv2",
            "raise ImportError('libGL.so.1: cannot open')",
            "shots need OpenCV, which does not import: libGL.so.1: cannot open. Install the library ",
        ),
    ],
)
def test_what_shots_need_is_asked_for_once_and_before_any_video(
    bundle, tmp_path, name, content, said
):
    before = f"sys.modules[{name!r}] = None"
    if content is not None:
        (tmp_path / "cv2.py").write_text(content)
        before = f"sys.path.insert(0, {str(tmp_path)!r})"
    pytest.importorskip("scenedetect")
    videos = [write_video(tmp_path / f"{number}.mp4", 5) for number in range(2)]
    line, out = failure(
        "index", bundle, *videos, "--gallery", tmp_path / "g", "--shots", before=before
    )
    assert line.startswith(said)
    assert out == ""
