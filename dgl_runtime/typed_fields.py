"""Dataclasses whose fields JSON gave: are they of the types they are declared with?"""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")


def typed(part: Part) -> Part:
    """Return a dataclass if JSON gave its fields the types they are declared with.

    Raises:
        TypeError: It did not.
    """
    for field in fields(part):
        value = getattr(part, field.name)
        kind: Any = field.type
        if get_origin(kind) is tuple or get_origin(kind) is dict:
            kind = get_origin(kind)
        elif kind in (float, float | None):
            kind = kind | int  # JSON writes 1.0 and 1 alike
        if not isinstance(value, kind):
            raise TypeError(f"{field.name} is {value!r}")
    return part
