"""The gradient of a whole batch's loss, also when the batch does not fit at once (GradCache).

A batch larger than the memory, or spread over processes, is embedded part by part without gradients;
the loss gives the gradient of every embedding; then each part is computed again and takes its
embeddings' gradients back to the weights (GradCache, Gao et al. 2021). This is the gradient of the big
batch, not an average over small ones.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from dgl_train.model.dual_encoder import DualEncoder
from dgl_train.model.methods import trained_parameters
from dgl_train.training.losses import Logits, Loss, softmax_loss
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


def backward_contrastive(
    model: DualEncoder,
    batch: PairBatch,
    *,
    processes: Processes,
    loss: Loss = softmax_loss,
    micro_batch_size: int = 0,
    encoding: Callable[[], AbstractContextManager[object]] = nullcontext,
    scale_loss: Callable[[Tensor], Tensor] = lambda value: value,
) -> float:
    """Compute the loss of the batch of all processes and add its gradient to every trained tensor.

    Args:
        model: Trained tensors' ``grad`` are added to, and equal in all processes.
        batch: Every process's share has the same size.
        processes: This one among all.
        loss: What the embeddings are compared by.
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
    logits = Logits.of(model)
    value, gradients = _loss_gradients(loss, (local, logits), processes, scale_loss)
    if not torch.isfinite(value):
        return float(value)
    torch.autograd.backward(logits.trained, gradients[len(local) :])
    gradients = gradients[: len(local)]
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
    return float(value)


def _embed(model: DualEncoder, batch: PairBatch, part: slice) -> Parts:
    """Embeddings [b, E] of captions and clips, and of reversed clips where they take part."""
    frames = batch.frames[part]
    embeddings = model.encode_captions(batch.tokens[part]), model.encode_clips(frames)
    if batch.has_reverse is None:
        return embeddings
    return *embeddings, model.encode_clips(frames.flip(1)) * batch.has_reverse[part, None]


def _cat(parts: list[Parts]) -> Parts:
    return tuple(torch.cat(embeddings) for embeddings in zip(*parts, strict=True))


def _loss_gradients(
    loss: Loss,
    local: tuple[Parts, Logits],
    processes: Processes,
    scale_loss: Callable[[Tensor], Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The loss over all processes, and this process's gradients of its embeddings and of the logits."""
    embeddings, logits = local
    every = [processes.gather(one).requires_grad_() for one in embeddings]
    with torch.enable_grad():
        captions, clips, *reversed_clips = every
        value = loss(captions, clips, logits, *reversed_clips)
        wanted = [*every, *logits.trained]
        gradients = torch.autograd.grad(scale_loss(value), wanted, materialize_grads=True)
    start = processes.rank * len(embeddings[0])
    own = slice(start, start + len(embeddings[0]))
    # Every process has all of the logits' gradient, and they are summed later.
    shared = [gradient / processes.count for gradient in gradients[len(every) :]]
    return value.detach(), [*(gradient[own] for gradient in gradients[: len(every)]), *shared]
