"""Encoders without blocks of ours: what is merged when they are exported as they are."""

import torch
from torch import nn

from dgl_export.fold import fold
from dgl_train.model.backbones.backbone import BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.dual_encoder import FrameMeanModel
from tests.helpers.open_clip_folders import write_open_clip


def convolutions(encoder):
    return sum(isinstance(one, nn.Conv2d) for one in encoder.modules())


@torch.no_grad()
def test_branches_for_training_become_one_convolution(tmp_path):
    folder = write_open_clip(tmp_path / "backbone", "mobileclip-s")
    model = FrameMeanModel(load_backbone(BackboneSource(str(folder))))
    before = convolutions(model.backbone.vision)
    merged = fold(model).clip_encoder
    assert convolutions(merged) < before
    assert convolutions(model.backbone.vision) == before
    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    found, _ = merged(frames)
    torch.testing.assert_close(found, model.encode_clips(frames), rtol=0, atol=1e-6)
