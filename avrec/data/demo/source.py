"""The demo source: a planted catalogue with real media files, written once and kept on disk."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from filelock import FileLock

from avrec.batch import Array
from avrec.checked import Count, Seed, checked
from avrec.content.progress import progress
from avrec.data.demo.domains import DOMAINS, write_text
from avrec.data.demo.media import item_rng, make_media
from avrec.data.demo.world import Truth, World, WorldSize, make_world, most_interactions
from avrec.data.sources.folder import FolderSource
from avrec.data.tables import Catalogue
from avrec.errors import UserError
from avrec.io import atomic_dir

VERSION = 4
"""Raise it with any change to what is generated: a kept catalogue of another version is not used again."""

THREADS = min(os.cpu_count() or 1, 8)
"""That make media: the codecs let the others run meanwhile."""


class DemoSource:
    """A made-up catalogue in which the true preferences are known.

    It is written in the format that a user's own catalogue has, with real media files, and kept: it is made
    again only when a parameter changes.

    Args:
        root: folder that holds the catalogues.
        domain: film, music, game or course.
        num_items: items in the catalogue, at least 20.
        num_users: users, at least 10.
        num_interactions: interactions in all; None: 30 a user, or as many as the items allow.
        seed: the same seed gives the same catalogue.

    Raises:
        UserError: where the domain is unknown or the numbers cannot go together.
    """

    @checked
    def __init__(
        self,
        root: str | Path,
        domain: str = "film",
        num_items: Count = 600,
        num_users: Count = 2000,
        num_interactions: Count | None = None,
        seed: Seed = 0,
    ) -> None:
        if domain not in DOMAINS:
            raise UserError(f"domain must be one of {', '.join(DOMAINS)}; got {domain!r}.")
        self.root = Path(root).expanduser()
        self.domain = domain
        if num_interactions is None:
            num_interactions = min(30 * num_users, most_interactions(num_items, num_users))
        self.size = WorldSize(num_items, num_users, num_interactions)
        self.size.check()
        self.seed = seed

    @property
    def folder(self) -> Path:
        """Where the catalogue is, or will be once written."""
        parameters = {"domain": self.domain, **asdict(self.size), "seed": self.seed, "version": VERSION}
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
        return self.root / f"{self.domain}-{digest[:10]}"

    def write(self) -> Path:
        """Makes the catalogue where it is not there yet, whole or not at all, and returns its folder.

        Of several processes one writes and the others wait; what an interrupted process left behind is removed.
        """
        if self.folder.is_dir():
            return self.folder
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{self.folder.name}.lock"):
            if not self.folder.is_dir():
                for leftover in self.root.glob(f".{self.folder.name}.partial-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                with atomic_dir(self.folder) as folder:
                    self._fill(folder)
        return self.folder

    def as_folder(self) -> FolderSource:
        """The catalogue as a user's own folder, weighed by its watch ratio; made where it is not there yet."""
        return FolderSource(self.write(), feedback="watch_ratio", feedback_map="scale")

    def load(self) -> Catalogue:
        """The catalogue, read by the road that a user's own folder takes."""
        catalogue = self.as_folder().load()
        themes = [nouns.partition(",")[0] for nouns in DOMAINS[self.domain].themes]
        rows_N = _positions([item.item_id for item in catalogue.items], self.truth.item_ids, "item")
        labels = [themes[theme] for theme in self.truth.facets_NF[rows_N, 0].tolist()]
        return replace(catalogue, label_name="planted theme", labels=labels)

    def true_scores(self, user_ids: list[str], item_ids: list[str], time: float) -> Array:
        """The true log preference of each user for each item: what an oracle ranks by, float32 (B, N).

        Tastes drift; the score is for the mean taste between ``time`` (Unix s) and the end of the user's activity,
        because what is to be predicted at ``time`` comes after it.

        Raises:
            UserError: where a user or an item is not in the catalogue.
        """
        truth = self.truth
        user_B = _positions(user_ids, truth.user_ids, "user")
        item_N = _positions(item_ids, truth.item_ids, "item")
        return truth.utility(truth.later_taste(user_B, time), item_N) + truth.appeal_N[item_N]

    @cached_property
    def truth(self) -> Truth:
        """What the generator knows about preferences; writes the catalogue where needed."""
        return Truth.load(self.write() / "truth.npz")

    def _fill(self, folder: Path) -> None:
        world = make_world(self.domain, self.size, self.seed)
        (folder / "posters").mkdir()
        (folder / "videos").mkdir()
        items = self._items(world)
        items.write_csv(folder / "items.csv")
        _interactions(world).write_csv(folder / "interactions.csv")
        pl.DataFrame({"user_id": world.truth.user_ids, **world.columns}).write_csv(folder / "users.csv")
        world.truth.save(folder / "truth.npz")
        facets, files = world.truth.facets_NF[:, 2:].tolist(), items.select("image", "video").rows()

        def make(number: int) -> None:
            make_media(folder, self.domain, self.seed, number, facets[number], files[number])

        with progress("making the demo's media", len(items)) as advance, ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(make, range(len(items))):
                advance(1)

    def _items(self, world: World) -> pl.DataFrame:
        texts = [
            write_text(self.domain, theme, tone, item_rng(self.seed, n, 0))
            for n, (theme, tone) in enumerate(world.truth.facets_NF[:, :2].tolist())
        ]
        names = world.truth.item_ids.tolist()
        described = zip(world.has["description"], texts, strict=True)
        return pl.DataFrame(
            {
                "item_id": names,
                "title": [title for title, _ in texts],
                "description": [text if has else "" for has, (_, text) in described],
                "image": _paths(names, world.has["poster"], "posters/{}.jpg"),
                "video": _paths(names, world.has["video"], "videos/{}.mp4"),
                "published": world.published_N,
            }
        )


def _paths(names: list[str], has_N: Array, pattern: str) -> list[str]:
    return [pattern.format(name) if has else "" for name, has in zip(names, has_N, strict=True)]


def _interactions(world: World) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": world.truth.user_ids[world.log.user_W],
            "item_id": world.truth.item_ids[world.log.item_W],
            "timestamp": world.log.time_W,
            "watch_ratio": world.log.watch_ratio_W,
        }
    )


def _positions(names: list[str], known: Array, kind: str) -> Array:
    index = {name: n for n, name in enumerate(known.tolist())}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise UserError(
            f"{kind} {unknown[0]!r} is not in the demo catalogue: its {len(index)} {kind}s are named like "
            f"{known.tolist()[0]!r}. Take the names from {kind}s.csv."
        )
    return np.array([index[name] for name in names], np.int64)
