"""The contrastive loss over a whole batch, and its gradient when the batch does not fit at once.

A batch larger than the memory, or spread over processes, is embedded part by part without gradients;
the loss gives the gradient of every embedding; then each part is computed again and takes its
embeddings' gradients back to the weights (GradCache, Gao et al. 2021). This is the gradient of the big
batch, not an average over small ones.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dgl_train.model.dgl import RetrievalModel
from dgl_train.model.methods import trained_parameters
from dgl_train.training.processes import Processes

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class PairBatch:
    """This process's share of a batch.

    Attributes:
        tokens: Captions, ids [B, L].
        frames: Their clips, uint8 [B, F, 3, S, S].
        has_reverse: Clips that played backwards are a wrong answer to their caption, bool [B]; None
            leaves reversed clips out.
    """

    tokens: Tensor
    frames: Tensor
    has_reverse: Tensor | None = None


def contrastive_loss(
    captions: Tensor, clips: Tensor, logit_scale: Tensor, reversed_clips: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over a batch's similarities; the diagonal is right.

    Args:
        captions: Unit-norm embeddings [B, E].
        clips: Unit-norm embeddings [B, E].
        logit_scale: Factor on the cosine, [].
        reversed_clips: One more wrong answer for each caption, [B, E]; a row of zeros is none.

    Returns:
        Mean of the losses over rows and over columns, [].
    """
    logits = logit_scale * captions @ clips.T
    target = torch.arange(len(logits), device=logits.device)
    by_clip = F.cross_entropy(logits.T, target)
    if reversed_clips is not None:
        own = logit_scale * (captions * reversed_clips).sum(dim=1, keepdim=True)
        is_none = (reversed_clips == 0).all(dim=1, keepdim=True)
        logits = torch.cat([logits, own.masked_fill(is_none, float("-inf"))], dim=1)
    return (F.cross_entropy(logits, target) + by_clip) / 2


def backward_contrastive(
    model: RetrievalModel,
    batch: PairBatch,
    *,
    processes: Processes,
    micro_batch_size: int = 0,
    encoding: Callable[[], AbstractContextManager[object]] = nullcontext,
    scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> float:
    """Compute the loss of the batch of all processes and add its gradient to every trained tensor.

    Args:
        model: Trained tensors' ``grad`` are added to, and equal in all processes.
        batch: Every process's share has the same size.
        processes: This one among all.
        micro_batch_size: Clips embedded at once; 0: all.
        encoding: Context in which the encoders run, such as autocast; similarities, the loss and
            every backward pass are outside of it.
        scale_loss: Makes the loss larger where float16 gradients would vanish.

    Returns:
        The loss. Gradients are left alone where it is not finite.
    """
    size = micro_batch_size or len(batch.tokens)
    parts = [slice(start, start + size) for start in range(0, len(batch.tokens), size)]
    at_once = len(parts) == 1
    with torch.set_grad_enabled(at_once), encoding():
        local = _cat([_embed(model, batch, part) for part in parts])
    loss, gradients = _loss_gradients(model, local, processes, scale_loss)
    if not torch.isfinite(loss):
        return float(loss)
    if at_once:
        torch.autograd.backward(local, gradients)
    else:
        for part in parts:
            with encoding():
                embeddings = _embed(model, batch, part)
            torch.autograd.backward(embeddings, [gradient[part] for gradient in gradients])
    for parameter in trained_parameters(model).values():
        if parameter.grad is not None:
            processes.sum(parameter.grad)
    return float(loss)


def _embed(model: RetrievalModel, batch: PairBatch, part: slice) -> Parts:
    """Embeddings [b, E] of captions and clips, and of reversed clips where they take part."""
    frames = batch.frames[part]
    embeddings = model.encode_captions(batch.tokens[part]), model.encode_clips(frames)
    if batch.has_reverse is None:
        return embeddings
    return *embeddings, model.encode_clips(frames.flip(1)) * batch.has_reverse[part, None]


def _cat(parts: list[Parts]) -> Parts:
    return tuple(torch.cat(embeddings) for embeddings in zip(*parts, strict=True))


def _loss_gradients(
    model: RetrievalModel,
    local: Parts,
    processes: Processes,
    scale_loss: Callable[[Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The loss over all processes, and the gradients of this process's embeddings."""
    every = [processes.gather(embeddings).requires_grad_() for embeddings in local]
    with torch.enable_grad():
        loss = contrastive_loss(every[0], every[1], model.logit_scale, *every[2:])
        scaled = scale_loss(loss)
    temperature = model.backbone.logit_scale
    wanted = [*every, temperature] if temperature.requires_grad else every
    gradients = torch.autograd.grad(scaled, wanted)
    if temperature.requires_grad and torch.isfinite(loss):
        share = gradients[-1] / processes.count  # every process has all of it; it is summed later
        temperature.grad = share if temperature.grad is None else temperature.grad + share
    start = processes.rank * len(local[0])
    own = slice(start, start + len(local[0]))
    return loss.detach(), [gradient[own] for gradient in gradients[: len(every)]]
