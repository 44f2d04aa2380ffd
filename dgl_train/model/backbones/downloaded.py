"""Pretrained weights that were downloaded before: found here, without a question to the network.

By itself, open_clip asks for the newest version of weights each time it loads them by name, and waits
where no network answers.
"""

from pathlib import Path

from dgl_runtime.errors import reason_of

HUB = "hf-hub:"
_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_pytorch_model.bin"


class HubAwayError(OSError):
    """The hub does not answer."""


def name_without_download(name: str, pretrained: str) -> str:
    """What open_clip is to be asked for, so that weights that are here are loaded from here.

    Args:
        name: A model name of open_clip, a folder, or ``hf-hub:`` and a repository.
        pretrained: A weight tag of open_clip, a weight file, or nothing.

    Returns:
        The name, or ``local-dir:`` and the folder where a repository was downloaded to. The file of a tag
        is entered in open_clip's own list, downloaded if it is not here.

    Raises:
        HubAwayError: The hub has the weights of a tag.
    """
    import open_clip

    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        config, weights = _find(repository, _CONFIG), _find_weights(repository, _WEIGHTS)
        return f"local-dir:{config.parent}" if config and weights else name
    listed = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    repository, _, file = listed.get("hf_hub", "").rpartition("/")
    if repository and (weights := hub_file(repository, *_weight_files(file or _WEIGHTS))):
        listed["file"] = str(weights)
    return name


def hub_file(repository: str, *files: str) -> Path | None:
    """The first of some files that a repository of the hub has, downloaded once.

    Those that are here come before those that are there; None where the repository has none.

    Raises:
        HubAwayError: It does not answer.
        OSError: A file does not arrive.
    """
    for get in (_find, _download):
        for file in files:
            if found := get(repository, file):
                return found
    return None


def tokenizer_file(repository: str, file: str) -> Path | None:
    """A file of a tokenizer, downloaded once; None where the repository, or the network, has none."""
    try:
        return hub_file(repository, file)
    except OSError:
        return None


def is_of_open_clip(name: str) -> bool:
    """Whether a folder, or a repository that was downloaded before, is in open_clip's format."""
    if name.startswith(HUB):
        return _find(name.removeprefix(HUB), _CONFIG) is not None
    return (Path(name) / _CONFIG).is_file()


def _download(repository: str, file: str) -> Path | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:  # asked once: a download by itself asks for half a minute where no network answers
        get_hf_file_metadata(hf_hub_url(repository, file))
    except (HfHubHTTPError, HFValidationError):
        return None
    except Exception as error:  # its network library's, and the system's
        raise HubAwayError(f"the hub does not answer: {reason_of(error)}") from error
    return Path(hf_hub_download(repository, file))


def _find_weights(repository: str, file: str) -> Path | None:
    found = (_find(repository, one) for one in _weight_files(file))
    return next((one for one in found if one), None)


def _weight_files(file: str) -> tuple[str, str]:
    """Names of a weight file, in the order in which open_clip looks for it."""
    safe = "open_clip_model" if file == _WEIGHTS else Path(file).stem
    return f"{safe}.safetensors", file


def _find(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError:  # no repository can have that name
        return None
    return Path(found) if isinstance(found, str) else None
