"""Batches: what the data module hands to the towers, with the legend of axes.

Every folder may import this file; it imports nothing of avrec.

Axes (a tensor's name ends with its axes, ``query_BQD``):

======  ==========================================================================================
letter  meaning
======  ==========================================================================================
``B``   users in the batch
``L``   history positions, oldest first
``Q``   query positions, ``L + 1``: position ``q`` has seen the first ``q`` history items (0: none)
``P``   valid (user, query position) pairs: the positives of the batch
``U``   distinct items in the batch
``N``   items of the catalogue
``M``   modalities, in the order of ``MODALITIES``
``D``   embedding
``T``   text tokens
``F``   frames of a video (a poster is one more frame)
``S``   spectrogram frames
``C``   categorical user columns
``R``   numeric (real) user columns
``K``   top-k
======  ==========================================================================================

Every mask is named by what True means: ``present`` = exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy.typing as npt

MODALITIES = ("text", "vision", "audio", "identity")

Array = npt.NDArray[Any]
Content = Mapping[str, Any]
"""The arrays or tensors of one modality, by name; the first axis is items."""


class OnDevice:
    """A dataclass of tensors (nested, or in mappings) that can be moved to a device as one."""

    def to(self, device: Any) -> Self:
        """The same batch on ``device``; copies to a GPU do not wait."""
        return type(self)(**{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})  # type: ignore[arg-type]


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if isinstance(value, OnDevice):
        return value.to(device)
    if hasattr(value, "to"):
        # From a GPU, a copy that does not wait could be read before it is there.
        kind = getattr(device, "type", str(device).partition(":")[0])
        return value.to(device, non_blocking=kind == "cuda")
    return value


@dataclass
class ItemBatch(OnDevice):
    """Distinct items with their content, each once.

    Attributes:
        index_U: catalogue index of each item, int64.
        present_UM: True where the item has that modality.
        content: by modality; the rows of ``content[m]`` are the items with ``present_UM[:, m]``, in order.
            A modality that no item of the batch has is left out.
    """

    index_U: Any
    present_UM: Any
    content: Mapping[str, Content]

    def __len__(self) -> int:
        return len(self.index_U)


@dataclass
class UserBatch(OnDevice):
    """What the user tower reads. History indices point into an item table that travels beside it.

    Attributes:
        user_B: user index + 1; 0 is the unknown user.
        categories_BC: codes of the categorical user columns, int64; 0 is missing or unknown.
        numbers_BR: standardised numeric user columns, float32; 0 is missing.
        history_BL: item table index of each history item, oldest first, left-aligned; 0 where not present.
        history_present_BL: True where the position holds a history item.
        history_time_BL: when, in seconds, float64; 0 where not present.
    """

    user_B: Any
    categories_BC: Any
    numbers_BR: Any
    history_BL: Any
    history_present_BL: Any
    history_time_BL: Any

    def __len__(self) -> int:
        return len(self.user_B)


@dataclass
class TrainBatch(OnDevice):
    """Windows of B users and the U distinct items in them. History and targets are indices into U.

    Attributes:
        items: the distinct items.
        users: the users' histories (the windows without their last item).
        target_BQ: index into U of the item that follows query position q.
        target_present_BQ: True where position q is a training pair.
        weight_BQ: R_ui of the target, float32; 0 where not present.
        own_BU: True where the item is among the user's training interactions (in this window or not).
        log_q_U: natural log of the probability that the item is in this batch at all.
        users_named: the users' own ids, for error messages.
    """

    items: ItemBatch
    users: UserBatch
    target_BQ: Any
    target_present_BQ: Any
    weight_BQ: Any
    own_BU: Any
    log_q_U: Any
    users_named: list[str] = field(default_factory=list)
