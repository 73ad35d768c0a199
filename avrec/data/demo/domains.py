"""What tells the demo's domains apart: words, colours, sounds and weights, as ``domains.toml`` has them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Domain:
    """One preset of the generator.

    Attributes:
        weights: how much text, vision and audio count for taste.
        themes: by theme, the nouns, separated by commas.
        tones: by tone, the adjectives, separated by commas.
        titles: title templates.
        blurbs: description templates.
        ground: kind of a picture's ground: fade, rays, split or frame.
        palettes: by palette, the colours of ground, figure and trim, hexadecimal.
        scale: semitones that a melody may use.
        attack: seconds until a note is at full strength.
        echo: its strength, in [0, 1).
        hum: strength of the steady low hum under everything.
    """

    weights: list[float]
    themes: list[str]
    tones: list[str]
    titles: list[str]
    blurbs: list[str]
    ground: str
    palettes: list[str]
    scale: list[int]
    attack: float
    echo: float
    hum: float


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
DOMAINS: Mapping[str, Domain] = {name: Domain(**table) for name, table in _TABLES.items()}
"""By name: film, music, game and course."""
