"""Thumbnails and short sounds, small enough to stand inside a page."""

import base64
import io
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from avrec.batch import Array
from avrec.content.decode import decode
from avrec.content.items import DecodeRequest, RawItem
from avrec.content.limits import Limits

log = logging.getLogger(__name__)

# These files are decoded in the run's own process: what asks for much is left out.
_LIMITS = Limits(frames=3000)
_THUMB = (96, 160)
_CELL = 64
_SHEET_COLUMNS = 32
_SECONDS, _RATE, _BIT_RATE = 4.0, 16_000, 24_000
MOST_SOUND_BYTES = 60_000


class Sheet(NamedTuple):
    """Many tiny pictures in one.

    Attributes:
        uri: the picture; empty where none could be read.
        cells: left, top, width and height of each item's part; None where there is none.
    """

    uri: str
    cells: list[tuple[int, int, int, int] | None]


def still(item: RawItem) -> Image.Image | None:
    """An item's picture, or else the middle of its video; None where neither can be read."""
    pixels = decode(item, DecodeRequest(image=True), _LIMITS).image
    if pixels is None and item.video:
        frames = decode(item, DecodeRequest(video_frames=1), _LIMITS).frames
        pixels = None if frames is None else frames[0]
    return None if pixels is None else Image.fromarray(np.ascontiguousarray(pixels))


def thumbnail(item: RawItem) -> tuple[str, float] | None:
    """An item's picture as a small JPEG in a data URI, and its height over its width."""
    picture = still(item)
    if picture is None:
        return None
    shape = picture.height / picture.width
    picture.thumbnail(_THUMB)
    return _jpeg(picture, quality=72), shape


def sheet(items: Sequence[RawItem], seconds: float = 20.0) -> Sheet:
    """The pictures of many items in one JPEG, whose header is paid for once; after ``seconds`` the rest is left out."""
    end = time.monotonic() + seconds
    rows = -(-len(items) // _SHEET_COLUMNS)
    paper = Image.new("RGB", (min(len(items), _SHEET_COLUMNS) * _CELL, rows * _CELL), "white")
    cells: list[tuple[int, int, int, int] | None] = []
    for number, item in enumerate(items):
        picture = still(item) if time.monotonic() < end else None
        if picture is None:
            cells.append(None)
            continue
        picture.thumbnail((_CELL, _CELL))
        left, top = number % _SHEET_COLUMNS * _CELL, number // _SHEET_COLUMNS * _CELL
        paper.paste(picture, (left, top))
        cells.append((left, top, *picture.size))
    return Sheet(_jpeg(paper, quality=60) if any(cells) else "", cells)


def sound(item: RawItem) -> str | None:
    """The first seconds of an item's sound as a small MP3 in a data URI; None where there is none."""
    try:
        request = DecodeRequest(sample_rate=_RATE, max_seconds=_SECONDS)
        samples = decode(item, request, _LIMITS).sound
        encoded = b"" if samples is None or not samples.any() else _mp3(samples)
    except Exception as error:  # one sound is not worth a report
        log.debug("no sound of %s: %s", item.item_id, error)
        return None
    return _uri("audio/mpeg", encoded) if 0 < len(encoded) <= MOST_SOUND_BYTES else None


def _mp3(samples: Array) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=_RATE)
        stream.bit_rate = _BIT_RATE
        stream.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16p", layout="mono")
        frame.sample_rate = _RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def _jpeg(picture: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return _uri("image/jpeg", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
