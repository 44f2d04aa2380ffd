"""Checkpoints: ours holds only what was trained; the research code's is read in both its variants.

Ours is one safetensors file: 2 MB for DGL-linear at ViT-B/32, 38 MB for DGL-transformer. Its header
names the method, the counts, and the backbone with its hash, so a checkpoint is never put on another
backbone by mistake.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from dgl_runtime.errors import ConfigError, reason_of
from dgl_runtime.plain_path import plain_path
from dgl_train.model.backbones.backbone import Backbone, BackboneSource, require_towers
from dgl_train.model.backbones.clip import Kind, clip_backbone, rename_block
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.backbones.tensor_files import read_safetensors, read_torch_file
from dgl_train.model.dgl import DglModel
from dgl_train.model.dual_encoder import FrameMeanModel
from dgl_train.model.methods import (
    RENAMED,
    ModelSettings,
    TunedModel,
    build_model,
    load_trained,
    make_prompts,
    trained_parameters,
)
from dgl_train.model.prompts import PromptCounts, PromptGenerator

FORMAT = "dgl-tuned-2"


def save_checkpoint(path: Path, tuned: TunedModel) -> None:
    """Write what was trained, and what it belongs to."""
    from safetensors.torch import save_file

    header = {
        "format": FORMAT,
        "settings": json.dumps(asdict(tuned.settings)),
        "backbone": json.dumps(asdict(tuned.model.source)),
        "backbone_sha256": tuned.backbone_sha256,
    }
    trained = trained_parameters(tuned.model)
    tensors = {name: tensor.detach().contiguous() for name, tensor in trained.items()}
    with replacing(path) as temporary, plain_path(temporary) as plain:
        save_file(tensors, plain, metadata=header)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside another and put it in its place in one step.

    Raises:
        ConfigError: The file cannot be written, as on a full disk; the old one is kept.
    """
    temporary = path.with_suffix(".writing")
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    except Exception as error:  # torch and safetensors wrap the system's error in their own
        temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{path} cannot be written: {reason_of(error)}. Make room, then use --resume."
        ) from error


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path, backbone: Backbone | None = None) -> TunedModel:
    """Read our checkpoint, a run folder that holds one, or the research code's ``ckpt.best.pth.tar``.

    Args:
        path: The file, or a run folder (its ``best.safetensors`` is read).
        backbone: Used in place of the one the checkpoint names; its weights must be the same.

    Raises:
        ConfigError: Not a checkpoint, or one of another backbone.
    """
    path = checkpoint_file(path)
    if path.suffix != ".safetensors":
        return read_research_checkpoint(path)
    return _load_own(path, backbone)


def untuned_model(tuned: TunedModel) -> FrameMeanModel:
    """The backbone as it was before tuning, with the same inputs; read again where it was changed.

    Raises:
        ConfigError: It does not load any more.
    """
    model = tuned.model
    backbone = model.backbone if isinstance(model, DglModel) else load_backbone(model.source)
    return FrameMeanModel(backbone, model.inputs)


def checkpoint_file(path: Path) -> Path:
    """The file of a checkpoint given as a file or as a run folder.

    Raises:
        ConfigError: There is none.
    """
    file = path / "best.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"checkpoint {file} does not exist. Give a run folder of dgl-train that has finished an "
            "epoch, a .safetensors file, or the research code's ckpt.best.pth.tar."
        )
    return file


