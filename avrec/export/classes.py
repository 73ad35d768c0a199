"""The classes that exported folders may name: avrec's own, and those that whoever loads a folder gives. No others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from avrec.errors import UserError
from avrec.towers.encoders.audio import AudioEncoder
from avrec.towers.encoders.features import FeaturesEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import AttentionFusion, ConcatFusion, GatedFusion, MeanFusion
from avrec.towers.history import HistoryAttention
from avrec.towers.ncf import NCF
from avrec.towers.rebuildable import Build, Rebuildable
from avrec.towers.user_tower import MeanHistory, UserTower, UserVector

OWN: dict[str, type[Rebuildable]] = {
    "text": TextEncoder,
    "vision": VisionEncoder,
    "audio": AudioEncoder,
    "identity": IdentityEncoder,
    "features": FeaturesEncoder,
    **{cls.__name__: cls for cls in (ConcatFusion, MeanFusion, GatedFusion, AttentionFusion)},
    **{cls.__name__: cls for cls in (UserTower, UserVector, MeanHistory, HistoryAttention, NCF)},
}
NAMES = {cls: name for name, cls in OWN.items()}


def name_of(cls: type[Any]) -> str:
    """What a class is called in ``config.json``: avrec's own by a word, others MODULE.CLASS."""
    return NAMES.get(cls) or f"{cls.__module__}.{cls.__qualname__}"


def options_of(module: nn.Module) -> dict[str, Any]:
    """A module's options; a module among them is named, with its own.

    Raises:
        TypeError: the module, or one among its options, is not ``Rebuildable``.
    """
    if not isinstance(module, Rebuildable):
        raise TypeError(
            f"{name_of(type(module))} cannot be exported: it must extend avrec.towers.rebuildable.Rebuildable"
        )
    return {
        key: {"name": name_of(type(value)), **options_of(value)} if isinstance(value, nn.Module) else value
        for key, value in module.options().items()
    }


def builder(folder: str | Path, classes: Sequence[type[nn.Module]], loader: str) -> Build:
    """What builds the modules that a folder names, of avrec's own classes and of ``classes``, and imports none.

    Returns:
        See ``Build``; it raises a ``UserError`` where ``name`` is of a class that was not given.
    """
    known: Mapping[str, Any] = {**OWN, **{name_of(cls): cls for cls in classes}}

    def build(name: str, options: Mapping[str, Any], base: type[Any], **handed: Any) -> Any:
        if name not in known and "." in name:
            raise UserError(
                f"{folder} is built of {name}, which is not of avrec, and files import no code. Import it and give "
                f"{loader}(…, classes=[{name.rpartition('.')[2]}])"
                + (f"; to avrec embed classes=[{name}]." if loader == "load_item_tower" else ".")
            )
        if not issubclass(known[name], base):
            raise ValueError(f"{name} is no {base.__name__}")
        return known[name].rebuilt(options, build, **handed)

    return build
