"""Videos of a data root, found by their stem."""

from dgl_train.data.annotation_files import index_videos


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_first_of_several_files_with_one_stem_counts(tmp_path):
    make(
        tmp_path, "b/x.mp4", "x.webm", "b/a/x.avi", "a/y.mp4", "a/y.MKV", "A.mp4", "a.mp4", "z.txt"
    )
    found = {stem: str(path.relative_to(tmp_path)) for stem, path in index_videos(tmp_path).items()}
    assert found == {"x": "x.webm", "y": "a/y.MKV", "A": "A.mp4", "a": "a.mp4"}


def test_videos_alone_count_where_there_is_a_folder_of_that_name(tmp_path):
    make(tmp_path, "videos/x.mp4", "elsewhere/y.mp4", "z.mp4")
    assert set(index_videos(tmp_path)) == {"x"}


def test_system_folders_hidden_names_and_linked_folders_are_passed_over(tmp_path):
    root = tmp_path / "root"
    make(
        root,
        "#recycle/x.mp4",
        "@eaDir/x.mp4/SYNO.mp4",
        "sub/lost+found/y.mp4",
        ".hidden/z.mp4",
        "._x.mp4",
    )
    make(tmp_path, "elsewhere/w.mp4")
    make(root, "sub/x.mp4", "typescript.ts")
    (root / "typescript.ts").write_text("export {};")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    assert index_videos(root) == {"x": root / "sub" / "x.mp4"}
    root.rename(tmp_path / "@tmp")
    assert index_videos(tmp_path / "@tmp") == {"x": tmp_path / "@tmp" / "sub" / "x.mp4"}
