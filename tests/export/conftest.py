import pytest
import torch

from dgl_export.fold import fold
from dgl_export.parity import drifting_patterns
from dgl_export.to_onnx import write_clip_encoder, write_text_encoder
from dgl_train.model.backbones.clip_vocabulary import clip_tokenizer
from tests.helpers.tiny import tiny_backbone
from tests.helpers.tiny_models import NUM_FRAMES, SETTINGS, make_model


@pytest.fixture(scope="session")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="session", params=[*SETTINGS, "zero-shot"])
def method(request):
    return request.param


@pytest.fixture(scope="session")
def model(method):
    return make_model(tiny_backbone(), method)


@pytest.fixture(scope="session")
def float32(backbone, tmp_path_factory):
    """Float32 graphs of the tiny model: their folder and what the manifest says of them."""
    folder = tmp_path_factory.mktemp("float32")
    folded = fold(make_model(backbone, "dgl-linear"))
    tokens = torch.from_numpy(clip_tokenizer(20)(["a cat", "two dogs run"]).ids)
    frames = torch.from_numpy(drifting_patterns(2, NUM_FRAMES, 16))
    return folder, [
        write_text_encoder(folded.text_encoder, tokens, folder),
        write_clip_encoder(folded.clip_encoder, frames, folder, any_frames=True),
    ]
