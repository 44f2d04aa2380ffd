"""What to export: a model with its settings and where it came from."""

from dataclasses import dataclass, replace
from pathlib import Path

from dgl_runtime.bundle.folder import sha256_of
from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_train.model.backbones.backbone import DEFAULT_FRAMES, BackboneSource
from dgl_train.model.backbones.registry import load_backbone
from dgl_train.model.checkpoint import checkpoint_file, load_checkpoint, untuned_model
from dgl_train.model.dual_encoder import DualEncoder, FrameMeanModel


@dataclass(frozen=True)
class ExportRequest:
    """What to export."""

    model: DualEncoder
    method: str
    num_frames: int
    max_tokens: int
    checkpoint: str
    checkpoint_sha256: str

    @property
    def frames(self) -> FrameSpec:
        """How the model looks at clips."""
        return replace(self.model.inputs.frames, num_frames=self.num_frames)

    @property
    def tokenizer(self) -> Tokenizer:
        """What reads the model's captions."""
        texts = replace(self.model.inputs.texts, max_tokens=self.max_tokens)
        return self.model.tokenizer.fed_as(texts)

    @property
    def inputs(self) -> InputSpec:
        """What the bundle will say of its inputs."""
        return InputSpec(self.frames, self.tokenizer.spec)


def tuned_request(ckpt: Path, *, zero_shot: bool = False) -> ExportRequest:
    """A run, a .safetensors file or a research checkpoint; with ``zero_shot`` its untuned backbone.

    Raises:
        ConfigError: It cannot be read, or its backbone is another.
    """
    tuned = load_checkpoint(ckpt)
    return ExportRequest(
        model=untuned_model(tuned) if zero_shot else tuned.model,
        method="zero-shot" if zero_shot else tuned.settings.method,
        num_frames=tuned.settings.num_frames,
        max_tokens=tuned.settings.max_tokens,
        checkpoint=str(ckpt),
        checkpoint_sha256=sha256_of(checkpoint_file(ckpt)),
    )


def untuned_request(name: str, pretrained: str) -> ExportRequest:
    """A backbone alone, with mean pooling.

    Raises:
        ConfigError: It does not load.
    """
    model = FrameMeanModel(load_backbone(BackboneSource(name, pretrained)))
    return ExportRequest(
        model=model,
        method="zero-shot",
        num_frames=DEFAULT_FRAMES,
        max_tokens=model.longest_text,
        checkpoint=name,
        checkpoint_sha256=model.digest(),
    )
