"""The demo's domains: words, colours, sounds and weights from ``domains.toml``, and the texts made of them."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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

_NAMES = (
    "Mara,Otto,Ines,Ravi,Lena,Tomas,Aiko,Bruno,Carmen,Dario,Edda,Farid,Greta,Hugo,Irma,"
    "Jonas,Kira,Luca,Mina,Nils,Olga,Pablo,Quinn,Rosa,Sami,Tilda,Uma,Viktor,Wanda,Yusuf"
)


def write_text(domain: str, theme: int, tone: int, rng: np.random.Generator) -> tuple[str, str]:
    """A title and a description that tell the theme and the tone, and nothing else about the item."""
    words = DOMAINS[domain]
    nouns = rng.permutation(words.themes[theme].split(","))
    adjectives = rng.permutation(words.tones[tone].split(","))
    slots = {f"noun{n or ''}": str(noun) for n, noun in zip((0, 2, 3), nouns[:3], strict=True)}
    slots |= {f"adj{n or ''}": str(adjective) for n, adjective in zip((0, 2), adjectives[:2], strict=True)}
    slots |= {slot.capitalize(): word.capitalize() for slot, word in slots.items()}
    names = rng.permutation(_NAMES.split(","))
    slots |= {"Name": str(names[0]), "Name2": str(names[1]), "number": str(rng.integers(2, 30))}
    title = words.titles[rng.integers(len(words.titles))].format(**slots)
    # The description says more than the title: other nouns of the same theme.
    slots |= {f"noun{n or ''}": str(noun) for n, noun in zip((0, 2, 3), nouns[2:5], strict=True)}
    blurb = words.blurbs[rng.integers(len(words.blurbs))].format(**slots)
    return _with_articles(title), _with_articles(blurb)


def _with_articles(text: str) -> str:
    """ "an" where a vowel sound follows."""
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni))(?!eu)", r"\1n ", text, flags=re.IGNORECASE)
