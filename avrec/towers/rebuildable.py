"""Modules that remember how they were built, so that an exported folder can say it and rebuild them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

Build = Callable[..., Any]
"""``build(name, options, base, **handed)``: a module of the class of that ``name``, which must extend ``base``."""


class Rebuildable(nn.Module):
    """A module that records its constructor's arguments.

    Attributes:
        HANDED: arguments that whoever builds the module computes (widths, sizes of the catalogue); no options.
    """

    HANDED: ClassVar[tuple[str, ...]] = ()
    _given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Record the arguments before the constructor runs."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:  # the constructor says it better; a copy is made without arguments and gets its state later
            return self
        bound.apply_defaults()
        vars(self)["_given"] = {name: value for name, value in list(bound.arguments.items())[1:]}
        return self

    def options(self) -> dict[str, Any]:
        """The constructor's arguments but for ``HANDED``: JSON-able values, and ``Rebuildable`` modules."""
        return {name: _plain(value) for name, value in self._given.items() if name not in self.HANDED}

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any], build: Build, **handed: Any) -> Any:
        """The module of these ``options``, without weights; ``build`` makes the modules named in them.

        Raises:
            ValueError: options that would read other files than those of the exported folder.
        """
        return cls(**{**options, **handed})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
