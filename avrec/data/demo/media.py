"""The demo's media files. Each modality is made from its own two facets and from nothing else.

What varies within a facet's value (places, sizes, hues, melodies, noise) is drawn from the seed and the item's
number, so that a file does not depend on what else is made, nor in which order.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from avrec.batch import Array
from avrec.data.demo.pictures import FRAME_RATE, compose, draw_frames, draw_poster
from avrec.data.demo.sound import SAMPLE_RATE, play


def item_rng(seed: int, number: int, modality: int) -> np.random.Generator:
    """The generator of one item's modality."""
    return np.random.default_rng([seed, number, 100 + modality])


def make_media(folder: Path, domain: str, seed: int, number: int, facets: Sequence[int], files: Sequence[str]) -> None:
    """Writes one item's poster and video, where it has them (path in the folder, else "").

    Its facets are palette, shape, timbre and rhythm; the seed and its number decide everything that varies.
    """
    palette, shape, timbre, rhythm = facets
    image, video = files
    composition = compose(domain, palette, item_rng(seed, number, 1))
    if image:
        Image.fromarray(draw_poster(domain, shape, composition)).save(folder / image, quality=88)
    if video:
        frames = draw_frames(domain, shape, composition)
        write_video(folder / video, frames, play(domain, timbre, rhythm, item_rng(seed, number, 2)))


def write_video(path: Path, frames: list[Array], sound: Array) -> None:
    """An MP4 file: H.264 picture, AAC mono sound."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        picture = container.add_stream("libx264", rate=FRAME_RATE)
        # With more threads, with B-frames or with x264's macroblock tree (which this preset leaves out), the same
        # frames now and then give another file.
        picture.options = {"preset": "superfast", "crf": "27", "threads": "1", "bf": "0"}
        picture.height, picture.width = frames[0].shape[:2]
        picture.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        track.bit_rate, track.options = 40_000, {"aac_coder": "fast"}
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode())
        samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(track.encode(samples))
        container.mux(track.encode())
