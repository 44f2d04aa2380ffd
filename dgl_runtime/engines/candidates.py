"""The engines that could run a bundle here: installed, on the device, and able to read its format."""

from dataclasses import dataclass

from dgl_runtime.engines.installed import KINDS, how_to_install, is_installed
from dgl_runtime.engines.opening import DEVICES, ENGINES
from dgl_runtime.engines.triton_address import FORM, TritonAddress
from dgl_runtime.errors import EngineError

AUTO = "auto"
SERVER = "server"  # the device of what a model server runs, which decides that itself
DEVICE_CHOICES, ENGINE_CHOICES = (AUTO, *DEVICES), (AUTO, *ENGINES)
_ORDER = ("cuda", "cpu")  # of devices, for ``auto``


@dataclass(frozen=True)
class Candidate:
    """An engine on a device."""

    engine: str
    device: str

    def __str__(self) -> str:
        return f"{self.engine} on {self.device}"


def candidates(bundle_format: str, device: str, engine: str) -> list[Candidate]:
    """The installed engines that read a format on a device, preferred devices first.

    Raises:
        EngineError: There is none, or what was asked for by name is unknown or does not fit.
    """
    check_names(device, engine)
    devices = _ORDER if device == AUTO else (device,)
    readers = [name for name in ENGINES if bundle_format in KINDS[name].formats]
    if engine != AUTO:
        if engine not in readers:
            raise EngineError(
                f"engine {engine!r} does not read bundles of format {bundle_format}; "
                f"engines that do: {', '.join(readers)}. Take one of them, or export the model in "
                f"another format: {' or '.join(f'--format {one}' for one in KINDS[engine].formats)}."
            )
        if not set(devices) & set(KINDS[engine].devices):
            fitting = [name for name in readers if device in KINDS[name].devices]
            raise EngineError(
                f"engine {engine!r} runs on {', '.join(KINDS[engine].devices)}, device is {device!r}. "
                f"Engines for bundles of format {bundle_format} there: {', '.join(fitting) or 'none'}."
            )
        # Whatever is missing, opening it says so.
        return [Candidate(engine, on) for on in devices if on in KINDS[engine].devices]
    possible = [
        Candidate(name, on) for on in devices for name in readers if on in KINDS[name].devices
    ]
    if found := [one for one in possible if is_installed(one.engine)]:
        return found
    if not possible:
        listed = ", ".join(f"{name} ({', '.join(KINDS[name].devices)})" for name in readers)
        raise EngineError(
            f"bundles of format {bundle_format} do not run on {device}; their engines are {listed}."
        )
    commands = [how_to_install(one.engine, one.device) for one in possible]
    raise EngineError(
        f"no engine for a bundle of format {bundle_format} on {possible[-1].device} is installed. "
        f"Install one with: {' or '.join(dict.fromkeys(commands))}"
    )


def check_names(device: str, engine: str) -> None:
    """Refuse a device or engine that does not exist, and a device for what runs on a server.

    Raises:
        EngineError: Lists those that do.
    """
    for what, value, known in (
        ("device", device, DEVICE_CHOICES),
        ("engine", engine, (*ENGINE_CHOICES, FORM)),
    ):
        is_server = what == "engine" and TritonAddress.of(value) is not None
        if value not in known and not is_server:
            raise EngineError(f"{what} is {value!r}; it must be one of {', '.join(known)}.")
        if is_server and device == "cuda":
            raise EngineError(
                f"device is {device!r}, but {engine} runs its graphs where its repository says. Leave the "
                "device out here, and give it to the repository: dgl-bundle triton --device cuda"
            )
