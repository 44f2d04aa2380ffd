"""Write small data sets exactly as the public ones are published, and videos with every kind of damage."""

import csv
import json
import pickle
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.odd_videos import damage, truncate, write_audio, write_video
from tests.helpers.tiny import WORDS, write_tiny_clips

SIZES = {"train": 8, "val": 4, "test": 4}  # videos; a set without a val split has the others only


def write_layout(name, folder, **sizes):
    """A data set in the layout of its published files, videos in ``videos``; returns its root.

    ``clips.csv`` and ``clips.jsonl`` are data sets of one's own, in the root. ``sizes`` are numbers
    of videos of splits, in place of those in ``SIZES``.
    """
    notes = folder / "annotations"
    notes.mkdir(parents=True)
    {
        "msrvtt": _write_msrvtt,
        "msrvtt-7k": _write_msrvtt,
        "lsmdc": _write_lsmdc,
        "activitynet": _write_activitynet,
        "didemo": _write_didemo,
        "msvd": _write_msvd,
        "vatex": _write_vatex,
        "clips.csv": _write_csv,
        "clips.jsonl": _write_jsonl,
    }[name](folder, notes, SIZES | sizes)
    return folder


def videos_of(root):
    """Every video of a layout, sorted."""
    return sorted(path for path in (root / "videos").rglob("*") if path.is_file())


def _write_videos(root, names):
    """Videos with given file names below ``videos``; returns a noun for each."""
    made = write_tiny_clips(root / "made", len(names))
    for clip, name in zip(made, names, strict=True):
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        clip.video.rename(path)
    (root / "made").rmdir()
    return [WORDS[number % len(WORDS)] for number in range(len(names))]


def _ids(form, sizes, *splits):
    """Split -> ids, numbered through."""
    numbers = iter(range(sum(sizes.values())))
    return {
        split: [form.format(next(numbers)) for _ in range(count)]
        for split, count in sizes.items()
        if split in splits
    }


def _write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_lines(path, lines):
    path.write_text("\n".join(lines))  # as published, without a line end behind the last


def _write_msrvtt(root, notes, sizes):
    ids = _ids("video{}", sizes, "train", "test")
    every = ids["train"] + ids["test"]
    nouns = dict(zip(every, _write_videos(root, [f"{i}.mp4" for i in every]), strict=True))
    for size in ("9k", "7k"):
        (notes / f"MSRVTT_train.{size}.csv").write_text("video_id\n" + "\n".join(ids["train"]))
    with (notes / "MSRVTT_JSFUSION_test.csv").open("w", newline="") as file:
        rows = [(f"ret{n}", f"msr{n}", i, f"one {nouns[i]}") for n, i in enumerate(ids["test"])]
        csv.writer(file).writerows([("key", "vid_key", "video_id", "sentence"), *rows])
    sentences = [
        {"caption": f"{count} {nouns[i]}", "video_id": i, "sen_id": n}
        for n, (count, i) in enumerate((count, i) for count in ("a", "the") for i in every)
    ]
    videos = [{"video_id": i, "category": 1, "split": "train"} for i in every]
    _write_json(notes / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})


def _write_lsmdc(root, notes, sizes):
    ids = _ids("10{:02}_A_FILM_00.00.01.000-00.00.02.886", sizes, "train", "val", "test")
    every = [i for part in ids.values() for i in part]
    names = [f"{i.split('_00.')[0]}/{i}.avi" for i in every]
    nouns = dict(zip(every, _write_videos(root, names), strict=True))
    files = {
        "train": "LSMDC16_annos_training.csv",
        "val": "LSMDC16_annos_val.csv",
        "test": "LSMDC16_challenge_1000_publictect.csv",
    }
    times = "00.00.01.000\t00.00.02.886\t00.00.01.000\t00.00.02.886"
    for split, name in files.items():
        rows = [f'{i}\t{times}\tSOMEONE says "{nouns[i]}\n' for i in ids[split]]
        (notes / name).write_text("".join(rows))


def _write_activitynet(root, notes, sizes):
    ids = _ids("v_-{:010}", sizes, "train", "test")
    every = ids["train"] + ids["test"]
    # Both names are about: as the id, and without the v_.
    names = [f"{i.removeprefix('v_') if n % 2 else i}.mp4" for n, i in enumerate(every)]
    nouns = dict(zip(every, _write_videos(root, names), strict=True))
    for split, captions in (("train", "train.json"), ("test", "val_1.json")):
        listed = [*ids[split], f"v_no_caption_{split}"]
        _write_json(notes / f"{captions.split('.')[0].removesuffix('_1')}_ids.json", listed)
        entry = {"duration": 1.0, "timestamps": [[0, 0.5], [0.4, 1.0]]}
        _write_json(
            notes / captions,
            {i: {**entry, "sentences": [f"The {nouns[i]}.", "  It  ends."]} for i in ids[split]},
        )


