"""DGL, the whole of the paper's model: prompts in both towers and global-local video attention.

Global prompts see every frame at once and carry the clip's meaning through all blocks; a frame's tokens
see their own frame and the global prompts. The clip's embedding is global prompt 0, the caption's its end
token (Dynamic Global-Local Prompt Tuning, AAAI 2024, section 3).

Axes: B batch, F frames, T tokens of a frame (class token, K frame prompts, P patches), G global prompts,
C caption prompts, L caption tokens, H heads, D width, E embedding.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgl_runtime.errors import ConfigError
from dgl_train.backbone import Backbone, Block, attend_within, merge_heads
from dgl_train.prompts import PromptGenerator, Prompts

State = TypeVar("State")


@dataclass(frozen=True)
class ClipState:
    """A clip's tokens after a block, and how the global prompts attended in it."""

    globals: Tensor  # [B, G, D]
    frames: Tensor  # [B, F, T, D]
    attention: Tensor  # [B, H, G, G + F*T], each row sums to 1

    def frame_weights(self) -> Tensor:
        """How much global prompt 0 attended to each frame, mean over heads: [B, F], rows sum to 1."""
        to_frames = self.attention[:, :, 0, self.globals.shape[1] :].mean(dim=1)
        mass: Tensor = to_frames.unflatten(-1, self.frames.shape[1:3]).sum(dim=-1)
        return mass / mass.sum(dim=-1, keepdim=True)


class DglModel(nn.Module):
    """A frozen backbone with a prompt generator."""

    def __init__(self, backbone: Backbone, prompts: PromptGenerator) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompts = prompts

    @property
    def logit_scale(self) -> Tensor:
        """The frozen factor on the cosine that makes logits, [] float32."""
        return self.backbone.logit_scale.exp()

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Embed captions.

        Args:
            tokens: Token ids [B, L], zero padded; the end token has the highest id.

        Returns:
            Unit-norm embeddings [B, E].
        """
        state = last(self.caption_states(tokens, self.prompts()))
        return F.normalize(self.read_caption(state, tokens), dim=-1)

    def encode_clips(self, frames: Tensor) -> Tensor:
        """Embed clips.

        Args:
            frames: uint8 pixels, or floats already normalised, [B, F, 3, S, S], order RGB.

        Returns:
            Unit-norm embeddings [B, E], read from global prompt 0.

        Raises:
            ConfigError: If F differs from the number of frames the prompts were made for.
        """
        state = last(self.clip_states(frames, self.prompts()))
        return F.normalize(self.backbone.vision.read_out(state.globals[:, 0]), dim=-1)

    def caption_states(self, tokens: Tensor, prompts: Prompts) -> Iterator[Tensor]:
        """Tokens after each block, [B, 1 + C + L-1, D]: start token, caption prompts, the caption.

        Positions belong to the plain sequence, prompts have none. Before every block but the first, the
        previous block's output at the prompts' places is replaced by this block's prompts.
        """
        text = self.backbone.text
        x = text.embed(tokens)
        start, caption = x[:, :1], x[:, 1:]
        for block, prompt in zip(text.blocks, prompts.captions, strict=True):
            here = prompt.expand(len(x), -1, -1)
            states = attend_within(block, torch.cat([start, here, caption], dim=1), causal=True)
            start, caption = states[:, :1], states[:, 1 + here.shape[1] :]
            yield states

    def read_caption(self, state: Tensor, tokens: Tensor) -> Tensor:
        """The end token's embedding before normalisation, [B, E]."""
        end = tokens.argmax(dim=-1) + state.shape[1] - tokens.shape[1]
        rows = torch.arange(len(state), device=state.device)
        return self.backbone.text.read_out(state[rows, end])

    def clip_states(self, frames: Tensor, prompts: Prompts) -> Iterator[ClipState]:
        """Global prompts and frame tokens after each block.

        Frame prompts stand between class token and patches, have neither positions nor ln_pre, and are
        replaced before every block. Global prompts are given once and carry on through all blocks.
        """
        vision = self.backbone.vision
        batch, num_frames = frames.shape[:2]
        if prompts.frames.shape[1] not in (1, num_frames):
            raise ConfigError(
                f"clips have {num_frames} frames, the prompts were made for {prompts.frames.shape[1]}. "
                "DGL-transformer is bound to its number of frames; give clips of that many."
            )
        tokens = vision.embed(self.backbone.normalize(frames).flatten(0, 1))
        tokens = tokens.unflatten(0, (batch, num_frames))
        class_token, patches = tokens[:, :, :1], tokens[:, :, 1:]
        globals_ = prompts.globals.expand(batch, -1, -1)
        for block, prompt in zip(vision.blocks, prompts.frames, strict=True):
            here = prompt.expand(batch, num_frames, -1, -1)
            state = attend_globally_and_locally(
                block, globals_, torch.cat([class_token, here, patches], dim=2)
            )
            yield state
            globals_ = state.globals
            class_token, patches = state.frames[:, :, :1], state.frames[:, :, 1 + here.shape[2] :]

    def read_clip(self, state: ClipState) -> tuple[Tensor, Tensor]:
        """Embeddings before normalisation of global prompts [B, G, E] and class tokens [B, F, E]."""
        vision = self.backbone.vision
        return vision.read_out(state.globals), vision.read_out(state.frames[:, :, 0])


