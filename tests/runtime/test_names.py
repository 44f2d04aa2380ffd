"""Names that are equal as people read them: on the disk in one form of Unicode, in the list in the other."""

import os
import unicodedata
from pathlib import Path

import pytest

from dgl_runtime.names import Files, Named, find_path, form_hint, nfc, similar_path

NFC = "größe é 각.mp4"
NFD = unicodedata.normalize("NFD", NFC)
assert NFC != NFD


def test_a_name_as_given_wins_over_one_that_is_equal_in_nfc():
    both = Named({NFC: 1, NFD: 2, "a": 3})
    assert (both.find(NFC), both.find(NFD), both.find("a"), both.find("b")) == (1, 2, 3, None)
    for there, asked in ((NFC, NFD), (NFD, NFC)):
        named = Named({there: 1})
        assert (named.find(asked), named.name_of(asked), named.similar(asked)) == (1, there, there)
        assert named.find(asked.upper()) is None
        assert named.similar(asked.upper()) == there
    # Of several that are equal in NFC, the first in alphabetical order, not in the disk's.
    assert Named({"ê\u0301": 1, "e\u0302\u0301": 2}).find("\u1ebf") == 2
    assert Named({"B": 1, "b": 2, "\uff42": 3}).similar("\uff22") == "B"


def test_names_that_differ_in_form_only_are_similar_and_others_are_not():
    named = Named({"ﬁlm Ⅳ.mp4": 1, "Straße": 2, "a": 3})
    assert named.similar("FILM IV.MP4") == "ﬁlm Ⅳ.mp4"
    assert named.similar("STRASSE") == "Straße"
    assert named.similar("b") is None
    assert Named({"A": 1, "a": 2}).similar("a") == "a"


@pytest.mark.parametrize(("there", "asked"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_files_are_found_in_either_form_below_folders_in_either_form(tmp_path, there, asked):
    folder = tmp_path / f"x{there}"
    folder.mkdir()
    (folder / there).touch()
    path = tmp_path / f"x{asked}" / asked
    assert os.fspath(find_path(path)) == os.fspath(folder / there)
    assert Files().find(path) == folder / there
    absent = tmp_path / f"x{asked}" / "other" / asked
    assert find_path(absent) == absent
    assert similar_path(absent) is None


def test_where_both_are_there_each_is_found_by_its_own_name(tmp_path):
    for name in (NFC, NFD):
        (tmp_path / name).write_text(name)
    assert find_path(tmp_path / NFC).read_text() == NFC
    assert find_path(tmp_path / NFD).read_text() == NFD
    files = Files()
    assert files.find(tmp_path / NFC).read_text() == NFC
    assert files.find(tmp_path / NFD).read_text() == NFD


def test_case_counts_and_is_told(tmp_path):
    (tmp_path / "Clips").mkdir()
    (tmp_path / "Clips" / "A.MP4").touch()
    path = tmp_path / "clips" / "a.mp4"
    assert find_path(path) == path
    assert similar_path(path) == tmp_path / "Clips" / "A.MP4"
    assert form_hint(similar_path(path)) == (
        f"; there is {tmp_path}/Clips/A.MP4, whose name differs only in case or in Unicode's form"
    )
    assert form_hint(None) == ""


def test_paths_of_every_shape_are_left_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / NFD).touch()
    for path in (
        ".",
        "..",
        "/",
        "a",
        "a/..",
        "a/../a",
        "nowhere/..",
        "a\0b",
        "nowhere\0/b",
        "\udcff",
    ):
        assert Files().find(Path(path)) == Path(path)
    assert Files().find(Path("a/..") / NFC) == Path("a/..") / NFD
    assert Files().find(Path(NFC)) == Path(NFD)
    assert find_path(Path(os.devnull)) == Path(os.devnull)


def test_a_folder_is_listed_once_for_many_names(tmp_path, monkeypatch):
    (tmp_path / NFD).touch()
    listed = []
    scandir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or scandir(path))
    files = Files()
    for number in range(100):
        files.find(tmp_path / f"{number}.mp4")
        assert files.find(tmp_path / NFC) == tmp_path / NFD
    assert listed == [tmp_path]


def test_files_in_a_folder_that_cannot_be_listed_are_found_by_their_own_name(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert Files().find(tmp_path / "a.mp4") == tmp_path / "a.mp4"
    assert Files().find(tmp_path / NFC) == tmp_path / NFC
    assert Files().similar(tmp_path / NFC) is None


def test_what_is_composed_is_left():
    assert nfc(NFC) == NFC
    assert nfc(NFD) == NFC
    assert nfc("a\udcff") == "a\udcff"