def _write_didemo(root, notes, sizes):
    ids = _ids("12{:03}@N00_34_ab.mov", sizes, "train", "val", "test")
    every = [i for part in ids.values() for i in part]
    # Most were converted; some were given a second extension.
    names = [f"{i}.mp4" if n % 4 == 3 else i.replace(".mov", ".mp4") for n, i in enumerate(every)]
    nouns = dict(zip(every, _write_videos(root, names), strict=True))
    for split, part in ids.items():
        _write_lines(notes / f"{split}_list.txt", part)
        rows = [
            {"description": text.format(nouns[i]), "times": [[0, 0]], "video": i}
            for text in ("the {} ", "it ends")
            for i in part
        ]
        _write_json(notes / f"{split}_data.json", rows)


def _write_msvd(root, notes, sizes):
    ids = _ids("-4wsuPC{:02}_5_15", sizes, "train", "val", "test")
    every = [i for part in ids.values() for i in part]
    nouns = dict(zip(every, _write_videos(root, [f"{i}.avi" for i in every]), strict=True))
    for split, part in ids.items():
        _write_lines(notes / f"{split}_list.txt", part)
    captions = {i: [["a", nouns[i]], ["the", nouns[i]], [nouns[i]]] for i in every}
    (notes / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))


def _write_vatex(root, notes, sizes):
    ids = _ids("Ptf_2VRj-V{:02}_000122_000132", sizes, "train", "test")
    every = ids["train"] + ids["test"]
    nouns = dict(zip(every, _write_videos(root, [f"{i}.mp4" for i in every]), strict=True))
    for split, part in ids.items():
        _write_lines(notes / f"{split}_list.txt", part)
    _write_json(
        notes / "ref_captions.json", {i: [f"A {nouns[i]}.", f"The {nouns[i]}."] for i in every}
    )


def _rows(root, sizes):
    """Video, caption and split, some clips with times."""
    ids = _ids("take {:02}", sizes, "train", "val", "test")
    every = [i for part in ids.values() for i in part]
    nouns = dict(zip(every, _write_videos(root, [f"{i}.mp4" for i in every]), strict=True))
    return [
        {"video": f"{i}.mp4", "caption": f"the {nouns[i]}", "split": split, "end_s": 0.5}
        for split, part in ids.items()
        for i in part
    ]


def _write_csv(root, notes, sizes):
    rows = _rows(root, sizes)
    with (root / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(root, notes, sizes):
    lines = [json.dumps(row) for row in _rows(root, sizes)]
    (root / "clips.jsonl").write_text("\n".join(lines))


def damage_twenty(folder):
    """Twenty damaged videos, two of each of ten kinds, beside what is in a folder; their paths."""
    names = [f"damaged{kind.__name__}{number}.mp4" for number in (0, 1) for kind in _kinds()]
    paths = [folder / name for name in names]
    damage_all(paths)
    return paths


def damage_all(paths):
    """Put damaged videos in place of others, the next of ten kinds for each."""
    for path, kind in zip(paths, cycle(_kinds()), strict=False):
        path.unlink(missing_ok=True)
        made = path.with_suffix(
            ".mp4"
        )  # whatever it is called later: its content is that of an mp4
        kind(made)
        made.rename(path)


def _kinds():
    return [
        _empty, _text, _only_a_header, _cut_off, _flipped, _zeros, _audio, _picture, _folder, _gone,
    ]  # fmt: skip


def _empty(path):
    path.touch()


def _text(path):
    path.write_text(f"404: {path.name} was not found\n" * 20)


def _only_a_header(path):
    truncate(write_video(path, options={"movflags": "faststart"}), 0.05)


def _cut_off(path):
    """Opens and plays, but not to its end: the header stands in front."""
    truncate(write_video(path, 50 + len(path.name), options={"movflags": "faststart"}), 0.6)


def _flipped(path):
    content = write_video(path).read_bytes()
    start = (content.index(b"moov") + 4) / len(content)
    damage(path, start, 1.0)


def _zeros(path):
    path.write_bytes(bytes(10_000))


def _audio(path):
    write_audio(path, "aac")


def _picture(path):
    Image.fromarray(np.full((48, 64, 3), 99, np.uint8)).save(path, format="png")


def _folder(path):
    path.mkdir()


def _gone(path):
    path.symlink_to(Path("moved", path.name))
