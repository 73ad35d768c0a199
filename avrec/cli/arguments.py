"""``key=value`` arguments of the commands that have no config of their own: embed, recommend, export."""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from avrec.errors import UserError

Keys = Mapping[str, tuple[Any, str]]
"""By key: its default, ``...`` where it must be given, and what it means."""


def from_command_line(arguments: list[str], keys: Keys, command: str) -> dict[str, Any]:
    """``key=value`` arguments of a command without a config of its own.

    Args:
        arguments: as given.
        keys: a default that is a number, a list or a mapping makes its key one; the last two are written as a run's
            config takes them.
        command: as the user calls it, for messages.

    Raises:
        SystemExit: with status 0 where help was asked for and given.
        UserError: an unknown key, a required one that is missing, or a value that its key cannot have.
    """
    given: dict[str, Any] = dict(argument.partition("=")[::2] for argument in arguments)
    defaults = {key: default for key, (default, _) in keys.items()}
    unknown = [key for key in given if key not in keys]
    required = [key for key, default in defaults.items() if default is ...]
    usage = f"Usage: {command} " + " ".join(f"{key}=…" if key in required else f"[{key}=…]" for key in keys)
    if {"--help", "-h"} & set(given):
        shown = {key: f"{key}={'…' if default in (..., None, '') else default}" for key, default in defaults.items()}
        width = max(map(len, shown.values()))
        print(usage, "", *(f"  {shown[key]:{width}}  {meaning}" for key, (_, meaning) in keys.items()), sep="\n")
        raise SystemExit(0)
    missing = [key for key in required if not given.get(key)]
    if unknown or missing:
        wrong = f"There is no key {unknown[0]}." if unknown else f"{missing[0]} must be given and is not."
        raise UserError(f"{wrong} {usage}")
    for key, text in given.items():
        if isinstance(defaults[key], int):
            if not re.fullmatch(r"-?\d+", text):
                raise UserError(f"{key}={text} is no whole number. {usage}")
            given[key] = int(text)
        elif isinstance(defaults[key], list | dict):
            given[key] = _parsed(key, text, type(defaults[key]))
    return {**defaults, **given}


def _parsed(key: str, text: str, kind: type) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(f"{key}={text}").value()
    except HydraException:
        value = None
    if not isinstance(value, kind):
        form = f"[{text}]" if kind is list else "{ours: theirs, …}"
        raise UserError(f"{key}={text} could not be read. Give it in quotes: '{key}={form}'.")
    return value


def imported(paths: Sequence[str]) -> list[type[Any]]:
    """The classes that somebody names by MODULE.CLASS, whose modules are imported for that.

    Raises:
        UserError: one cannot be imported, or is no class.
    """
    found: list[type[Any]] = []
    for path in paths:
        module, _, name = str(path).rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), name))
            reason = "" if isinstance(found[-1], type) else "It is no class"
        except Exception as error:  # a module of the user's own raises what it likes
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if reason:
            raise UserError(f"classes=[{path}]: {reason}. Give MODULE.CLASS, from this folder or PYTHONPATH.")
    return found
