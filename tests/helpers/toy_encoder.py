"""A dual encoder that is no CLIP, in one file: all that a family of backbones has to bring.

Words of a vocabulary of its own, texts padded to one length and read at the last place, pictures squashed
and read as the mean of their patches, a sigmoid loss with a bias.
"""

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from dgl_runtime.bundle.input_spec import InputSpec, TextSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_train.model.backbones.backbone import Backbone, Facts
from dgl_train.model.backbones.registry import Family

SIZE, PATCH, WIDTH, EMBED = 20, 10, 32, 24
UNKNOWN, PAD, END = range(3)
LENGTH = 6
FRAMES = FrameSpec(2, SIZE, "squash", "bilinear", (0.5,) * 3, (0.5,) * 3, "centers")
TEXTS = TextSpec("canonicalize", LENGTH, PAD, pad_to=LENGTH, start_id=None, end_id=END, read="last")


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, EMBED))

    def forward(self, frames):
        return self.mlp(self.patches(frames).flatten(2).transpose(1, 2)).mean(dim=1)


class Text(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.words = nn.Embedding(words, WIDTH)
        self.positions = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, num_heads=2, batch_first=True)
        self.out = nn.Linear(WIDTH, EMBED)

    def forward(self, tokens):
        x = self.words(tokens) + self.positions
        attended, _ = self.attention(x, x, x, need_weights=False)
        return self.out(x[:, -1] + attended[:, -1])


def write_toy(folder, words):
    """Untrained, in a folder that ``--backbone`` takes."""
    folder.mkdir()
    known = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[END]", *words])}
    inner = tokenizers.Tokenizer(WordLevel(known, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.save(str(folder / "tokenizer.json"))
    (folder / "toy.json").write_text(json.dumps({"words": len(known)}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = nn.ModuleDict({"vision": Vision(), "text": Text(len(known))})
    scalars = {"logit_scale": torch.tensor(2.3), "logit_bias": torch.tensor(-3.0)}
    save_file({**encoders.state_dict(), **scalars}, folder / "toy.safetensors")
    return folder


def load(source):
    folder = Path(source.name)
    tokenizer = Tokenizer.load(folder / "tokenizer.json", TEXTS)
    facts = Facts(source, InputSpec(FRAMES, TEXTS), tokenizer, EMBED, loss="sigmoid")
    words = json.loads((folder / "toy.json").read_text())["words"]
    backbone = Backbone(Vision(), Text(words), facts, logit_bias=0.0)
    backbone.load_state_dict(load_file(folder / "toy.safetensors"))
    return backbone


FAMILY = Family(knows=lambda source: (Path(source.name) / "toy.json").is_file(), load=load)
