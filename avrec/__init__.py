"""avrec: two-tower retrieval models for audio and video, trained end to end through their encoders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avrec.export.item_tower import ExportedItemTower, load_item_tower
    from avrec.export.user_tower import ExportedUserTower, load_user_tower

__all__ = ["ExportedItemTower", "ExportedUserTower", "load_item_tower", "load_user_tower"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `train.py --help` comes by here.
    if name in __all__:
        return getattr(import_module(f"avrec.export.{'item' if 'item' in name.lower() else 'user'}_tower"), name)
    raise AttributeError(f"module 'avrec' has no attribute {name!r}")
