"""Decoding: what an item's files hold, as arrays; what cannot be read, as reasons.

Pictures and frames come out with a shorter side of at most ``MAX_SHORT_SIDE`` pixels, so that one item's
memory is bounded by what is asked of it and not by what its owner's camera can do.
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import UnidentifiedImageError

from avrec.batch import Array
from avrec.content.images import animation, count_frames, fitted, picture
from avrec.content.items import Decoded, DecodeFailure, DecodeRequest, RawItem
from avrec.content.limits import Limits, UnusableError

FULL_DECODE_SECONDS = 20.0
"""Videos up to this long are decoded from end to end: a seek costs up to a whole group of pictures."""

FULL_DECODE_FRAMES = 500
"""Videos of up to this many frames are decoded from end to end, too."""

MEASURED_BYTES = 16 << 20
"""The length of videos up to this size is measured; larger files are believed where they state it."""

SAMPLE_RATES = (1_000, 1_000_000)
"""Hz. Sound that states another rate is refused: resampling it would take memory without end."""

CONTAINERS = (
    "3g2 3gp aac ac3 aiff alac amr amrnb amrwb ape apng asf au av1 avi caf dsf dts dv eac3 f4v flac flv gif gxf h263 "
    "h264 hevc ivf jpeg_pipe m4a m4v matroska mjpeg mov mp3 mp4 mpc mpc8 mpeg mpegts mpegvideo mxf nut obu ogg"
    " png_pipe rm tak truehd tta vc1 voc vvc w64 wav webm webp_pipe wv"
)
"""FFmpeg's names of what is opened as video or sound. Playlists are not: they make it open other files."""

# FFmpeg writes about every broken packet to stderr; what matters comes back as a reason.
av.logging.set_libav_level(av.logging.PANIC)


def decode(item: RawItem, request: DecodeRequest, limits: Limits | None = None) -> Decoded:
    """One item, decoded as requested; never raises for what a file holds or lacks.

    A file that cannot be used becomes one of ``Decoded.failures``, and the rest of the item is decoded all
    the same. Broken packets inside a file are passed over, as players do. A video without a sound track
    simply has no sound. An animated picture (GIF, WebP, PNG, AVIF) is a video, too: where ``video`` names it,
    and where ``image`` does and there is no video. A still picture named by ``video`` is a video of one frame.
    """
    limits = limits or Limits()
    decoded = Decoded(text=item.text if request.text else None)

    def attempt(path: Path | None, read: Callable[[Path], Array | None]) -> Array | None:
        reason = None if path is None else _unusable(path)
        if path is not None and reason is None:
            try:
                return read(path)
            except UnusableError as error:
                reason = str(error)
            except UnidentifiedImageError:
                reason = "is not a picture of a known format"
            # A broken file makes decoders raise nearly anything (SyntaxError, struct.error, MemoryError, ...).
            except Exception as error:
                text = getattr(error, "strerror", None) or str(error)
                reason = f"cannot be decoded ({text or type(error).__name__})"
        failure = DecodeFailure(item.item_id, str(path), reason or "")
        if reason is not None and failure not in decoded.failures:
            decoded.failures.append(failure)
        return None

    if request.image:
        decoded.image = attempt(item.image, lambda path: picture(path, limits))
    if request.video_frames > 0:
        moving = _frames if item.video else _animated_frames
        decoded.frames = attempt(item.video or item.image, lambda path: moving(path, request.video_frames, limits))
    if request.sample_rate > 0:
        hear = _sound if item.audio else _sound_track
        decoded.sound = attempt(item.audio or item.video, lambda path: hear(path, request, limits))
    return decoded


def _unusable(path: Path) -> str | None:
    if not path.exists():
        return "does not exist"
    if not path.is_file():
        return "is not a file"
    return "is empty" if path.stat().st_size == 0 else None


def open_media(path: Path) -> InputContainer:
    """A video or sound, opened; never a playlist, which would make FFmpeg open other files.

    Raises:
        UnusableError: it is none of ``CONTAINERS``.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS.replace(" ", ",")}
    try:
        return av.open(str(path), metadata_errors="ignore", options=options)
    except (av.error.InvalidDataError, av.error.ArgumentError):
        raise UnusableError("is not a media file of a known format, or its beginning is broken") from None


def _decoded_frames(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[Any]:
    packets = container.demux(stream)
    whole = broken = 0
    while True:
        try:
            packet = next(packets, None)
            frames = [] if packet is None else packet.decode()
            whole += 1
        except av.error.FFmpegError:
            broken += 1
            continue
        if packet is None:
            break
        yield from frames
    if broken > whole:
        raise UnusableError(f"is broken: {broken} of {broken + whole} packets cannot be decoded")


# ---------------------------------------------------------------------------------------------------------
# Video


def _frames(path: Path, count: int, limits: Limits) -> Array:
    return animation(path, count, limits) if count_frames(path, limits) else _video(path, count, limits)


def _animated_frames(path: Path, count: int, limits: Limits) -> Array | None:
    return animation(path, count, limits) if count_frames(path, limits) > 1 else None


def _video(path: Path, count: int, limits: Limits) -> Array:
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
        for frame in _decoded_frames(self._container, self._stream):
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


def _sound_track(path: Path, request: DecodeRequest, limits: Limits) -> Array | None:
    if count_frames(path, limits):
        return None
    with open_media(path) as container:
        silent = not container.streams.audio
    return None if silent else _sound(path, request, limits)


def _sound(path: Path, request: DecodeRequest, limits: Limits) -> Array:
    limits.check("seconds", request.max_seconds, f"is asked for {request.max_seconds:,.0f} s of sound")
    with open_media(path) as container:
        if not container.streams.audio:
            raise UnusableError("has no sound track")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise UnusableError("has a sound track that cannot be decoded: unknown coding, or broken")
        stream.codec_context.thread_count = 1
        wanted = max(1, round(request.max_seconds * request.sample_rate))
        pieces: list[Array] = []
        gathered = 0
        for piece in _resampled(container, stream, request.sample_rate):
            pieces.append(piece)
            gathered += len(piece)
            if gathered >= wanted:
                break
    if gathered == 0:
        raise UnusableError("has a sound track without a single sample that can be decoded")
    return np.clip(np.nan_to_num(np.concatenate(pieces)[:wanted]), -1.0, 1.0)


def _resampled(container: InputContainer, stream: AudioStream, rate: int) -> Iterator[Array]:
    resampler: av.AudioResampler | None = None
    source: tuple[str, str, int] | None = None
    for frame in _decoded_frames(container, stream):
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != source:
            if not SAMPLE_RATES[0] <= frame.sample_rate <= SAMPLE_RATES[1]:
                raise UnusableError(f"states {frame.sample_rate:,} samples a second")
            # A stream may change its form on the way; a resampler cannot.
            yield from _pieces(resampler, None)
            resampler, source = av.AudioResampler(format="fltp", rate=rate), form
        # Gaps in the time stamps are not to be filled or cut.
        frame.pts = None
        yield from _pieces(resampler, frame)
    yield from _pieces(resampler, None)


def _pieces(resampler: av.AudioResampler | None, frame: AudioFrame | None) -> Iterator[Array]:
    """Resampled samples; without a frame, those that the resampler still holds."""
    if resampler is not None:
        for piece in resampler.resample(frame):
            # FFmpeg's own mono mix of floats is louder than its channels, and clips.
            yield piece.to_ndarray().mean(axis=0, dtype=np.float32)
