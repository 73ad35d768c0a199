"""Bounds on what one file may cost: someone else's file must not take this machine's memory or time."""

import hashlib
from dataclasses import astuple, dataclass, fields

from avrec.errors import UserError


class UnusableError(Exception):
    """A file holds nothing to go on with; the message finishes the sentence that starts with its path."""


@dataclass(frozen=True)
class Limits:
    """What a file may ask for. A file that asks for more is refused, with a reason, before memory is taken.

    Args:
        pixels: of a picture or of a video's frame.
        seconds: length of a video whose frames are read, and of the sound that is read of any file.
        frames: decoded of one video or animation. Few are kept, but all between two keyframes are decoded.
        item_seconds: to decode and preprocess one item, in a worker process.
        memory_gib: that a worker process may take for its items, in GiB.

    Raises:
        UserError: a limit that is not above 0.
    """

    pixels: int = 50_000_000
    seconds: float = 6 * 3600
    frames: int = 50_000
    item_seconds: float = 120
    memory_gib: float = 4

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not (value := getattr(self, limit.name)) > 0:
                raise UserError(f"datamodule.prepare.limits.{limit.name} must be positive; got {value}.")

    def check(self, name: str, value: float, what: str) -> None:
        """Refuse ``what`` with an ``UnusableError`` where ``value`` is above the limit ``name``."""
        limit = getattr(self, name)
        if value > limit:
            raise UnusableError(f"{what}: at most {limit:,} by datamodule.prepare.limits.{name}")

    def check_size(self, width: int, height: int) -> None:
        """Refuse a picture or frame with no pixels or too many with an ``UnusableError``."""
        if width < 1 or height < 1:
            raise UnusableError("states no width and height")
        self.check("pixels", width * height, f"is too large: {width} x {height} pixels")

    def key_of_failed(self, key: str) -> str:
        """The key of what failed under these limits: under others, it is tried again."""
        return f"{key}-{hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:8]}"
