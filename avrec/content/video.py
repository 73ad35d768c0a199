"""Video: frames spread evenly over its length."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from avrec.batch import Array
from avrec.content.containers import decoded_frames, open_media
from avrec.content.images import fitted
from avrec.content.limits import Limits, UnusableError

FULL_DECODE_SECONDS = 20.0
"""Videos up to this long are decoded from end to end: a seek costs up to a whole group of pictures."""

FULL_DECODE_FRAMES = 500
"""Videos of up to this many frames are decoded from end to end, too."""

MEASURED_BYTES = 16 << 20
"""The length of videos up to this size is measured; larger files are believed where they state it."""


def video_frames(path: Path, count: int, limits: Limits) -> Array:
    """Frames at the centres of ``count`` equal parts of a video's length: uint8 (count, height, width, 3).

    Raises:
        UnusableError: it is too large or too long, breaks off, or has no frame that can be decoded.
    """
    span = _span(path, limits)
    limits.check("seconds", span.length, f"lasts {span.length:,.0f} s")
    with open_media(path) as container:
        stream = _video_stream(container, limits)
        short = span.length <= FULL_DECODE_SECONDS or 0 < stream.frames <= FULL_DECODE_FRAMES
        playhead = _Playhead(container, stream, span.start, limits, seeking=span.stamped and not short)
        pictures: list[Array] = []
        size = shown = None
        for index in range(count):
            frame = playhead.move_to(span.start + span.length * (index + 0.5) / count)
            size = size or fitted(frame.width, frame.height)
            pictures.append(pictures[-1] if frame is shown else _frame_array(frame, size))
            shown = frame
        if playhead.ended:
            _check_complete(stream, playhead.reached - span.start)
    return np.stack(pictures)


def _video_stream(container: InputContainer, limits: Limits) -> VideoStream:
    # A song's cover is stored as a video stream, too.
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        raise UnusableError("has no video stream")
    context = videos[0].codec_context
    if context is None:
        raise UnusableError("has a video stream that cannot be decoded: unknown coding, or broken")
    limits.check_size(context.width, context.height)
    # One thread: items are decoded in as many processes as there are cores to use.
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.pixels)}
    return videos[0]


def _frame_array(frame: VideoFrame, size: tuple[int, int]) -> Array:
    width, height = size
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    # Telephones film sideways and say so in the metadata.
    return np.rot90(pixels, k=round(frame.rotation / 90))


class _Span(NamedTuple):
    """Where a video lies in its own time, in seconds, and whether its frames say when they are shown."""

    start: float
    length: float
    stamped: bool = True


def _span(path: Path, limits: Limits) -> _Span:
    with open_media(path) as container:
        stream = _video_stream(container, limits)
        base = _time_base(stream)
        start = float((stream.start_time or 0) * base)
        if path.stat().st_size > MEASURED_BYTES:
            if stream.duration:
                return _Span(start, float(stream.duration * base))
            # Of the whole file: the longest of its streams.
            length = ((container.start_time or 0) + (container.duration or 0)) / av.time_base - start
            if container.duration and length > 0:
                return _Span(start, length)
        packets, end, stamped = 0, start, True
        for packet in container.demux(stream):
            if packet.size:
                packets += 1
                stamped = stamped and packet.pts is not None
                end = max(end, float(((packet.pts or 0) + (packet.duration or 0)) * base))
        if not stamped or end <= start:
            return _Span(0.0, packets / _frame_rate(stream), stamped=False)
        _check_complete(stream, end - start)
        return _Span(start, end - start)


def _check_complete(stream: VideoStream, length: float) -> None:
    declared = float((stream.duration or 0) * _time_base(stream))
    if length < declared / 2:
        raise UnusableError(f"breaks off after {length:.1f} of the {declared:.1f} seconds that it declares")


def _time_base(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, av.time_base)


def _frame_rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


class _Playhead:
    """Moves forward through a video and gives the frame that is on screen at a time.

    While ``seeking``, it jumps to the last keyframe before that time. Once a jump lands where it has been
    already, keyframes are further apart than the times asked for, and it plays straight on from there.
    """

    def __init__(
        self, container: InputContainer, stream: VideoStream, start: float, limits: Limits, seeking: bool
    ) -> None:
        self._container = container
        self._stream = stream
        self._start = start
        self._limits = limits
        self._decoded = 0
        self._seeking = seeking
        self._shown: tuple[float, VideoFrame] | None = None
        self._ahead: tuple[float, VideoFrame] | None = None
        self._play()

    def move_to(self, seconds: float) -> VideoFrame:
        """The frame on screen at ``seconds``; the nearest one before the first and after the last."""
        if self._seeking:
            self._jump(seconds)
        while self._ahead is not None and (self._shown is None or self._ahead[0] <= seconds):
            self._shown = self._ahead
            self._ahead = next(self._frames, None)
        if self._shown is None:
            raise UnusableError("has a video stream without a single frame that can be decoded")
        return self._shown[1]

    @property
    def ended(self) -> bool:
        """Whether the last frame is on screen."""
        return self._ahead is None

    @property
    def reached(self) -> float:
        """Until when the frame on screen stays there, in seconds."""
        if self._shown is None:
            return self._start
        time, frame = self._shown
        return time + float((frame.duration or 0) * (frame.time_base or 0))

    def _play(self) -> None:
        self._shown = None
        self._frames = self._timed_frames()
        self._ahead = next(self._frames, None)

    def _timed_frames(self) -> Iterator[tuple[float, VideoFrame]]:
        step = 1 / _frame_rate(self._stream)
        time = self._start - step
        for frame in decoded_frames(self._container, self._stream):
            self._decoded += 1
            self._limits.check("frames", self._decoded, f"needs {self._decoded:,} frames to be decoded")
            time = time + step if frame.time is None else frame.time
            yield time, frame

    def _jump(self, seconds: float) -> None:
        if self._shown is not None and self._ahead is not None and self._ahead[0] > seconds:
            return
        position = None if self._shown is None else self._shown[0]
        self._container.seek(math.floor(seconds / _time_base(self._stream)), stream=self._stream, backward=True)
        self._play()
        if self._ahead is None or self._ahead[1].time is None or self._ahead[0] > seconds:
            # The index of this file leads astray: play it from its beginning.
            self._seeking = False
            self._container.seek(self._stream.start_time or 0, stream=self._stream, backward=True)
            self._play()
        elif position is not None and self._ahead[0] <= position:
            self._seeking = False
