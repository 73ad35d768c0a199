"""What an encoder's preprocess and its frozen layers offer to the content store."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from avrec.batch import Array
from avrec.content.items import Decoded, DecodeRequest, RawItem


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
