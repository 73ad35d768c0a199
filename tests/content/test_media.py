"""Decoding of real files, made here.

Covers avrec.content.video and avrec.content.audio.
"""

import re
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from avrec.batch import Array
from avrec.content import video as media
from avrec.content.decode import decode
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.limits import Limits

VISION = DecodeRequest(image=True, video_frames=4)
RATE = 16000
SOUND = DecodeRequest(sample_rate=RATE, max_seconds=5)
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def write_video(
    path: Path,
    levels: list[int],
    *,
    rate: int = 10,
    gop: int = 5,
    sound: Array | None = None,
    size: tuple[int, int] = (64, 48),
    times: list[int] | None = None,
    codec: str = "libx264",
) -> Path:
    """A video whose frame ``i`` has the brightness ``levels[i]`` (at ``times[i]`` / rate seconds)."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.gop_size = gop
        video.codec_context.time_base = Fraction(1, rate)
        track = container.add_stream("aac", rate=RATE, layout="mono") if sound is not None else None
        for index, level in enumerate(levels):
            pixels = np.full((size[1], size[0], 3), level, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = RATE
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def write_wav(path: Path, sound: Array, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if sound.ndim == 1 else sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def tone(seconds: float, hertz: float = 440, rate: int = RATE) -> Array:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def levels_of(decoded: Decoded) -> list[int]:
    assert decoded.failures == []
    assert decoded.frames is not None
    assert decoded.frames.dtype == np.uint8
    return [round(float(frame.mean())) for frame in decoded.frames]


# ---------------------------------------------------------------------------------------------------------
# Pictures


def picture(path: Path) -> Array:
    decoded = decode(RawItem("a", image=path), VISION)
    assert decoded.failures == []
    assert decoded.image is not None
    assert decoded.image.dtype == np.uint8
    return decoded.image


def test_png_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(picture(tmp_path / "a.png"), COLOURS)


def test_a_wrong_extension_does_not_matter_to_a_readable_picture(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(picture(tmp_path / "a.jpg"), COLOURS)


def test_palette_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).quantize(4)
    red = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=red)
    expected = COLOURS.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(picture(tmp_path / "a.png"), expected)


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([COLOURS, np.array([[255, 255], [255, 0]], np.uint8)])
    rgba[0, 1] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert picture(tmp_path / "a.png").tolist() == [
        [[255, 0, 0], [127, 127, 127]],
        [[0, 0, 255], [255, 255, 255]],
    ]


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert picture(tmp_path / "a.png")[0, :, 0].tolist() == [0, 100, 255]


def test_floating_point_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.4, 1]], np.float32)).save(tmp_path / "a.tif")
    assert picture(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 102, 255]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(picture(tmp_path / "a.jpg")[8, 8], (254, 0, 0), atol=4)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(picture(tmp_path / "a.gif")[4, 4], (255, 0, 0), atol=2)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(picture(tmp_path / "a.png"), np.rot90(COLOURS, k=-1))


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_large_pictures_are_scaled_down(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (2000, 1100), (10, 200, 30)).save(tmp_path / f"a.{extension}")
    image = picture(tmp_path / f"a.{extension}")
    assert image.shape == (512, 931, 3)
    np.testing.assert_allclose(image[100, 100], (10, 200, 30), atol=3)


# ---------------------------------------------------------------------------------------------------------
# Video


def test_frames_are_the_centres_of_equal_parts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [20 + 10 * i for i in range(20)])
    levels = levels_of(decode(RawItem("a", video=path), VISION))
    # 2 s in four parts: 0.25, 0.75, 1.25, 1.75 s are on frames 2, 7, 12, 17.
    np.testing.assert_allclose(levels, [40, 90, 140, 190], atol=2)


@pytest.mark.parametrize("gop", [1, 4, 12, 250])
@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("measured", [True, False])
def test_seeking_gives_what_decoding_all_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gop: int, count: int, measured: bool
) -> None:
    levels = np.random.default_rng(gop).integers(20, 235, 60).tolist()
    path = write_video(tmp_path / "a.mp4", levels, gop=gop)
    request = DecodeRequest(video_frames=count)
    everything = decode(RawItem("a", video=path), request)
    np.testing.assert_allclose(
        levels_of(everything), [levels[int(60 * (i + 0.5) / count)] for i in range(count)], atol=3
    )
    monkeypatch.setattr(media, "FULL_DECODE_SECONDS", 0.0)
    monkeypatch.setattr(media, "FULL_DECODE_FRAMES", 0)
    monkeypatch.setattr(media, "MEASURED_BYTES", media.MEASURED_BYTES if measured else 0)
    np.testing.assert_array_equal(decode(RawItem("a", video=path), request).frames, everything.frames)


def test_fewer_frames_than_asked_for_repeat(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [50, 200])
    levels = levels_of(decode(RawItem("a", video=path), DecodeRequest(video_frames=6)))
    np.testing.assert_allclose(levels, [50, 50, 50, 200, 200, 200], atol=2)


def test_variable_frame_rate_is_spread_in_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [40, 80, 120, 160, 200], times=[0, 1, 2, 3, 30])
    # 3.1 s in 31 parts: the fourth frame stays on screen for 27 of them.
    levels = levels_of(decode(RawItem("a", video=path), DecodeRequest(video_frames=31)))
    np.testing.assert_allclose(levels, [40, 80, 120] + [160] * 27 + [200], atol=2)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.h264", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.webm", "libvpx")],
)
def test_other_containers(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, [20 + 10 * i for i in range(20)], codec=codec)
    levels = levels_of(decode(RawItem("a", video=path), VISION))
    np.testing.assert_allclose(levels, [40, 90, 140, 190], atol=11 if name == "a.h264" else 5)


def test_unknown_duration_is_measured(tmp_path: Path) -> None:
    """As browsers record: a stream that could not be completed with its duration."""
    path = tmp_path / "a.webm"
    with path.open("wb") as file:
        pipe = type("Pipe", (), {"write": lambda _, data: file.write(data)})()
        with av.open(pipe, "w", format="webm") as container:
            video = container.add_stream("libvpx", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for index in range(20):
                pixels = np.full((48, 64, 3), 20 + 10 * index, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(video.encode(None))
    with av.open(str(path)) as written:
        assert not written.duration
    levels = levels_of(decode(RawItem("a", video=path), VISION))
    np.testing.assert_allclose(levels, [40, 90, 140, 190], atol=3)


def write_animation(path: Path, levels: list[int], milliseconds: int | list[int] = 100) -> Path:
    frames = [Image.new("RGB", (8, 8), (level,) * 3) for level in levels]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, lossless=True)
    return path


@pytest.mark.parametrize("extension", ["gif", "webp", "png"])
def test_an_animation_is_a_video_wherever_it_is_named(tmp_path: Path, extension: str) -> None:
    # Half of its length belongs to the last frame.
    path = write_animation(tmp_path / f"a.{extension}", [0, 80, 160, 240], [100, 100, 100, 300])
    as_video = decode(RawItem("a", video=path), VISION)
    np.testing.assert_allclose(levels_of(as_video), [0, 160, 240, 240], atol=2)
    as_image = decode(RawItem("a", image=path), VISION)
    np.testing.assert_array_equal(as_image.frames, as_video.frames)
    assert as_image.image is not None
    assert as_image.image.max() <= 2  # its poster is its first frame
    assert decode(RawItem("a", video=path), SOUND) == Decoded()
    film = write_video(tmp_path / "a.mp4", [100] * 4)
    np.testing.assert_allclose(levels_of(decode(RawItem("a", image=path, video=film), VISION)), [100] * 4, atol=2)


def test_untimed_frames_are_equally_long(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "a.gif", [0, 240], 0)
    np.testing.assert_allclose(levels_of(decode(RawItem("a", video=path), VISION)), [0, 0, 240, 240], atol=2)


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "jpg"])
def test_a_still_picture_is_a_video_of_one_frame_where_a_video_is_named(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.new("RGB", (8, 8), (80, 80, 80)).save(path)
    np.testing.assert_allclose(levels_of(decode(RawItem("a", video=path), VISION)), [80] * 4, atol=2)
    assert decode(RawItem("a", image=path), VISION).frames is None
    assert decode(RawItem("a", video=path), SOUND) == Decoded()


def test_rotation_and_scaling(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [100] * 3, size=(1280, 720))
    upright = decode(RawItem("a", video=path), VISION).frames
    assert upright is not None
    assert upright.shape == (4, 512, 910, 3)
    data = path.read_bytes()
    one, minus_one = (1 << 16).to_bytes(4, "big"), (0xFFFF << 16).to_bytes(4, "big")
    zero, end = bytes(4), (1 << 30).to_bytes(4, "big")
    identity = one + zero * 3 + one + zero * 3 + end
    turned = zero + one + zero + minus_one + zero * 4 + end
    at = data.index(identity, data.index(b"tkhd"))
    (tmp_path / "b.mp4").write_bytes(data[:at] + turned + data[at + 36 :])
    sideways = decode(RawItem("a", video=tmp_path / "b.mp4"), VISION).frames
    np.testing.assert_array_equal(sideways, np.rot90(upright, k=-1, axes=(1, 2)))


def sound_of(item: RawItem, request: DecodeRequest = SOUND) -> Array:
    decoded = decode(item, request)
    assert decoded.failures == []
    assert decoded.sound is not None
    assert decoded.sound.dtype == np.float32
    assert decoded.sound.ndim == 1
    return decoded.sound


def test_wav_is_read_to_its_last_sample(tmp_path: Path) -> None:
    sound = tone(0.5003)
    sound[-1] = 0.9
    heard = sound_of(RawItem("a", audio=write_wav(tmp_path / "a.wav", sound)))
    np.testing.assert_allclose(heard, sound, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_keeps_length_and_end(tmp_path: Path, rate: int) -> None:
    path = write_wav(tmp_path / "a.wav", tone(1.0, rate=rate), rate)
    heard = sound_of(RawItem("a", audio=path))
    assert abs(len(heard) - RATE) <= 2
    np.testing.assert_allclose(heard[-400:-40], tone(1.0)[RATE - 400 : RATE - 40], atol=0.02)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    stereo = np.stack([tone(0.2), np.zeros(3200)], axis=1)
    heard = sound_of(RawItem("a", audio=write_wav(tmp_path / "a.wav", stereo)))
    np.testing.assert_allclose(heard, tone(0.2) / 2, atol=2e-3)


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(2.0))
    heard = sound_of(RawItem("a", audio=path), DecodeRequest(sample_rate=RATE, max_seconds=0.75))
    assert len(heard) == 12000


def test_a_videos_sound_track_is_its_sound_unless_a_file_is_given(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", [100] * 10, sound=tone(1.0))
    heard = sound_of(RawItem("a", video=video))
    assert abs(len(heard) - RATE) <= 1500
    spectrum = np.abs(np.fft.rfft(heard))
    assert abs(spectrum.argmax() * RATE / len(heard) - 440) < 2
    wav = write_wav(tmp_path / "a.wav", tone(0.25))
    assert len(sound_of(RawItem("a", video=video, audio=wav))) == 4000


def test_a_silent_video_is_no_failure(tmp_path: Path) -> None:
    decoded = decode(RawItem("a", video=write_video(tmp_path / "a.mp4", [100] * 4)), SOUND)
    assert decoded == Decoded()


# ---------------------------------------------------------------------------------------------------------
# What cannot be used


def write_broken(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.bin"
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not found\n" * 50)
    elif kind == "truncated picture":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "whole.png")
        path.write_bytes((folder / "whole.png").read_bytes()[:5000])
    elif kind == "truncated video":
        whole = write_video(folder / "whole.mp4", [100] * 10).read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif kind == "wav":
        write_wav(path, tone(0.1))
    elif kind == "wav without samples":
        write_wav(path, np.zeros(0))
    return path


@pytest.mark.parametrize(
    ("kind", "field", "reason"),
    [
        ("missing", "image", "does not exist"),
        ("missing", "video", "does not exist"),
        ("folder", "image", "is not a file"),
        ("empty", "image", "is empty"),
        ("empty", "audio", "is empty"),
        ("text", "image", "is not a picture of a known format"),
        ("text", "video", "is not a media file of a known format, or its beginning is broken"),
        ("text", "audio", "is not a media file of a known format, or its beginning is broken"),
        ("truncated picture", "image", "cannot be decoded (image file is truncated"),
        ("truncated video", "video", "has a video stream that cannot be decoded"),
        ("wav", "video", "has no video stream"),
        ("wav", "image", "is not a picture of a known format"),
        ("wav without samples", "audio", "has a sound track without a single sample"),
    ],
)
def test_failures_have_reasons_and_the_rest_goes_on(tmp_path: Path, kind: str, field: str, reason: str) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "good.png")
    good = {
        "image": tmp_path / "good.png",
        "video": write_video(tmp_path / "good.mp4", [100] * 4, sound=tone(0.4)),
        "audio": write_wav(tmp_path / "good.wav", tone(0.3)),
    }
    broken = write_broken(kind, tmp_path)
    item = RawItem("item 7", "words", **{**good, field: broken})
    decoded = decode(item, DecodeRequest(text=True, image=True, video_frames=2, sample_rate=RATE))
    assert [(f.item_id, f.path) for f in decoded.failures] == [("item 7", str(broken))]
    assert decoded.failures[0].reason.startswith(reason)
    assert decoded.text == "words"
    results = {"image": decoded.image, "video": decoded.frames, "audio": decoded.sound}
    assert {name for name, value in results.items() if value is None} == {field}


@pytest.mark.parametrize("measured", [True, False])
def test_a_video_that_breaks_off_early_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    monkeypatch.setattr(media, "MEASURED_BYTES", media.MEASURED_BYTES if measured else 0)
    levels = np.random.default_rng(0).integers(20, 235, 100).tolist()
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            noise = np.random.default_rng(level).integers(0, level, (48, 64, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(video.encode(None))
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "most.mp4").write_bytes(whole[: len(whole) * 9 // 10])
    assert len(levels_of(decode(RawItem("a", video=tmp_path / "most.mp4"), VISION))) == 4
    (tmp_path / "little.mp4").write_bytes(whole[: len(whole) // 4])
    decoded = decode(RawItem("a", video=tmp_path / "little.mp4"), VISION)
    assert decoded.frames is None
    assert "breaks off after" in decoded.failures[0].reason
    assert "of the 10.0 seconds" in decoded.failures[0].reason


def test_a_file_that_fails_twice_is_one_failure(tmp_path: Path) -> None:
    request = DecodeRequest(video_frames=2, sample_rate=RATE)
    assert len(decode(RawItem("a", video=tmp_path / "a.mp4"), request).failures) == 1


@pytest.mark.parametrize("kind", ["image", "video"])
def test_too_many_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", [100] * 2)
    item = RawItem("a", image=tmp_path / "a.png") if kind == "image" else RawItem("a", video=tmp_path / "a.mp4")
    (failure,) = decode(item, VISION, Limits(pixels=1000)).failures
    assert re.fullmatch(r"is too large: .*at most 1,000 .*by datamodule\.prepare\.limits\.pixels", failure.reason)


@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("a.mp4", Limits(seconds=1.5), "lasts 2 s: at most 1.5 by datamodule.prepare.limits.seconds"),
        ("a.gif", Limits(seconds=1.5), "lasts 2 s: at most 1.5 by datamodule.prepare.limits.seconds"),
        ("a.mp4", Limits(frames=9), "needs 10 frames to be decoded: at most 9 by datamodule.prepare.limits.frames"),
        ("a.gif", Limits(frames=9), "has 20 frames: at most 9 by datamodule.prepare.limits.frames"),
    ],
)
def test_too_much_video_is_refused(tmp_path: Path, name: str, limits: Limits, reason: str) -> None:
    levels = list(range(20, 220, 10))
    path = write_video(tmp_path / name, levels) if name == "a.mp4" else write_animation(tmp_path / name, levels)
    assert [f.reason for f in decode(RawItem("a", video=path), VISION, limits).failures] == [reason]


def test_more_sound_than_may_be_read_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.1))
    (failure,) = decode(RawItem("a", audio=path), SOUND, Limits(seconds=4)).failures
    assert failure.reason == "is asked for 5 s of sound: at most 4 by datamodule.prepare.limits.seconds"


@pytest.mark.parametrize("rate", [1, 999, 2_000_000_000])
def test_absurd_sample_rates_are_refused(tmp_path: Path, rate: int) -> None:
    (failure,) = decode(RawItem("a", audio=write_wav(tmp_path / "a.wav", tone(0.1), rate)), SOUND).failures
    assert failure.reason == f"states {rate:,} samples a second"


def test_nothing_else_is_run_or_opened_for_a_file(tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.mp4", [100] * 4)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {film.name}\n")
    (tmp_path / "play.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{film.name}\n#EXT-X-ENDLIST\n")
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    for name in ("list.mp4", "play.mp4"):
        (failure,) = decode(RawItem("a", video=tmp_path / name), VISION).failures
        assert failure.reason.startswith("is not a media file of a known format")
    (failure,) = decode(RawItem("a", image=tmp_path / "a.png"), VISION).failures
    assert failure.reason == "is not a picture of a known format"


def test_what_is_not_requested_is_not_opened(tmp_path: Path) -> None:
    item = RawItem("a", "words", *[tmp_path / "gone"] * 3)
    assert decode(item, DecodeRequest(text=True)) == Decoded(text="words")
