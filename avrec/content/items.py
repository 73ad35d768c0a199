"""Raw items, what may be asked of their files, and what decoding gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avrec.batch import Array


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
