"""What to export: a model with its settings and where it came from."""

from dataclasses import dataclass
from pathlib import Path

from dgl_runtime.bundle.folder import sha256_of
from dgl_runtime.bundle.input_spec import InputSpec
from dgl_runtime.bundle.tokenizer import Tokenizer
from dgl_runtime.media.frame_spec import FrameSpec
from dgl_train.data.vocabulary import clip_tokenizer
from dgl_train.model.backbone import BackboneSource, load_backbone
from dgl_train.model.checkpoint import checkpoint_file, load_checkpoint, untuned_backbone
from dgl_train.model.dgl import FrameMeanModel, RetrievalModel

ZERO_SHOT_FRAMES, ZERO_SHOT_WORDS = 12, 32  # of a backbone alone, unless it reads shorter captions


@dataclass(frozen=True)
class ExportRequest:
    """What to export."""

    model: RetrievalModel
    method: str
    num_frames: int
    max_words: int
    checkpoint: str
    checkpoint_sha256: str

    @property
    def frames(self) -> FrameSpec:
        """How the model looks at clips."""
        return self.model.backbone.frame_spec(self.num_frames)

    @property
    def inputs(self) -> InputSpec:
        """What the bundle will say of its inputs."""
        return InputSpec(self.frames, self.tokenizer.spec)

    @property
    def tokenizer(self) -> Tokenizer:
        """What reads its captions."""
        return clip_tokenizer(self.max_words)


def tuned_request(ckpt: Path, *, zero_shot: bool = False) -> ExportRequest:
    """A run, a .safetensors file or a research checkpoint; with ``zero_shot`` its untuned backbone.

    Raises:
        ConfigError: It cannot be read, or its backbone is another.
    """
    tuned = load_checkpoint(ckpt)
    return ExportRequest(
        model=FrameMeanModel(untuned_backbone(tuned)) if zero_shot else tuned.model,
        method="zero-shot" if zero_shot else tuned.settings.method,
        num_frames=tuned.settings.num_frames,
        max_words=tuned.settings.max_words,
        checkpoint=str(ckpt),
        checkpoint_sha256=sha256_of(checkpoint_file(ckpt)),
    )


def untuned_request(name: str, pretrained: str) -> ExportRequest:
    """A backbone alone, with mean pooling.

    Raises:
        ConfigError: It does not load.
    """
    backbone = load_backbone(BackboneSource(name, pretrained))
    return ExportRequest(
        model=FrameMeanModel(backbone),
        method="zero-shot",
        num_frames=ZERO_SHOT_FRAMES,
        max_words=min(ZERO_SHOT_WORDS, backbone.context_length),
        checkpoint=name,
        checkpoint_sha256=backbone.digest(),
    )
