"""avrec: two-tower retrieval models for audio and video, trained end to end through their encoders."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avrec.export.item_tower import ExportedItemTower, load_item_tower

__all__ = ["ExportedItemTower", "load_item_tower"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and `train.py --help` comes by here.
    if name in __all__:
        from avrec.export import item_tower

        return getattr(item_tower, name)
    raise AttributeError(f"module 'avrec' has no attribute {name!r}")
