"""Types and ranges of arguments, stated once, as annotations of the constructors: ``Annotated[float, Gt(0)]``.

``checked`` holds a constructor to them when Python calls it; ``avrec.run.validation`` holds a config to them before
anything is built. The words of both messages come from the annotations as well.
"""

import difflib
import functools
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from avrec.errors import UserError

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Rate = Annotated[float, Interval(ge=0, lt=1)]
"""A dropout probability, say: at 1, nothing would be left."""
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_SIMPLE = {bool: "true or false", int: "an integer", float: "a number", str: "text", Path: "a path", dict: "a mapping"}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_F = TypeVar("_F", bound=Callable[..., Any])


def checked(function: _F) -> _F:
    """Decorate ``__init__`` or a function: arguments outside the ranges and choices of their annotations are refused.

    Raises:
        UserError: at the call, with the argument's name.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        known = annotations_of(function)
        for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
            if name in known and _is_limited(known[name]):
                check(name, known[name], value)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_fields(instance: Any) -> None:
    """The same for a dataclass, from its ``__post_init__``."""
    for name, annotation in annotations_of(instance.__class__).items():
        if _is_limited(annotation):
            check(name, annotation, getattr(instance, name))


def check(key: str, annotation: Any, value: Any, default: Any = None) -> None:
    """Refuse a value that does not fit an annotation.

    Raises:
        UserError: what must hold, what was given, and the nearest choice or the default.
    """
    if fits(annotation, value):
        return
    known = [str(choice) for choice in _choices(annotation)]
    given = [str(entry) for entry in (value if isinstance(value, list) else [value])]
    near = [match for entry in given if entry not in known for match in difflib.get_close_matches(entry, known, n=1)]
    hint = f" Did you mean {near[0]}?" if near else f" Default: {shown(default)}." if fits(Plain, default) else ""
    raise UserError(f"`{key}` must be {phrase(annotation)}; got {shown(value)}.{hint}")


@functools.cache
def annotations_of(target: Any) -> Mapping[str, Any]:
    """The annotations of a constructor's or function's arguments, resolved; empty where they cannot be."""
    try:
        function = target.__init__ if inspect.isclass(target) else target
        found = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
    return {name: annotation for name, annotation in found.items() if name != "return"}


def fits(annotation: Any, value: Any) -> bool:
    """Whether a plain value fits an annotation: strictly, as JSON does, so that "1", 1.0 and true are no integers."""
    adapter = _adapter(annotation)
    if adapter is None:
        return True
    try:
        adapter.validate_json(json.dumps(value, default=_plain))
    except ValidationError:
        return False
    return True


def _plain(value: Any) -> Any:
    """What JSON has for a value that it does not know: of NumPy, of OmegaConf, or a path."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    return value.item() if hasattr(value, "item") else str(value)


@functools.cache
def _adapter(annotation: Any) -> "TypeAdapter[Any] | None":
    """What checks an annotation; None: nothing can be said of its values."""
    try:
        return TypeAdapter(annotation, config=_CONFIG)
    except (PydanticUserError, NameError, TypeError):
        return None


def phrase(annotation: Any) -> str:
    """An annotation in words, to follow "must be"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1:])
    if origin is Literal:
        names = dict.fromkeys(map(shown, arguments))
        return f"one of {', '.join(names)}" if len(names) > 1 else next(iter(names))
    if origin in (Union, types.UnionType):
        choices = tuple(choice for part in arguments if get_origin(part) is Literal for choice in get_args(part))
        parts = [Literal[choices]] if choices else []
        parts += [part for part in arguments if get_origin(part) is not Literal]
        return " or ".join(dict.fromkeys(map(phrase, parts)))
    if annotation is None or annotation is type(None):
        return "null"
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)}, each {' / '.join(dict.fromkeys(map(phrase, arguments)))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each entry {phrase(arguments[0])}"
    return _SIMPLE.get(annotation, "a mapping with _target_")


def _bounded(base: Any, metadata: Sequence[Any]) -> str:
    """A type with its limits; text among the metadata is the phrase itself."""
    limits: dict[str, Any] = {}
    for entry in metadata:
        if isinstance(entry, str):
            return entry
        if isinstance(entry, Interval | Gt | Ge | Lt | Le):
            limits |= {
                name: limit for name in ("gt", "ge", "lt", "le") if (limit := getattr(entry, name, None)) is not None
            }
    noun = phrase(base)
    if any(isinstance(entry, MinLen) for entry in metadata):
        noun = noun.replace("a list", "a non-empty list", 1)
    low, high = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
    if low is not None and high is not None:
        return f"{noun} in {'(' if 'gt' in limits else '['}{low}, {high}{')' if 'lt' in limits else ']'}"
    if limits == {"gt": 0}:
        return noun.replace("a ", "a positive ").replace("an ", "a positive ") + " (> 0)"
    return noun + "".join(f" {_SIGNS[name]} {limit}" for name, limit in limits.items())


def shown(value: Any) -> str:
    """A value as it is written in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def _choices(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _is_limited(annotation: Any) -> bool:
    if get_origin(annotation) in (Annotated, Literal):
        return True
    return any(_is_limited(part) for part in get_args(annotation))


Plain = bool | int | float | str | list[Any]