def attend_globally_and_locally(block: Block, globals_: Tensor, frames: Tensor) -> ClipState:
    """One vision block, with the same weights for both kinds of attention.

    Frame tokens attend to the global prompts and their own frame; global prompts attend to themselves and
    every frame's tokens. Both read the block's input.

    Args:
        block: A block of the vision tower.
        globals_: Global prompts [B, G, D].
        frames: Frame tokens [B, F, T, D].

    Returns:
        Both after the block, with the global prompts' attention.
    """
    num_frames = frames.shape[1]
    global_q, global_k, global_v = block.project_qkv(globals_)  # [B, H, G, D/H]
    frame_q, frame_k, frame_v = block.project_qkv(frames)  # [B, F, H, T, D/H]

    def with_globals(global_: Tensor, frame: Tensor) -> Tensor:  # [B, F, H, G+T, D/H]
        return torch.cat([global_[:, None].expand(-1, num_frames, -1, -1, -1), frame], dim=-2)

    local = F.scaled_dot_product_attention(
        frame_q, with_globals(global_k, frame_k), with_globals(global_v, frame_v)
    )
    keys = torch.cat([global_k, frame_k.transpose(1, 2).flatten(2, 3)], dim=2)  # [B, H, G+F*T, D/H]
    values = torch.cat([global_v, frame_v.transpose(1, 2).flatten(2, 3)], dim=2)
    # Written out rather than fused: the weights are read, and there are only G queries.
    scale = global_q.shape[-1] ** -0.5
    attention = (scale * global_q @ keys.transpose(-1, -2)).softmax(dim=-1)
    return ClipState(
        globals=block.mlp(globals_ + block.out(merge_heads(attention @ values))),
        frames=block.mlp(frames + block.out(merge_heads(local))),
        attention=attention,
    )


class FrameMeanModel(nn.Module):
    """The untuned backbone: a clip is the mean of its frames' unit embeddings (CLIP4Clip's meanP)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> unit-norm embeddings [B, E]."""
        text = self.backbone.text
        x = text.embed(tokens)
        for block in text.blocks:
            x = attend_within(block, x, causal=True)
        rows = torch.arange(len(x), device=x.device)
        return F.normalize(text.read_out(x[rows, tokens.argmax(dim=-1)]), dim=-1)

    def encode_clips(self, frames: Tensor) -> Tensor:
        """uint8 pixels [B, F, 3, S, S] -> unit-norm embeddings [B, E]."""
        vision = self.backbone.vision
        x = vision.embed(self.backbone.normalize(frames).flatten(0, 1))
        for block in vision.blocks:
            x = attend_within(block, x)
        by_frame = F.normalize(vision.read_out(x[:, 0]), dim=-1).unflatten(0, frames.shape[:2])
        return F.normalize(by_frame.mean(dim=1), dim=-1)


RetrievalModel = DglModel | FrameMeanModel


def last(states: Iterator[State]) -> State:
    """The last state of an iterator, holding no earlier one."""
    return deque(states, maxlen=1)[0]
