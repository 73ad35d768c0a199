"""Containers: a file opened for its video or sound, and the frames in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.logging
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from avrec.content.limits import UnusableError

CONTAINERS = (
    "3g2 3gp aac ac3 aiff alac amr amrnb amrwb ape apng asf au av1 avi caf dsf dts dv eac3 f4v flac flv gif gxf h263 "
    "h264 hevc ivf jpeg_pipe m4a m4v matroska mjpeg mov mp3 mp4 mpc mpc8 mpeg mpegts mpegvideo mxf nut obu ogg"
    " png_pipe rm tak truehd tta vc1 voc vvc w64 wav webm webp_pipe wv"
)
"""FFmpeg's names of what is opened as video or sound. Playlists are not: they make it open other files."""

# FFmpeg writes about every broken packet to stderr; what matters comes back as a reason.
av.logging.set_libav_level(av.logging.PANIC)


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


def decoded_frames(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[Any]:
    """The frames of a stream; broken packets are passed over, as players do.

    Raises:
        UnusableError: most packets are broken.
    """
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
