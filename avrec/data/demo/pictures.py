"""The demo's posters and video frames: a figure on a ground, whose colours and form tell the vision facets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from avrec.batch import Array
from avrec.data.demo.domains import DOMAINS
from avrec.data.demo.sound import SECONDS

FRAME_RATE = 8
FRAME_SIZE = (96, 96)
POSTER_SIZE = (128, 160)

Colour = tuple[int, int, int]
Size = tuple[int, int]


@dataclass(frozen=True)
class Composition:
    """Where things stand in one item's picture: drawn once, shared by its poster and all its frames."""

    centre: tuple[float, float]
    radius: float
    angle: float
    small: list[tuple[float, float, float]]
    bars: list[tuple[float, float]]
    colours: tuple[Colour, Colour, Colour]
    grain_seed: int


class Motion(NamedTuple):
    """How far a figure has moved, as shares of the picture; its growth; its turn in radians."""

    right: float = 0.0
    down: float = 0.0
    growth: float = 1.0
    turn: float = 0.0


def compose(domain: str, palette: int, rng: np.random.Generator) -> Composition:
    """One item's composition in the colours of its palette."""
    shift = rng.normal(0, 9, size=3) + rng.normal(0, 6)
    ground, figure, trim = (_colour(code, shift) for code in DOMAINS[domain].palettes[palette].split())
    corners = rng.permutation([(0.11, 0.11), (0.89, 0.1), (0.1, 0.78), (0.9, 0.77)])
    return Composition(
        centre=(rng.uniform(0.42, 0.58), rng.uniform(0.38, 0.5)),
        radius=rng.uniform(0.28, 0.35),
        angle=rng.uniform(-0.15, 0.15),
        small=[(x, y, rng.uniform(0.05, 0.08)) for x, y in corners[: rng.integers(2, 5)]],
        bars=[(y, rng.uniform(0.3, 0.75)) for y in (0.87, 0.93)],
        colours=(ground, figure, trim),
        grain_seed=int(rng.integers(2**31)),
    )


def draw_poster(domain: str, shape: int, composition: Composition) -> Array:
    """A poster, uint8 (height, width, 3)."""
    return next(_drawn(domain, shape, composition, POSTER_SIZE, [Motion()], composition.bars))


def draw_frames(domain: str, shape: int, composition: Composition) -> list[Array]:
    """A video's frames, each uint8 (height, width, 3): the poster's scene, in motion."""
    motions = [_motion(shape, number / (2 * FRAME_RATE)) for number in range(SECONDS * FRAME_RATE)]
    return list(_drawn(domain, shape, composition, FRAME_SIZE, motions))


def _drawn(
    domain: str,
    shape: int,
    composition: Composition,
    size: Size,
    motions: Sequence[Motion],
    bars: Sequence[tuple[float, float]] = (),
) -> Iterator[Array]:
    """The scene once for each motion."""
    width, height = doubled = (size[0] * 2, size[1] * 2)  # edges come out smooth
    ground = _ground(DOMAINS[domain].ground, composition.colours, doubled)
    noise = np.random.default_rng(composition.grain_seed).normal(0, 4, size=(size[1], size[0], 1))
    grain = np.round(noise).astype(np.int16)
    for motion in motions:
        image = ground.copy()
        pen = ImageDraw.Draw(image)
        _figures(pen, shape, composition, doubled, motion)
        for y, share in bars:
            x = (1 - share) / 2
            box = (x * width, y * height, (1 - x) * width, (y + 0.03) * height)
            pen.rectangle(box, fill=composition.colours[2])
        yield np.clip(np.asarray(image.reduce(2)) + grain, 0, 255).astype(np.uint8)


def _colour(code: str, shift: Array) -> Colour:
    red, green, blue = np.clip([*bytes.fromhex(code)] + shift, 0, 255).astype(int).tolist()
    return red, green, blue


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _ground(kind: str, colours: tuple[Colour, Colour, Colour], size: Size) -> Image.Image:
    ground, _, trim = colours
    width, height = size
    image = Image.new("RGB", size, ground)
    pen = ImageDraw.Draw(image)
    darker = _mixed(ground, (0, 0, 0), 0.35)
    if kind == "fade":
        for y in range(height):
            pen.line((0, y, width, y), fill=_mixed(ground, darker, y / height))
    elif kind == "rays":
        box = (-width, -height, 2 * width, 2 * height)
        for start in range(0, 360, 40):
            pen.pieslice(box, start, start + 20, fill=_mixed(ground, darker, 0.4))
    elif kind == "split":
        pen.polygon([(0, height), size, (width, height * 0.45), (0, height * 0.7)], fill=darker)
    else:
        margin = width // 32
        box = (margin, margin, width - margin, height - margin)
        pen.rectangle(box, outline=_mixed(ground, trim, 0.6), width=margin)
    return image


def _figures(pen: ImageDraw.ImageDraw, shape: int, composition: Composition, size: Size, motion: Motion) -> None:
    width, height = size
    _, figure, trim = composition.colours
    angle = composition.angle + motion.turn
    for x, y, radius in composition.small:
        _figure(pen, shape, (x * width, y * height, radius * width, angle), trim)
    x, y = (composition.centre[0] + motion.right) * width, (composition.centre[1] + motion.down) * height
    _figure(pen, shape, (x, y, composition.radius * motion.growth * width, angle), figure)


def _figure(pen: ImageDraw.ImageDraw, shape: int, place: tuple[float, float, float, float], fill: Colour) -> None:
    """Disc, rings, triangle, cross, bars or dots, at (x, y) with a radius and an angle.

    They differ in fineness as well as in form, so that a small network tells them apart early.
    """
    x, y, r, angle = place

    def turned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        c, s = np.cos(angle), np.sin(angle)
        return [(float(x + r * (c * a - s * b)), float(y + r * (s * a + c * b))) for a, b in points]

    if shape == 0:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == 1:
        for outer in (r * 1.15, r * 0.75, r * 0.35):
            box = (x - outer, y - outer, x + outer, y + outer)
            pen.ellipse(box, outline=fill, width=max(2, round(r * 0.17)))
    elif shape == 5:
        dot, steps = r * 0.2, (-0.99, -0.33, 0.33, 0.99)
        for a, b in turned([(a, b) for a in steps for b in steps]):
            pen.ellipse((a - dot, b - dot, a + dot, b + dot), fill=fill)
    else:
        for polygon in _POLYGONS[shape]:
            pen.polygon(turned(polygon), fill=fill)


def _rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


_POLYGONS: Mapping[int, list[list[tuple[float, float]]]] = {
    2: [[(0, -1.15), (1.15, 0.8), (-1.15, 0.8)]],
    3: [_rectangle(-0.24, -1.2, 0.24, 1.2), _rectangle(-1.2, -0.24, 1.2, 0.24)],
    4: [_rectangle(left, -1.2, left + 0.24, 1.2) for left in (-1.15, -0.67, -0.19, 0.29, 0.77)],
}


def _motion(shape: int, phase: float) -> Motion:
    """Where a shape is at ``phase`` of its cycle; each shape has its own way of moving."""
    angle = 2 * np.pi * phase
    sine, cosine = float(np.sin(angle)), float(np.cos(angle))
    ways = (
        Motion(down=0.11 * sine),
        Motion(growth=1 + 0.2 * sine),
        Motion(turn=0.3 * sine),
        Motion(turn=angle / 4),
        Motion(right=0.12 * sine),
        Motion(right=0.08 * sine, down=0.08 * cosine),
    )
    return ways[shape]
