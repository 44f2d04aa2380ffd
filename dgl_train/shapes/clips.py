"""Moving shapes: small real mp4 clips whose captions need colour, shape, background and motion.

Made in seconds, for the learning tests, the demonstration and honest comparisons. Every clip with a
direction in time comes with its exact reversal under the reverse caption, so a model that is blind
to the order of frames tells the two captions apart in exactly half of the cases.
"""

import csv
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dgl_runtime.errors import ConfigError

Array = NDArray[np.float64]

SIZE = 64  # pixels, both ways
NUM_FRAMES = 24
FPS = 12
SPLITS = ("train", "val", "test")
COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 170, 60),
    "cyan": (40, 200, 215),
    "blue": (40, 70, 220),
    "purple": (125, 45, 165),
    "pink": (245, 130, 185),
}
SHAPES = ("circle", "triangle", "cross", "ring")
PLAIN_LEVELS = {"dark": 25.0, "light": 230.0}
BACKGROUNDS = (*PLAIN_LEVELS, "striped", "checkered")
REVERSES = {"moves right": "moves left", "moves down": "moves up", "grows": "shrinks"}
EVENT_COUNT = 8  # the six of REVERSES, "turns <colour>" and "stays still"

_CONFIG_FILE = "made_from.json"
_FORMAT = 2  # raise it when the same settings give other clips


@dataclass(frozen=True)
class Look:
    """What a frame shows; the splits share no look."""

    colour: str
    shape: str
    background: str

    def phrase(self, size: str = "") -> str:
        """The look's noun phrase, with its article and a word for its size."""
        words = f"{size} {self.colour} {self.shape}".strip()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def caption(self, event: str) -> str:
        """The caption of a clip that starts with this look."""
        return f"{self.phrase()} {event} over a {self.background} background"


@dataclass(frozen=True)
class PlannedClip:
    """One clip before it is drawn: what happens forwards, and whether it is then reversed."""

    caption: str
    reversed_caption: str
    look: Look
    event: str
    backwards: bool
    seed: tuple[int, ...]


@cache
def looks(split: str) -> tuple[Look, ...]:
    """The looks of a split: 80 train, 16 val, 32 test, the same for every seed and size.

    Held-out looks come as two colours of one shape on one background, so that colours can turn
    inside a split; each colour, shape and background is held out equally often.
    """
    every = [Look(c, s, b) for s in SHAPES for b in BACKGROUNDS for c in COLOURS]

    def pairs(background: int, first: int, second: int) -> list[Look]:
        """For each shape two colours on one background, counted on from the shape's own number."""
        return [
            every[(n * 4 + (n + background) % 4) * 8 + (n + colour) % 8]
            for n in range(len(SHAPES))
            for colour in (first, second)
        ]

    found = {
        "test": [look for n in range(4) for look in pairs(n, n, n + 4)],
        "val": pairs(0, 1, 5) + pairs(1, 2, 6),
    }
    found["train"] = [look for look in every if look not in found["test"] + found["val"]]
    return tuple(found[split])


