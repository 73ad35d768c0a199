"""Damaged input, made here: whatever a file holds, it is decoded to something sane or listed with a reason."""

import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from test_media import RATE, tone, write_video, write_wav

from avrec.batch import Array
from avrec.content.images import MAX_AREA
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.limits import Limits
from avrec.content.prepare import prepare_content
from avrec.content.preprocess import ArraySpec

LIMITS = Limits(pixels=4_000_000, item_seconds=20, memory_gib=1)
MOST_MEGABYTES = 400
"""That the worst file may take beyond what the process has: a few copies of the largest picture, and libraries."""


class Probe:
    """Checks what was decoded, and notes what there was and how much memory the process has ever had."""

    modality = "vision"

    def fit(self, items: list[RawItem]) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {}

    def request(self) -> DecodeRequest:
        return DecodeRequest(image=True, video_frames=3, sample_rate=RATE, max_seconds=2)

    def arrays(self) -> dict[str, ArraySpec]:
        return {"found": ArraySpec((3,), "bool"), "megabytes": ArraySpec((), "int64")}

    def __call__(self, decoded: Decoded) -> dict[str, Array]:
        for pixels, axes in ((decoded.image, 3), (decoded.frames, 4)):
            if pixels is not None:
                assert pixels.dtype == np.uint8
                assert pixels.ndim == axes
                assert pixels.shape[-1] == 3
                assert 0 < pixels[0].size <= 3 * MAX_AREA
        if decoded.frames is not None:
            assert len(decoded.frames) == 3
        if decoded.sound is not None:
            assert decoded.sound.dtype == np.float32
            assert 0 < len(decoded.sound) <= 2 * RATE
            assert np.abs(decoded.sound).max() <= 1
        found = [value is not None for value in (decoded.image, decoded.frames, decoded.sound)]
        return {"found": np.array(found), "megabytes": np.array(peak_megabytes())}


