"""Small BLIPs with random numbers: a folder in Hugging Face's format, and the authors' own file of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.open_clip_folders import random_like, small_tokenizer

# Heads are as wide as in the authors' file, which does not say how many there are.
TINY_VISION = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
TINY_TEXT = {
    "hidden_size": 192,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 60,
    "encoder_hidden_size": 128,
}
# Theirs, to the authors': those of the image encoder, in the order in which they are replaced.
RENAMED = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    ("layer_norm", "norm"),
    ("self_attn.qkv", "attn.qkv"),
    ("self_attn.projection", "attn.proj"),
)


def write_blip(folder, *, vision=None, text=None, embed_dim=24):
    """A folder that ``--backbone`` takes; every tensor is random, biases and norms too."""
    model = blip_model(vision or TINY_VISION, text or TINY_TEXT, embed_dim)
    model.save_pretrained(folder)
    small_tokenizer("wordpiece").save(str(folder / "tokenizer.json"))
    return folder


def blip_model(vision, text, embed_dim):
    """transformers' model of these sizes."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    tokens = {"vocab_size": 120, "bos_token_id": 2, "sep_token_id": 3, "is_decoder": False}
    config = BlipConfig(
        vision_config=vision, text_config={**tokens, **text}, image_text_hidden_size=embed_dim
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = BlipForImageTextRetrieval(config).eval()
        model.load_state_dict(
            {name: random_like(name, one) for name, one in model.state_dict().items()}
        )
    return model


def write_vocabulary(folder, into):
    """The tokens of a folder's tokenizer.json as a vocab.txt; its path."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    lines = [f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)]
    (into / "vocab.txt").write_text("".join(lines))
    return into / "vocab.txt"


@dataclass(frozen=True)
class Embedded:
    """What transformers makes of a raw picture and raw texts: token ids, unit-norm embeddings."""

    ids: torch.Tensor
    texts: torch.Tensor
    picture: torch.Tensor


@torch.no_grad()
def embedded_by_transformers(folder, picture, texts):
    """transformers' model and processors on a picture [H, W, 3] and texts, padded to the longest."""
    from transformers import BertTokenizer, BlipForImageTextRetrieval
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    size = model.config.vision_config.image_size
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    pixels = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    with TemporaryDirectory() as place:
        tokenizer = BertTokenizer(str(write_vocabulary(folder, Path(place))))
    cut = {"padding": "longest", "truncation": True, "max_length": 35, "return_tensors": "pt"}
    rows = tokenizer([pre_caption(text) for text in texts], **cut)
    mask = rows["attention_mask"]
    text = model.text_encoder(rows["input_ids"], attention_mask=mask).last_hidden_state[:, 0]
    vision = model.vision_model(pixels).last_hidden_state[:, 0]
    return Embedded(
        rows["input_ids"],
        F.normalize(model.text_proj(text), dim=-1),
        F.normalize(model.vision_proj(vision), dim=-1),
    )


def pre_caption(text):
    """BLIP's cleaning as its authors describe it."""
    spaced = "".join(" " if letter in '.!"()*#:;~' else letter for letter in text.lower())
    while "  " in spaced:
        spaced = spaced.replace("  ", " ")
    return " ".join(spaced.strip(" ").split(" ")[:50])


def write_authors_file(folder, path, temperature=0.05):
    """The weights of a folder as the authors' file has them, with what only training needs."""
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for theirs, authors in RENAMED:
            if name.startswith(("vision_model", "visual_encoder")):
                name = name.replace(theirs, authors)
        state[name] = tensor
    copies = {
        name.replace(".", "_m.", 1): torch.zeros_like(tensor)
        for name, tensor in state.items()
        if not name.startswith("itm_head")
    }
    others = {
        "temp": torch.tensor(temperature),
        "image_queue": torch.zeros(24, 5),
        "queue_ptr": torch.zeros(1),
        "text_encoder.embeddings.position_ids": torch.arange(60)[None],
        "text_decoder.bert.embeddings.word_embeddings.weight": torch.zeros(2, 2),
    }
    torch.save(
        {"model": {**state, **copies, **others}, "config": {"vit": "base"}, "epoch": 5}, path
    )
    return path


def changed_tensors(path, change):
    """Rewrite a .safetensors file with other tensors."""
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})
