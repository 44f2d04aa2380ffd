"""Pretrained weights that were downloaded before: found here, without a question to the network.

By itself, open_clip asks for the newest version of weights each time it loads them by name, and waits
where no network answers.
"""

from pathlib import Path

_HUB = "hf-hub:"
_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_pytorch_model.bin"


def name_without_download(name: str, pretrained: str) -> str:
    """What open_clip is to be asked for, so that weights that are here are loaded from here.

    Args:
        name: A model name of open_clip, a folder, or ``hf-hub:`` and a repository.
        pretrained: A weight tag of open_clip, a weight file, or nothing.

    Returns:
        The name, or ``local-dir:`` and the folder where a repository was downloaded to. The file of a tag
        is entered in open_clip's own list.
    """
    import open_clip

    if name.startswith(_HUB):
        repository = name.removeprefix(_HUB)
        config, weights = _find(repository, _CONFIG), _find_weights(repository, _WEIGHTS)
        return f"local-dir:{config.parent}" if config and weights else name
    listed = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    repository, _, file = listed.get("hf_hub", "").rpartition("/")
    if repository and (weights := _find_weights(repository, file or _WEIGHTS)):
        listed["file"] = str(weights)
    return name


def tokenizer_file(repository: str, file: str) -> Path | None:
    """A file of a tokenizer, downloaded once; None where the repository, or the network, has none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if found := _find(repository, file):
        return found
    try:  # asked once: a download by itself asks for half a minute where no network answers
        get_hf_file_metadata(hf_hub_url(repository, file))
        return Path(hf_hub_download(repository, file))
    except Exception:  # its own, its network library's, and the system's
        return None


def _find_weights(repository: str, file: str) -> Path | None:
    """A weight file in the order in which open_clip looks for it."""
    safe = "open_clip_model" if file == _WEIGHTS else Path(file).stem
    return _find(repository, f"{safe}.safetensors") or _find(repository, file)


def _find(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None