def peak_megabytes() -> int:
    """The most memory that this process has had."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


# ---------------------------------------------------------------------------------------------------------
# Whole files, and what can happen to them


def whole_pictures(folder: Path) -> Iterator[Path]:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    still = Image.fromarray(noise)
    for extension in ("jpg", "png", "gif", "webp", "bmp", "tif", "avif"):
        still.save(folder / f"still.{extension}")
        yield folder / f"still.{extension}"
    turned = [Image.fromarray(np.roll(noise, 9 * turn, axis=1)) for turn in range(1, 5)]
    for extension in ("gif", "webp", "png"):
        still.save(folder / f"moving.{extension}", save_all=True, append_images=turned, duration=80)
        yield folder / f"moving.{extension}"


def whole_videos(folder: Path) -> Iterator[Path]:
    levels = np.random.default_rng(0).integers(20, 235, 20).tolist()
    for name, codec in (
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.webm", "libvpx"),
        ("a.h264", "libx264"),
    ):
        sound = tone(2.0) if name in ("a.mp4", "a.mkv", "a.ts") else None
        yield write_video(folder / name, levels, codec=codec, sound=sound)


def whole_sounds(folder: Path) -> Iterator[Path]:
    yield write_wav(folder / "a.wav", tone(1.0))
    for name, codec in (("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.m4a", "aac")):
        with av.open(str(folder / name), "w") as container:
            track = container.add_stream(codec, rate=48000, layout="mono")
            samples = (tone(1.0, rate=48000) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = 48000
            resampler = av.AudioResampler(format=track.codec_context.format, rate=48000, frame_size=1024)
            if codec == "flac":
                resampler = av.AudioResampler(format="s16", rate=48000, frame_size=4096)
            if codec == "libopus":
                resampler = av.AudioResampler(format=track.codec_context.format, rate=48000, frame_size=960)
            for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(track.encode(piece))
        yield folder / name


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


def flipped(seed: int, count: int, within: float = 1.0) -> Callable[[bytes], bytes]:
    """``count`` bits turned over, in the first share ``within``."""

    def flip(data: bytes) -> bytes:
        random, changed = np.random.default_rng(seed), bytearray(data)
        for at in random.integers(0, max(1, int(len(data) * within)), count).tolist():
            changed[at] ^= 1 << int(random.integers(8))
        return bytes(changed)

    return flip


def blanked(begin: float, end: float, value: int = 0) -> Callable[[bytes], bytes]:
    def blank(data: bytes) -> bytes:
        first, last = int(len(data) * begin), int(len(data) * end)
        return data[:first] + bytes([value]) * (last - first) + data[last:]

    return blank


DAMAGES: list[Callable[[bytes], bytes]] = [
    cut(0.02),
    cut(0.3),
    cut(0.7),
    cut(0.98),
    flipped(1, 3, within=0.02),
    flipped(2, 8, within=0.1),
    flipped(3, 3),
    flipped(4, 40),
    flipped(5, 400),
    blanked(0, 0.02),
    blanked(0.4, 0.6),
    blanked(0.02, 0.1, 255),
    lambda data: data[len(data) // 3 :],
    lambda data: data + np.random.default_rng(6).bytes(3000),
    lambda data: data[: len(data) // 2] + data,
]


# ---------------------------------------------------------------------------------------------------------
# Headers that lie


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def gif(width: int, height: int, frame_width: int, frame_height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x4c\x01\x00"
    return screen + frame + frame + b"\x3b"


def wav(rate: int, channels: int, bits: int, stated: int) -> bytes:
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, min(rate * align, 2**32 - 1), align % 65536, bits)
    body = np.random.default_rng(0).bytes(4000)
    return (
        b"RIFF"
        + struct.pack("<I", stated)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", stated)
        + body
    )


def patched(path: Path, mark: bytes, offset: int, new: bytes) -> bytes:
    """A file with ``new`` at ``offset`` after its first ``mark``."""
    data = path.read_bytes()
    at = data.index(mark) + len(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def liars(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Field, name and content of files whose headers promise what nobody can hold."""
    most, large = b"\xff" * 4, struct.pack(">HH", 60000, 60000)
    for width, height in ((2**31 - 1, 2**31 - 1), (65535, 65535), (1, 3_999_999), (3_999_999, 1), (0, 5), (1999, 1999)):
        yield "image", f"{width}x{height}.png", png(width, height)
    for sizes in ((65535, 65535, 1, 1), (1, 1, 65535, 65535), (0, 0, 0, 0), (2000, 1999, 1, 1)):
        yield "image", f"{sizes}.gif", gif(*sizes)
        yield "video", f"{sizes}.gif", gif(*sizes)
    yield "image", "large.bmp", patched(folder / "still.bmp", b"BM", 16, struct.pack("<ii", 60000, 60000))
    yield "image", "negative.bmp", patched(folder / "still.bmp", b"BM", 16, struct.pack("<ii", 60000, -60000))
    yield "image", "large.jpg", patched(folder / "still.jpg", b"\xff\xc0", 3, large)
    yield "image", "large.qoi", b"qoif" + struct.pack(">IIBB", 60000, 60000, 3, 0) + bytes(99)
    yield "image", "large.webp", patched(folder / "moving.webp", b"VP8X", 8, b"\xff" * 6)
    for index, rate in enumerate((0, 1, 999, 2**31 - 1, 2**32 - 1)):
        yield "audio", f"rate{index}.wav", wav(rate, 1, 16, 4000)
    for index, (channels, bits) in enumerate(((0, 16), (255, 16), (65535, 16), (1, 0), (1, 64), (2, 65535))):
        yield "audio", f"form{index}.wav", wav(16000, channels, bits, 4000)
    for index, stated in enumerate((0, 1, 2**31, 2**32 - 1)):
        yield "audio", f"size{index}.wav", wav(16000, 1, 16, stated)
    mp4, avi = folder / "a.mp4", folder / "a.avi"
    yield "video", "large.mp4", patched(mp4, b"avc1" + bytes(6), 18, large)
    yield "video", "scale0.mp4", patched(mp4, b"mdhd", 12, bytes(4))
    yield "video", "scale.mp4", patched(mp4, b"mdhd", 12, most)
    yield "video", "long.mp4", patched(mp4, b"mdhd", 16, b"\x7f" + b"\xff" * 3)
    yield "video", "counts.mp4", patched(mp4, b"stsz", 8, most)
    yield "video", "sizes.mp4", patched(mp4, b"stsz", 12, b"\x7f\xff\xff\xff")
    yield "video", "times.mp4", patched(mp4, b"stts", 8, b"\x7f\xff\xff\xff" * 2)
    for index, (scale, rate) in enumerate(((1, 2**31 - 1), (2**31 - 1, 1), (0, 0))):
        yield "video", f"rate{index}.avi", patched(avi, b"strh", 24, struct.pack("<II", scale, rate))
    yield "video", "large.avi", patched(avi, b"strf", 8, struct.pack("<ii", 60000, 60000))
    yield "video", "song.mp4", (folder / "a.m4a").read_bytes()
    for field, extension in (("image", "png"), ("image", "jpg"), ("video", "mp4"), ("video", "ts"), ("audio", "mp3")):
        yield field, f"nothing.{extension}", b""
        yield field, f"noise.{extension}", np.random.default_rng(0).bytes(20000)
        yield field, f"page.{extension}", b"<html><body>404 not found</body></html>\n" * 50


