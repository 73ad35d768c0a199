"""Sound: the first seconds of an audio file or of a video's sound track, mono."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from avrec.batch import Array
from avrec.content.containers import decoded_frames, open_media
from avrec.content.items import DecodeRequest
from avrec.content.limits import Limits, UnusableError

SAMPLE_RATES = (1_000, 1_000_000)
"""Hz. Sound that states another rate is refused: resampling it would take memory without end."""


def sound(path: Path, request: DecodeRequest, limits: Limits) -> Array:
    """The first ``request.max_seconds`` of a file's sound: float32 in [-1, 1], (samples,), at the requested rate.

    Raises:
        UnusableError: it has no sound that can be decoded.
    """
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
    for frame in decoded_frames(container, stream):
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
