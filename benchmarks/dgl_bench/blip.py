"""A BLIP of base's size with random numbers, and transformers' own model of it: what ours is timed beside."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from dgl_bench.random_backbone import moved

BLIP = "BLIP-B-384"  # what --backbone calls it; the sizes of Salesforce/blip-itm-base
TRANSFORMERS = "transformers"
_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_random_blip(folder: Path) -> Path:
    """Make a folder in Hugging Face's format that ``--backbone`` takes; the folder.

    The vocabulary is small, the table of tokens as large as the published one.
    """
    from transformers import BlipConfig, BlipForImageTextRetrieval

    ends = {"bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "is_decoder": False}
    config = BlipConfig(
        text_config={"num_attention_heads": 12, "vocab_size": 30524, **ends},
        vision_config={"image_size": 384, "layer_norm_eps": 1e-6},
        image_text_hidden_size=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BlipForImageTextRetrieval(config)
        model.load_state_dict({name: moved(name, one) for name, one in model.state_dict().items()})
    model.save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    inner = tokenizers.Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner.save(str(folder / "tokenizer.json"))
    return folder


class TransformersBlip(nn.Module):
    """transformers' own model, fed as transformers feeds it; a clip is the mean of its unit frames.

    Args:
        folder: In Hugging Face's format.
        mean: Of its pixels, [3, 1, 1].
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: str, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        from transformers import BlipForImageTextRetrieval

        self.model: Any = BlipForImageTextRetrieval.from_pretrained(folder)
        self.model.train(mode=False)
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L], padded -> unit-norm embeddings [B, E]."""
        seen = (tokens != self.model.config.text_config.pad_token_id).long()
        states = self.model.text_encoder(tokens, attention_mask=seen).last_hidden_state
        return F.normalize(self.model.text_proj(states[:, 0]), dim=-1)

    def encode_clips(self, frames: Tensor) -> Tensor:
        """uint8 [B, F, 3, S, S] -> unit-norm embeddings [B, E]."""
        pictures = (frames.flatten(0, 1).float() / 255 - self.mean) / self.std
        states = self.model.vision_model(pictures).last_hidden_state
        by_frame = F.normalize(self.model.vision_proj(states[:, 0]), dim=-1)
        return F.normalize(by_frame.unflatten(0, frames.shape[:2]).mean(dim=1), dim=-1)
