"""Licences of published weights. They bind what is made of the weights, too, so a bundle names them."""

from pathlib import Path

from dgl_train.model.backbones.backbone import UNKNOWN_LICENCE

APPLE = "Apple's, for research alone"
NON_COMMERCIAL = "CC-BY-NC-4.0, not for commercial use"
# A part of the model's name, a part of the tag, in small letters; the first that fits counts.
_PUBLISHED = (
    ("", "dfn", APPLE),
    ("mobileclip", "", APPLE),
    ("", "metaclip", NON_COMMERCIAL),
    ("nllb", "", NON_COMMERCIAL),
    ("pe-core", "meta", "Apache-2.0"),
    ("siglip", "webli", "Apache-2.0"),
    ("", "openai", "MIT"),
    ("", "laion", "MIT"),
    ("", "datacomp", "MIT"),
    ("", "commonpool", "MIT"),
    ("eva", "", "MIT"),
)


def published_licence(name: str, tag: str) -> str:
    """The licence of the weights that a tag of open_clip names."""
    for model, weights, licence in _PUBLISHED:
        if tag and model in name.lower() and weights in tag.lower():
            return licence
    return UNKNOWN_LICENCE


def licence_in(folder: Path) -> str:
    """What the model card in a folder, README.md, says in its first lines."""
    card = folder / "README.md"
    lines = (
        card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    )
    if lines and lines[0].strip() == "---":
        for line in lines[1:]:
            key, _, value = line.partition(":")
            if key == "license" and value.strip():
                return value.strip().strip("'\"")
            if line.strip() == "---":
                break
    return UNKNOWN_LICENCE