def _load_own(path: Path, backbone: Backbone | None) -> TunedModel:
    header, tensors = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise ConfigError(
            f"{path} has format {header.get('format')!r}, this version reads {FORMAT!r}. "
            "Give a checkpoint that dgl-train wrote."
        )
    try:
        saved = json.loads(header["settings"])
        fields = {RENAMED.get(name, name): value for name, value in saved.items()}
        settings = ModelSettings(**{**fields, "counts": PromptCounts(**fields["counts"])})
        source = BackboneSource(**json.loads(header["backbone"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a damaged header: {reason_of(error)}") from error
    if backbone is None:
        backbone = load_backbone(source)
    if backbone.digest() != header["backbone_sha256"]:
        raise ConfigError(
            f"{path} was trained on a backbone with sha256 {header['backbone_sha256'][:12]}, but "
            f"{backbone.facts.source.name!r} has {backbone.digest()[:12]}. Give the backbone it was trained on."
        )
    tuned = build_model(backbone, settings)
    load_trained(tuned.model, tensors)
    return tuned


def read_research_checkpoint(path: Path) -> TunedModel:
    """Read ``ckpt.best.pth.tar`` of the research code; the backbone comes out of the same file.

    Both variants, with and without data-parallel's ``module.`` prefix. The linear variant's postfix
    projection is ignored: it gets no gradient and reaches nothing.

    Raises:
        ConfigError: Not such a file, or tensors of it are missing.
    """
    state = _read_research_state(path)
    try:
        return _research_model(state, str(path))
    except ConfigError:
        raise
    except Exception as error:  # tensors of other shapes lead to many kinds
        raise ConfigError(
            f"{path} does not fit a DGL model: {reason_of(error)}. "
            "Expected the DGL research code's ckpt.best.pth.tar with all its tensors."
        ) from error


def _research_model(state: dict[str, Tensor], name: str) -> TunedModel:
    kind = Kind(
        vision_heads=state["visual.proj"].shape[0] // 64,  # as CLIP's ViTs; the file does not say
        text_heads=state["text_projection"].shape[0] // 64,
        quick_gelu=True,
    )
    backbone = clip_backbone(state, BackboneSource(name), kind)
    blocks = len(require_towers(backbone, "DGL").vision.blocks)
    num_globals = state["visual.prompt_embeddings"].shape[1]
    if "visual_prompt_embedding" in state:
        return _research_linear(state, backbone, num_globals, blocks)
    return _research_transformer(state, backbone, num_globals, blocks)


def _read_research_state(path: Path) -> dict[str, Tensor]:
    checkpoint = read_torch_file(path)
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    plain = {
        str(name).removeprefix("module.").removeprefix("clip."): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
    needed = {"visual.proj", "text_projection", "visual.prompt_embeddings"}
    if absent := sorted(needed - plain.keys()):
        raise ConfigError(
            f"{path} has no tensor {absent[0]!r} among its {len(plain)}. "
            "Expected the DGL research code's ckpt.best.pth.tar, or a checkpoint of dgl-train."
        )
    return {name: t.float() if t.is_floating_point() else t for name, t in plain.items()}


def _research_linear(
    state: dict[str, Tensor], backbone: Backbone, num_globals: int, blocks: int
) -> TunedModel:
    table = state["visual_prompt_embedding"][0]  # [K, blocks * D], block is the slow axis
    rows = table.shape[0]
    counts = PromptCounts(num_globals, rows, 2 * rows)
    settings = ModelSettings("dgl-linear", counts, num_frames=12, max_tokens=32)
    prompts = make_prompts(backbone, settings)
    prompts.load_state_dict(
        {
            "frame_positions": prompts.frame_positions,
            "global_prompts": state["visual.prompt_embeddings"][0],
            "latent": table.unflatten(1, (blocks, -1)).transpose(0, 1),
            "to_caption.weight": state["prefix_text_prompt_proj_layer.weight"],
            "to_caption.bias": state["prefix_text_prompt_proj_layer.bias"],
        }
    )
    return _research_tuned(backbone, prompts, settings)


def _research_transformer(
    state: dict[str, Tensor], backbone: Backbone, num_globals: int, blocks: int
) -> TunedModel:
    table = state["unified_prompt_embedding.weight"]  # [2C + K*F, blocks * D]
    counts = PromptCounts(num_globals)
    num_frames = (table.shape[0] - counts.caption_prompts) // counts.frame_prompts
    settings = ModelSettings("dgl-transformer", counts, num_frames=num_frames, max_tokens=32)
    prompts = make_prompts(backbone, settings)
    mixer = "PromptTransformer.resblocks.0."
    tensors = {
        "frame_positions": prompts.frame_positions.detach(),
        "global_prompts": state["visual.prompt_embeddings"][0],
        "latent": table.unflatten(1, (blocks, -1)).transpose(0, 1),
    }
    for name, tensor in state.items():
        if name.startswith(mixer):
            tensors[rename_block("mixer." + name.removeprefix(mixer))] = tensor
        elif name.startswith("unified_prompt_mlp.c_"):
            tensors[name.replace("unified_prompt_mlp.c_", "caption_")] = tensor
    prompts.load_state_dict(tensors)
    return _research_tuned(backbone, prompts, settings)


def _research_tuned(
    backbone: Backbone, prompts: PromptGenerator, settings: ModelSettings
) -> TunedModel:
    inputs = backbone.inputs_of(settings.num_frames, settings.max_tokens)
    model = DglModel(backbone, prompts, inputs=inputs)
    return TunedModel(model, settings, backbone.digest())
