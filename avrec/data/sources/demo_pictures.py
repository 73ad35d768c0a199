"""The demo's posters and video frames: a figure on a ground, whose colours and form tell the vision facets."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from avrec.batch import Array
from avrec.data.sources.demo_sound import SECONDS

FRAME_RATE = 8
FRAME_SIZE = (96, 96)
POSTER_SIZE = (128, 160)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """A domain's picture style: the ground's kind, and per palette the colours of ground, figure and trim."""

    ground: str
    palettes: tuple[str, ...]


_LOOKS: Mapping[str, Look] = {
    "film": Look(
        "fade",
        (
            "10204a f2b632 dfe7f5",
            "7d1020 f3e3c3 2a0509",
            "0f4a2c d8f06a f4f4e8",
            "4b1a78 ff8fc8 f7e0ff",
            "d9b27a 5a2d10 fff3da",
            "101010 f0f0f0 c02020",
            "0d7f86 ff8a1f fff0d0",
            "c9d4dc d01f2e 22303c",
        ),
    ),
    "music": Look(
        "rays",
        (
            "ff2e88 fff04a 2b0a4f",
            "0affc6 101a3a ff5c5c",
            "2a0a6b 00e5ff ff3df0",
            "ffd400 1a1a1a ff4d00",
            "0b0b14 ff3b3b f5f5f5",
            "ff7a1a 1246a8 fff3e0",
            "e8e8f0 7a1fe0 111111",
            "0a8f3c f4ffd0 081c10",
        ),
    ),
    "game": Look(
        "split",
        (
            "2e6be6 ffd23f ffffff",
            "d7263d 1b1b2f ffd9a0",
            "3fbf3f 5b2a00 fff6c0",
            "7f2ccb 5cff5c e8d0ff",
            "f7b500 c4006a 402000",
            "12343b e1f7f5 ff6b35",
            "ff9ecb 3a2ea8 ffffff",
            "8a8f98 20c4f4 1d1f24",
        ),
    ),
    "course": Look(
        "frame",
        (
            "fdf6e3 1f5fa8 e59500",
            "b4dcfa c62f2f 1b2b44",
            "bfe8b4 6a3d9a 1e4d2b",
            "ffc9d3 00796b 7a2138",
            "ffef7a 3a3a3a d35400",
            "2d3e50 ffffff f1c40f",
            "cfb8f0 e67300 3c1f66",
            "a4a8a8 0b3d0b ffffff",
        ),
    ),
}


@dataclass(frozen=True)
class Composition:
    """Where things stand in one item's picture: drawn once, shared by its poster and all its frames."""

    centre: tuple[float, float]
    radius: float
    angle: float
    small: tuple[tuple[float, float, float], ...]
    bars: tuple[tuple[float, float], ...]
    colours: tuple[Colour, Colour, Colour]
    grain_seed: int


@dataclass(frozen=True)
class Motion:
    """How far a figure has moved, as shares of the picture; its growth; its turn in radians."""

    right: float = 0.0
    down: float = 0.0
    growth: float = 1.0
    turn: float = 0.0


def compose(domain: str, palette: int, rng: np.random.Generator) -> Composition:
    """One item's composition in the colours of its palette."""
    shift = rng.normal(0, 9, size=3) + rng.normal(0, 6)
    hexes = _LOOKS[domain].palettes[palette].split()
    ground, figure, trim = (_colour(code, shift) for code in hexes)
    corners = rng.permutation([(0.11, 0.11), (0.89, 0.1), (0.1, 0.78), (0.9, 0.77)])
    return Composition(
        centre=(rng.uniform(0.42, 0.58), rng.uniform(0.38, 0.5)),
        radius=rng.uniform(0.28, 0.35),
        angle=rng.uniform(-0.15, 0.15),
        small=tuple((x, y, rng.uniform(0.05, 0.08)) for x, y in corners[: rng.integers(2, 5)]),
        bars=tuple((y, rng.uniform(0.3, 0.75)) for y in (0.87, 0.93)),
        colours=(ground, figure, trim),
        grain_seed=int(rng.integers(2**31)),
    )


def draw_poster(domain: str, shape: int, composition: Composition) -> Array:
    """A poster, uint8 (height, width, 3)."""
    canvas = _Canvas(domain, composition, POSTER_SIZE)
    image, pen = canvas.fresh()
    _figures(pen, shape, composition, canvas.size, Motion())
    width, height = canvas.size
    for y, share in composition.bars:
        x = (1 - share) / 2
        box = (x * width, y * height, (1 - x) * width, (y + 0.03) * height)
        pen.rectangle(box, fill=composition.colours[2])
    return canvas.finished(image)


def draw_frames(domain: str, shape: int, composition: Composition) -> list[Array]:
    """A video's frames, each uint8 (height, width, 3): the poster's scene, in motion."""
    canvas = _Canvas(domain, composition, FRAME_SIZE)
    frames = []
    for number in range(SECONDS * FRAME_RATE):
        image, pen = canvas.fresh()
        _figures(pen, shape, composition, canvas.size, _motion(shape, number / (2 * FRAME_RATE)))
        frames.append(canvas.finished(image))
    return frames


class _Canvas:
    """A ground and a grain, made once for all the frames of an item."""

    def __init__(self, domain: str, composition: Composition, size: tuple[int, int]) -> None:
        self.size = (size[0] * 2, size[1] * 2)  # drawn at twice the size: edges come out smooth
        self.ground = _ground(_LOOKS[domain].ground, composition.colours, self.size)
        noise = np.random.default_rng(composition.grain_seed).normal(0, 4, size=(size[1], size[0], 1))
        self.grain = np.round(noise).astype(np.int16)

    def fresh(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = self.ground.copy()
        return image, ImageDraw.Draw(image)

    def finished(self, image: Image.Image) -> Array:
        return np.clip(np.asarray(image.reduce(2)) + self.grain, 0, 255).astype(np.uint8)


def _colour(code: str, shift: Array) -> Colour:
    red, green, blue = np.clip([int(code[n : n + 2], 16) for n in (0, 2, 4)] + shift, 0, 255).astype(int)
    return int(red), int(green), int(blue)


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _ground(kind: str, colours: tuple[Colour, Colour, Colour], size: tuple[int, int]) -> Image.Image:
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


def _figures(
    pen: ImageDraw.ImageDraw, shape: int, composition: Composition, size: tuple[int, int], motion: Motion
) -> None:
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
