"""The demo's media files. Each modality is made from its own two facets and from nothing else.

What varies within a facet's value (places, sizes, hues, melodies, noise) is drawn from the seed and the item's
number, so that a file does not depend on which process makes it, nor on what else is made.
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from avrec.batch import Array
from avrec.data.sources.demo_pictures import FRAME_RATE, compose, draw_frames, draw_poster
from avrec.data.sources.demo_sound import SAMPLE_RATE, play


@dataclass(frozen=True)
class MediaJob:
    """What to make for one item: its values, and the files that it has ("" where it has none).

    Attributes:
        number: item index; with the seed, it decides everything that varies.
        palette: vision value.
        shape: vision value.
        timbre: audio value.
        rhythm: audio value.
        image: path of the poster in the catalogue's folder.
        video: path of the video in the catalogue's folder.
    """

    number: int
    palette: int
    shape: int
    timbre: int
    rhythm: int
    image: str
    video: str


def item_rng(seed: int, number: int, modality: int) -> np.random.Generator:
    """The generator of one item's modality: the same in whatever process, and whatever else is made."""
    return np.random.default_rng([seed, number, 100 + modality])


def make_media(folder: Path, domain: str, seed: int, job: MediaJob) -> None:
    """Writes one item's poster and video."""
    composition = compose(domain, job.palette, item_rng(seed, job.number, 1))
    if job.image:
        poster = draw_poster(domain, job.shape, composition)
        Image.fromarray(poster).save(folder / job.image, quality=88)
    if job.video:
        frames = draw_frames(domain, job.shape, composition)
        sound = play(domain, job.timbre, job.rhythm, item_rng(seed, job.number, 2))
        write_video(folder / job.video, frames, sound)


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


def main(arguments: list[str]) -> None:
    """Makes every n-th job of a file, from the k-th on: one worker of n.

    Args:
        arguments: folder, file with the jobs, k, n.
    """
    folder, plan = Path(arguments[0]), json.loads(Path(arguments[1]).read_text("utf-8"))
    for job in plan["jobs"][int(arguments[2]) :: int(arguments[3])]:
        make_media(folder, plan["domain"], plan["seed"], MediaJob(**job))
