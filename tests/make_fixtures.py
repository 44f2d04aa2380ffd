"""Make what the tests of the runtime need: three tiny bundles, some videos and a gallery of them.

The runtime's tests also run where torch is not installed. There, make the folder elsewhere with
``python tests/make_fixtures.py FOLDER`` and name it in the environment variable DGL_TEST_FIXTURES.
"""

import sys
from pathlib import Path

import open_clip
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from dgl_export import quality
from dgl_export.bundle_writer import write_bundle
from dgl_export.calibration import made_calibration
from dgl_export.formats import Target
from dgl_export.request import ExportRequest
from dgl_runtime import Retriever
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.clip import Kind, clip_backbone
from dgl_train.model.dgl import DglModel
from dgl_train.model.prompts import LinearPrompts, PromptCounts
from tests.helpers.odd_videos import write_video

NUM_FRAMES, MAX_TOKENS = 4, 32


def tiny_model(seed: int) -> DglModel:
    """A random CLIP of two blocks a tower for frames of 32 pixels, with DGL-linear prompts."""
    torch.manual_seed(seed)
    network = open_clip.CLIP(
        32,
        open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32),
        open_clip.CLIPTextCfg(layers=2, width=32, heads=2),
        quick_gelu=True,
    )
    state = network.state_dict()
    noise = {name: 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    state = {name: tensor + noise[name] for name, tensor in state.items()}
    kind = Kind(vision_heads=2, text_heads=2, quick_gelu=True)
    backbone = clip_backbone(state, BackboneSource("tiny"), kind)
    return DglModel(backbone, LinearPrompts(backbone, PromptCounts(2, 2, 4))).eval()


def make_fixtures(folder: Path) -> None:
    """Fill a folder with ``bundle``, ``int8_bundle``, ``other_bundle``, ``videos`` and ``gallery``."""
    request, other = (
        ExportRequest(
            tiny_model(seed), "dgl-linear", NUM_FRAMES, MAX_TOKENS, "made for tests", "0" * 64
        )
        for seed in (0, 1)
    )
    write_bundle(request, folder / "bundle")
    write_bundle(other, folder / "other_bundle")
    quality.MIN_TOP1["int8"] = 0  # to random weights all clips are alike
    calibration = made_calibration(request.frames, request.tokenizer)
    write_bundle(request, folder / "int8_bundle", Target("onnx", "int8"), calibration)
    (folder / "videos").mkdir()
    for number in range(3):
        write_video(folder / "videos" / f"video{number}.mp4", 20 + 10 * number)
    with Retriever(folder / "bundle", folder / "gallery", threads=1) as retriever:
        retriever.add_videos([folder / "videos"], window_s=1.0, stride_s=0.5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_fixtures(Path(sys.argv[1]))
