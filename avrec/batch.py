"""What passes between avrec's folders: the legend of axes, the dataclasses, the seams.

Every other folder may import this file; it imports nothing of avrec.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

MODALITIES = ("text", "vision", "audio", "identity")

Array = npt.NDArray[Any]
Content = Mapping[str, Any]
"""The arrays or tensors of one modality, by name; the first axis is items."""


class UserError(ValueError):
    """A mistake in what the user gave. Its message says what was given, what is allowed and what to do."""


# ---------------------------------------------------------------------------------------------------------
# Raw content: what an item is before any encoder has seen it


def moment(seconds: float) -> str:
    """A time for people; a number that only orders stays one."""
    if 1e8 <= seconds < 1e11:
        return f"{datetime.fromtimestamp(float(seconds), UTC):%Y-%m-%d %H:%M} UTC"
    return f"{seconds:g}"


@dataclass(frozen=True)
class RawItem:
    """One item as its owner has it. Paths are absolute; None means that the item lacks it."""

    item_id: str
    text: str | None = None
    image: Path | None = None
    video: Path | None = None
    audio: Path | None = None
    features: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Vectors by modality, of an item that stands in no feature matrix."""

    @property
    def files(self) -> dict[str, Path]:
        """The files that this item names, by kind (image, video, audio)."""
        kinds = {"image": self.image, "video": self.video, "audio": self.audio}
        return {kind: path for kind, path in kinds.items() if path is not None}


@dataclass(frozen=True)
class TextFields:
    """Which columns an item's text is made from: joined in order, or put into a template.

    >>> TextFields(["title", "plot"]).of({"title": "Up", "plot": None})
    'Up'
    >>> TextFields(["title", "year"], "{title} ({year})").of({"title": "Up", "year": 2009})
    'Up (2009)'
    """

    columns: Sequence[str] = ()
    template: str | None = None

    def of(self, row: Mapping[str, object]) -> str | None:
        """An item's text; None where all its columns are empty."""
        texts = {name: "" if row.get(name) is None else str(row[name]).strip() for name in self.columns}
        if not any(texts.values()):
            return None
        return (
            ". ".join(text for text in texts.values() if text)
            if self.template is None
            else self.template.format(**texts)
        )


@dataclass(frozen=True)
class DecodeRequest:
    """What an encoder's preprocess wants decoded, and nothing else is."""

    text: bool = False
    image: bool = False
    video_frames: int = 0
    """Frames spread evenly over a video's length; 0: no video."""
    sample_rate: int = 0
    """Hz of the mono sound, from the audio file or else the video's sound track; 0: no sound."""
    max_seconds: float = 30.0
    """Sound beyond this many seconds is not read."""


@dataclass(frozen=True)
class DecodeFailure:
    """A file that could not be decoded: the item goes on without what it would have given."""

    item_id: str
    path: str
    reason: str


@dataclass
class Decoded:
    """One item, decoded as requested. What is absent, not requested or broken is None or empty."""

    text: str | None = None
    image: Array | None = None
    """uint8, (height, width, 3), RGB."""
    frames: Array | None = None
    """uint8, (F, height, width, 3), RGB."""
    sound: Array | None = None
    """float32 in [-1, 1], (samples,), mono at the requested rate."""
    failures: list[DecodeFailure] = field(default_factory=list)


@dataclass(frozen=True)
class ArraySpec:
    """Shape (of one item, without the item axis) and dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: str


class Preprocess(Protocol):
    """An encoder's half that runs once per item, in worker processes: picklable, deterministic, no grad."""

    modality: str

    def fit(self, items: list[RawItem]) -> None:
        """Adapt to the catalogue once (train a tokenizer, say); a no-op where nothing is to be learned."""

    def settings(self) -> dict[str, Any]:
        """Everything besides the source that determines the output, as JSON-able values."""

    def request(self) -> DecodeRequest:
        """What must be decoded."""

    def arrays(self) -> dict[str, ArraySpec]:
        """Names, shapes and dtypes of what ``__call__`` returns."""

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        """One item's arrays, or None where the item lacks this modality."""


class PreparedContent(Protocol):
    """One modality's content, ready to be read by catalogue index."""

    @property
    def present_N(self) -> Array:
        """True where the item has this modality."""

    def read(self, indices: Array) -> dict[str, Array]:
        """Content of the items with these catalogue indices, all present, in this order."""


@runtime_checkable
class ContentTable(Protocol):
    """Stands where a ``Preprocess`` would, for content that lies ready in a table: nothing is decoded or stored."""

    def rows_of(self, items: list[RawItem]) -> PreparedContent:
        """The rows of a catalogue's items."""


class FrozenLayers(Protocol):
    """The layers of an encoder below its cut: their output is computed once per item and stored."""

    def settings(self) -> dict[str, Any]:
        """Everything besides the input that determines the output (weights included), as JSON-able values."""

    def arrays(self) -> dict[str, ArraySpec]:
        """Names, shapes and dtypes of what ``__call__`` returns."""

    def __call__(self, content: dict[str, Array]) -> dict[str, Array]:
        """The arrays of a batch of items (first axis: items) after the frozen layers."""


# ---------------------------------------------------------------------------------------------------------
# Batches


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


# ---------------------------------------------------------------------------------------------------------
# What evaluation is asked


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length: row ``i`` is ``values[starts[i] : starts[i + 1]]``."""

    starts: Array
    values: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.starts[row] : self.starts[row + 1]]

    def rows(self) -> Array:
        """The row of each value.

        >>> Ragged.of([[1, 2], [], [3]]).rows().tolist()
        [0, 0, 2]
        """
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def take(self, rows: Array) -> "Ragged":
        """These rows, in this order.

        >>> Ragged.of([[1, 2], [], [3]]).take(np.array([2, 0])).values.tolist()
        [3, 1, 2]
        """
        first, lengths = self.starts[rows], np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return Ragged(starts, self.values[np.repeat(first - starts[:-1], lengths) + np.arange(starts[-1])])

    @classmethod
    def of(cls, rows: list[Any]) -> Self:
        """From a list of sequences of int."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        values = np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, np.int64) for row in rows)])
        return cls(starts, values)


@dataclass(frozen=True)
class RankingTask:
    """One split's question: rank the catalogue for each of these users; these items are what they chose.

    Attributes:
        split: "val" or "test".
        user_index_E: catalogue user index of each of the E evaluated users.
        relevant: per evaluated user, the items to be found: distinct, none of them in ``seen`` under the
            seen filter.
        seen: per evaluated user, the items of earlier roles, those newer than the history (``history_rows``) too;
            excluded from ranking where ``seen_filter``.
        seen_filter: True: seen items are not candidates.
        candidates_N: True where the item may be recommended.
        cold_N: True where the item has no interaction in train.
        popularity_N: interactions known when the ranking is asked for (the histories'), float64.
        protocol: the split's settings as they go into every result, JSON-able.
        dropped: counts of rows and users left out, by reason.
        relevant_time: when each of ``relevant.values`` was first chosen in this role, in the log's time; empty where
            nothing is known.
    """

    split: str
    user_index_E: Array
    relevant: Ragged
    seen: Ragged
    seen_filter: bool
    candidates_N: Array
    cold_N: Array
    popularity_N: Array
    protocol: dict[str, Any]
    dropped: dict[str, int] = field(default_factory=dict)
    relevant_time: Array = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.user_index_E)
