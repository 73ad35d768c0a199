"""The contents of a report, without their layout."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from avrec.content.items import RawItem
from avrec.report.gallery import Person, people
from avrec.report.inputs import ReportInputs
from avrec.report.item_map import ItemMap, item_map
from avrec.report.media import sound, thumbnail
from avrec.report.text import headline

MOST_SOUND = 1_400_000
"""Characters of sound in a page."""


@dataclass(frozen=True)
class ReportData:
    """The contents of a report; pictures and sounds are data URIs by item."""

    inputs: ReportInputs
    headline: list[str]
    map: ItemMap | None
    people: list[Person]
    pictures: dict[int, str]
    shape: float
    """Height over width of most pictures."""
    sounds: dict[int, str]


def gather(inputs: ReportInputs) -> ReportData:
    """Collect the contents of the report of an evaluated run."""
    persons = people(inputs)
    items = list(dict.fromkeys(_items(persons)))
    found = {item: thumb for item in items if (thumb := thumbnail(inputs.items[item]))}
    shapes = sorted(shape for _, shape in found.values())
    return ReportData(
        inputs=inputs,
        headline=headline(inputs.results),
        map=item_map(inputs),
        people=persons,
        pictures={item: uri for item, (uri, _) in found.items()},
        shape=min(1.5, max(0.56, shapes[len(shapes) // 2])) if shapes else 1.0,
        sounds=_sounds(inputs.items, items),
    )


def _items(persons: Sequence[Person]) -> Iterator[int]:
    """Items in the order in which sounds are added until the page has ``MOST_SOUND``."""
    for rows in (lambda p: p.recommended, lambda p: p.chosen, lambda p: p.history):
        for person in persons:
            yield from (tile.item for tile in rows(person))


def _sounds(items: Sequence[RawItem], wanted: Iterable[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    room = MOST_SOUND
    for item in wanted:
        if room > 0 and (uri := sound(items[item])):
            found[item] = uri
            room -= len(uri)
    return found
