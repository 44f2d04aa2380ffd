"""The errors a user can meet: each message says what is wrong, the value seen, the one expected, the remedy."""


class DglError(Exception):
    """Base of every error that is the input's fault; the command line prints it on one line."""


def reason_of(error: BaseException) -> str:
    """The first line of another library's error, short enough to stand inside one of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


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


class EngineError(DglError):
    """An inference engine or device is missing, or does not run the graph."""


class ExportError(DglError):
    """An export failed its parity gate or could not be written."""
