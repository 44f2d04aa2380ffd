"""Every family of backbones by name: who knows a source, and who loads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dgl_train.model.backbones.backbone import Backbone, BackboneSource
from dgl_train.model.backbones.blip import is_blip, load_blip
from dgl_train.model.backbones.downloaded import HUB
from dgl_train.model.backbones.from_open_clip import load_open_clip


@dataclass(frozen=True)
class Family:
    """Backbones of one architecture.

    Attributes:
        knows: Whether a source is of this family; it may look at files, and asks the network for the
            configuration alone of a repository that is not here yet.
        load: The backbone of such a source; raises ConfigError where it does not load.
    """

    knows: Callable[[BackboneSource], bool]
    load: Callable[[BackboneSource], Backbone]


FAMILIES = {
    "open_clip": Family(lambda source: True, load_open_clip),
    "blip": Family(is_blip, load_blip),
}
"""The family registered last that knows a source loads it, so ``open_clip`` has what nobody else knows."""


RECOMMENDED = {
    "small": BackboneSource("ViT-B-32-256", "datacomp_s34b_b86k"),
    "default": BackboneSource("PE-Core-B-16", "meta"),
    "best": BackboneSource("PE-Core-L-14-336", "meta"),
}
"""Names for who has no model in mind; docs/backbones.md says why these."""


def has_own_weights(name: str) -> bool:
    """Whether a backbone's name says where its weights are, so that none need to be named beside it."""
    return name in RECOMMENDED or name.startswith(HUB) or (bool(name) and Path(name).exists())


def load_backbone(source: BackboneSource) -> Backbone:
    """Load a backbone by the family that knows it; a name of ``RECOMMENDED`` stands for a model and its tag.

    Raises:
        ConfigError: It does not load, or is one that is not supported.
    """
    if not source.pretrained:
        source = RECOMMENDED.get(source.name, source)
    family = next(one for one in reversed(FAMILIES.values()) if one.knows(source))
    return family.load(source)