def corpus(folder: Path) -> list[RawItem]:
    """Whole files, their damages under their own and under a wrong extension, and liars."""
    wrong = {"image": "mp4", "video": "jpg", "audio": "png"}
    whole = {"image": whole_pictures(folder), "video": whole_videos(folder), "audio": whole_sounds(folder)}
    files: list[tuple[str, str, bytes]] = []
    for field, paths in whole.items():
        for path in paths:
            data = path.read_bytes()
            files += [(field, f"{path.stem}{number}{path.suffix}", do(data)) for number, do in enumerate(DAMAGES)]
            files.append((field, f"{path.stem}{path.suffix}.{wrong[field]}", data))
            if path.stem == "moving":
                files += [("video", f"video{number}{path.suffix}", do(data)) for number, do in enumerate(DAMAGES)]
    endless = {"audio": wav(RATE, 1, 16, 2**32 - 1)}
    endless |= {field: (folder / name).read_bytes() for field, name in (("image", "still.webp"), ("video", "a.mp4"))}
    files += [(field, "endless.bin", data) for field, data in endless.items()]
    items = []
    for number, (field, name, data) in enumerate([*files, *liars(folder)]):
        path = folder / f"{number}-{name}"
        path.write_bytes(data)
        if name == "endless.bin":
            os.truncate(path, 3 << 30)  # holes: they take no space on disk
        items.append(RawItem(f"{field} {name}", **{field: path}))
    return items


def test_damaged_files_are_decoded_or_listed(tmp_path: Path) -> None:
    items = corpus(tmp_path)
    assert len(items) >= 400
    cache = tmp_path / "cache"
    prepared = prepare_content(items, Probe(), cache, workers=1, max_failed_share=1, limits=LIMITS)
    entries = json.loads((cache / "quarantine.json").read_text())
    reasons = {entry["item_id"]: entry["reason"] for entry in entries}
    rows = prepared.read(np.flatnonzero(prepared.present_N))
    found = {item.item_id for item, any_found in zip(items, rows["found"].any(axis=1), strict=True) if any_found}
    assert [item.item_id for item in items if item.item_id not in found and item.item_id not in reasons] == []
    assert [
        reason for reason in reasons.values() if re.search("preprocessed|ended the process|longer|memory", reason)
    ] == []
    # What is whole is read, whatever its name.
    whole = [item.item_id for item in items if item.item_id.count(".") == 2]
    assert [name for name in whole if name not in found] == []
    assert 100 < len(found) < len(items) - 100
    assert rows["megabytes"].max() - rows["megabytes"].min() < MOST_MEGABYTES
