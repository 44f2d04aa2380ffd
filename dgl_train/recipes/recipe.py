"""Recipes: every setting of a training run, read from TOML and checked as a whole.

``recipes/default.toml`` gives every setting; another recipe names only those that differ, and
``--set key=value`` comes last. There are no other defaults.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from dgl_runtime.errors import ConfigError
from dgl_train.model.backbones.backbone import LOSSES, OWN_LOSS
from dgl_train.model.dgl import VISUAL_OUTPUTS
from dgl_train.model.methods import METHODS, PROJECTIONS, RENAMED

AS_PATHS = "surrogateescape"
"""How recipes are read and written: a path in one may hold bytes that are no UTF-8."""

PRECISIONS = ("fp32", "bf16", "fp16")

_RECIPES = files("dgl_train.recipes")


@dataclass(frozen=True)
class Rule:
    """What a setting may be: its type, the values allowed, and both in words."""

    kind: type
    expected: str
    allows: Callable[[Any], bool] = lambda _: True


def _whole(low: int) -> Any:  # noqa: ANN401 - as dataclasses.field, which stands for any type
    return _field(int, f"a whole number from {low}", lambda value: value >= low)


def _above_zero() -> Any:  # noqa: ANN401
    return _field(float, "a number above 0", lambda value: 0 < value < math.inf)


def _from_zero() -> Any:  # noqa: ANN401
    return _field(float, "a number from 0", lambda value: 0 <= value < math.inf)


def _one_of(values: Sequence[str]) -> Any:  # noqa: ANN401
    return _field(str, f"one of {', '.join(values)}", lambda value: value in values)


def _switch() -> Any:  # noqa: ANN401
    return _field(bool, "true or false")


def _field(kind: type, expected: str, allows: Callable[[Any], bool] = lambda _: True) -> Any:  # noqa: ANN401
    return field(metadata={"rule": Rule(kind, expected, allows)})


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run; ``recipes/default.toml`` explains each."""

    method: str = _one_of(METHODS)
    backbone: str = _field(str, "a model name of open_clip or a folder", bool)
    pretrained: str = _field(str, "a weight tag of open_clip, a weight file or ''")
    global_prompts: int = _whole(0)
    frame_prompts: int = _whole(0)
    caption_prompts: int = _field(
        int, "an even whole number from 0", lambda value: value >= 0 and value % 2 == 0
    )
    projection: str = _one_of(PROJECTIONS)
    visual_output: str = _one_of(VISUAL_OUTPUTS)
    frame_positions: bool = _switch()
    reversed_negatives: bool = _switch()
    loss: str = _one_of((OWN_LOSS, *LOSSES))
    num_frames: int = _whole(1)
    max_tokens: int = _whole(3)
    batch_size: int = _whole(2)
    micro_batch_size: int = _whole(0)
    precision: str = _one_of(PRECISIONS)
    recompute_blocks: bool = _switch()
    epochs: int = _whole(1)
    learning_rate: float = _above_zero()
    global_lr_factor: float = _above_zero()
    latent_lr_factor: float = _above_zero()
    weight_decay: float = _from_zero()
    warmup_fraction: float = _field(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
    max_grad_norm: float = _above_zero()
    validation_fraction: float = _field(
        float, "a number above 0 and below 1", lambda value: 0 < value < 1
    )
    select_on_test: bool = _switch()
    training_seed: int = _field(
        int, "a whole number from 0, below 2**63", lambda value: 0 <= value < 2**63
    )
    num_workers: int = _whole(0)
    frame_cache_gb: float = _from_zero()
    save_every_steps: int = _whole(1)


RULES: dict[str, Rule] = {one.name: one.metadata["rule"] for one in fields(Recipe)}


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(one.name.removesuffix(".toml") for one in _RECIPES.iterdir() if _is_recipe(one))


def _is_recipe(file: Any) -> bool:  # noqa: ANN401 - importlib's Traversable
    return str(file.name).endswith(".toml")


def read_recipe(
    recipes: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()
) -> Recipe:
    """Lay recipes over the default one, in the order given, then apply overrides.

    Args:
        recipes: Names of ``recipe_names()``, or TOML files with some or all settings; one or several.
        overrides: Texts ``key=value``; the last one of a key counts.

    Raises:
        ConfigError: No such recipe, no valid TOML, or settings at fault: all of them at once.
    """
    settings = _parse((_RECIPES / "default.toml").read_text("utf-8"), "default")
    layers = [recipes] if isinstance(recipes, str | Path) else recipes
    for layer in layers:
        settings |= _parse(_recipe_text(layer), layer)
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            faults.append(f"{override!r} is not of the form key=value")
            continue
        key = RENAMED.get(key.strip(), key.strip())
        settings[key] = _parse_override(key, text.strip())
    return _make_recipe(settings, faults, f"recipe {' + '.join(map(str, layers))}")


def _recipe_text(name_or_path: str | Path) -> str:
    if str(name_or_path) in recipe_names():
        return (_RECIPES / f"{name_or_path}.toml").read_text("utf-8")
    try:
        return Path(name_or_path).read_text("utf-8", errors=AS_PATHS)
    except OSError as error:
        raise ConfigError(
            f"recipe {str(name_or_path)!r} is neither a readable TOML file nor one of "
            f"{', '.join(recipe_names())}{_close_match(str(name_or_path), recipe_names())}."
        ) from error


def _parse(text: str, name: str | Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {name} is not valid TOML: {error}.") from error
    return {RENAMED.get(key, key): value for key, value in settings.items()}


def _parse_override(key: str, text: str) -> Any:  # noqa: ANN401
    """The text as the setting's type, or as it is where that fails: checked with all others."""
    kind = RULES[key].kind if key in RULES else str
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _make_recipe(settings: Mapping[str, Any], faults: list[str], name: str) -> Recipe:
    checked: dict[str, Any] = {}
    for key, value in settings.items():
        rule = RULES.get(key)
        if rule is None:
            faults.append(f"{key!r} is not a setting{_close_match(key, RULES)}")
            continue
        is_whole_for_float = rule.kind is float and type(value) is int
        checked[key] = float(value) if is_whole_for_float else value
        if type(checked[key]) is not rule.kind or not rule.allows(checked[key]):
            faults.append(f"{key} is {value!r}, expected {rule.expected}")
    if faults:
        count = "a fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(f"{name} has {count}: {'; '.join(faults)}.")
    return Recipe(**checked)


def _close_match(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write every setting of a recipe, to be read by ``read_recipe``."""
    lines = [f"{key} = {_as_toml(value)}\n" for key, value in asdict(recipe).items()]
    path.write_text("".join(lines), "utf-8", errors=AS_PATHS)


def _as_toml(value: Any) -> str:  # noqa: ANN401
    # JSON's escapes of letters beyond 16 bits are none in TOML, and it does not escape DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