def plan_clips(split: str, num_clips: int, seed: int) -> list[PlannedClip]:
    """Choose a split's clips: events equally frequent, captions distinct, every reversal included.

    Raises:
        ConfigError: If ``num_clips`` is no multiple of 16 or more than the split has captions for.
    """
    pool = looks(split)
    most = EVENT_COUNT * len(pool)
    if num_clips % 16 or not 0 < num_clips <= most:
        raise ConfigError(
            f"{num_clips} {split} clips cannot be balanced. Give a multiple of 16 up to {most}."
        )
    stream = (seed, SPLITS.index(split))
    rng = np.random.default_rng(stream)
    per_event = num_clips // EVENT_COUNT
    turns = [
        (one, f"turns {two.colour}", replace(one, colour=two.colour).caption(f"turns {one.colour}"))
        for one, two in combinations(pool, 2)
        if (one.shape, one.background) == (two.shape, two.background)
    ]
    there_and_back = [turns[i] for i in rng.permutation(len(turns))[: per_event // 2]]
    for event, reverse in REVERSES.items():
        for i in rng.permutation(len(pool))[:per_event]:
            there_and_back.append((pool[i], event, pool[i].caption(reverse)))
    clips: list[PlannedClip] = []
    for look, event, reverse in there_and_back:
        both = (look.caption(event), reverse)
        seeds = (*stream, len(clips))
        clips.append(PlannedClip(*both, look, event, False, seeds))
        clips.append(PlannedClip(*both[::-1], look, event, True, seeds))
    for i in rng.permutation(len(pool))[:per_event]:
        caption = pool[i].caption(event := "stays still")
        clips.append(PlannedClip(caption, caption, pool[i], event, False, (*stream, len(clips))))
    return [clips[i] for i in rng.permutation(len(clips))]


def render_clip(clip: PlannedClip) -> NDArray[np.uint8]:
    """Draw a clip: RGB uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(clip.seed)
    time = np.linspace(0, 1, NUM_FRAMES)
    x, y = np.full((2, NUM_FRAMES), rng.uniform(0.38, 0.62, size=(2, 1)) * SIZE)
    radius = np.full(NUM_FRAMES, rng.uniform(11, 14))
    rgb = np.broadcast_to(np.array(COLOURS[clip.look.colour], float), (NUM_FRAMES, 3))
    path = SIZE * (rng.uniform(0.20, 0.26) + time * rng.uniform(0.50, 0.54))
    if clip.event == "moves right":
        x = path
    elif clip.event == "moves down":
        y = path
    elif clip.event == "grows":
        radius = rng.uniform(6, 8) + time * rng.uniform(10, 13)
    elif clip.event.startswith("turns "):
        share = np.clip((time - 0.35) / 0.3, 0, 1)[:, None]
        rgb = (1 - share) * rgb + share * np.array(COLOURS[clip.event.removeprefix("turns ")])
    frames = draw(clip.look, x=x, y=y, radius=radius, rgb=rgb)
    return frames[::-1] if clip.backwards else frames


def draw(look: Look, *, x: Array, y: Array, radius: Array, rgb: Array) -> NDArray[np.uint8]:
    """Draw a shape over a background, with smooth edges, once for each place, size and colour.

    ``x``, ``y`` (the centre, from the left and the top) and ``radius`` are pixels, [F]; ``rgb`` is
    the colour, 0 to 255, [F, 3]. The result is RGB, uint8 [F, H, W, 3].
    """
    pixel = np.arange(SIZE) + 0.5
    scale = radius[:, None, None]
    u = (pixel[None, None, :] - x[:, None, None]) / scale
    v = (pixel[None, :, None] - y[:, None, None]) / scale
    cover = np.clip(0.5 - scale * _signed_distance(look.shape, u, v), 0, 1)[..., None]
    ground = _background(look.background)[None, :, :, None]
    return np.rint(ground + cover * (rgb[:, None, None, :] - ground)).astype(np.uint8)


def _signed_distance(shape: str, u: Array, v: Array) -> Array:
    """Distance to the edge of a shape of extent 1, negative inside; u points right, v down."""
    a, b, distance = np.abs(u), np.abs(v), np.hypot(u, v)
    match shape:
        case "circle":
            edge = distance - 0.9
        case "triangle":
            edge = np.maximum(v - 0.5, 0.866 * a - 0.5 * v - 0.5)
        case "cross":
            edge = np.maximum(np.maximum(a, b) - 0.95, np.minimum(a, b) - 0.3)
        case "ring":
            edge = np.abs(distance - 0.7) - 0.2
        case _:
            raise ValueError(f"shape {shape!r} is none of {', '.join(SHAPES)}.")
    return np.asarray(edge)


def _background(name: str) -> Array:
    """Grey levels [H, W]; the patterns favour no direction of motion."""
    if name in PLAIN_LEVELS:
        return np.full((SIZE, SIZE), PLAIN_LEVELS[name])
    row, column = np.mgrid[0:SIZE, 0:SIZE]
    cells = (row + column) // 8 if name == "striped" else row // 8 + column // 8
    return np.where(cells % 2 == 0, 110.0, 150.0)


def write_mp4(path: Path, frames: NDArray[np.uint8]) -> None:
    """Encode RGB frames [F, H, W, 3] with H.264; one thread, so that runs agree to the bit."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        container.mux(stream.encode())


def make_shapes(
    folder: Path,
    *,
    num_train: int = 640,
    num_val: int = 128,
    num_test: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write ``videos/*.mp4`` and ``captions.csv`` (video, caption, split, reversed_caption).

    The same arguments give the same pixels; a folder already made with them is returned at once. An
    interrupted call leaves no folder.

    Raises:
        ConfigError: If the folder holds anything else, or a split's size cannot be balanced.
    """
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    plans = {split: plan_clips(split, size, seed) for split, size in sizes.items()}

    def write(staging: Path) -> dict[str, Any]:
        (staging / "videos").mkdir()
        rows = []
        with tqdm(total=sum(sizes.values()), desc="clips", disable=not progress) as bar:
            for split, clips in plans.items():
                for number, clip in enumerate(clips):
                    video = f"videos/{split}_{number:05d}.mp4"
                    write_mp4(staging / video, render_clip(clip))
                    rows.append((video, clip.caption, split, clip.reversed_caption))
                    bar.update()
        with (staging / "captions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("video", "caption", "split", "reversed_caption"))
            writer.writerows(rows)
        return {"clips": len(rows)}

    return build_once(folder, {"shapes": _FORMAT, **sizes, "seed": seed}, write)


def build_once(
    folder: Path, config: dict[str, Any], write: Callable[[Path], dict[str, Any]]
) -> Path:
    """Make a folder all at once, or keep the one that was made with the same configuration.

    Args:
        folder: The folder to make; it appears when it is complete.
        config: All that decides the content.
        write: Fills an empty folder; returns what is worth reporting, stored with ``config``.

    Raises:
        ConfigError: If the folder was made with another configuration, or holds something else.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        made = read_made_from(folder).get("config")
        if made == json.loads(json.dumps(config)):
            return folder
        found = f"what was made with {json.dumps(made)}" if made else "something else"
        wanted = f"{json.dumps(config)}. Give another folder or delete it."
        raise ConfigError(f"{folder} holds {found}, not {wanted}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as parent:
        staging = Path(parent) / folder.name
        staging.mkdir()
        made_from = {"config": config, "report": write(staging)}
        (staging / _CONFIG_FILE).write_text(json.dumps(made_from, indent=2) + "\n", "utf-8")
        staging.rename(folder)
    return folder


def read_made_from(folder: Path) -> dict[str, Any]:
    """The ``config`` and ``report`` of a folder that ``build_once`` made; empty for any other."""
    try:
        made_from = json.loads((folder / _CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return made_from if isinstance(made_from, dict) else {}
