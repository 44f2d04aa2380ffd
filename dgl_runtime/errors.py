"""The errors a user can meet: each message says what is wrong, the value seen, the one expected, the remedy."""

_REASON_LETTERS = 200


class DglError(Exception):
    """Base of every error that is the input's fault; the command line prints it on one line."""


def reason_of(error: BaseException) -> str:
    """Another library's error in a line short enough to stand inside one of ours.

    Its first line, with the next one where the first is only a heading; a KeyError's text is the
    name alone.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"{lines[0]} is missing"[:_REASON_LETTERS]
    told = 1
    while lines[told - 1].endswith(":") and told < len(lines):
        told += 1
    return " ".join(lines[:told])[:_REASON_LETTERS].rstrip(" .")


class ConfigError(DglError):
    """A setting, recipe, data set or checkpoint does not fit."""


class TextError(ConfigError):
    """A file of text, such as a table or a list, does not hold what it should."""


class MediaError(DglError):
    """A video cannot be found, opened or decoded."""


class BundleError(DglError):
    """An exported bundle is missing, damaged or of another version."""


class GalleryError(DglError):
    """A gallery is missing, damaged, locked or belongs to another bundle."""


class ConditionError(GalleryError):
    """A condition on moments does not work."""


class GalleryAwayError(GalleryError):
    """The server that holds a gallery cannot be reached now; the same call may work later."""


class EngineError(DglError):
    """An inference engine or device is missing, or does not run the graph."""


class ExportError(DglError):
    """An export failed its parity gate or could not be written."""


class ClusterError(DglError):
    """A Ray cluster cannot be reached, or its machines cannot do the work."""
