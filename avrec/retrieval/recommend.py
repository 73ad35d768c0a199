"""What a trained model recommends, and why; run as ``avrec recommend``.

A user's history is the whole log, also what was held out for validation and test; nothing in it is recommended.
"because of" is a leave-one-out attribution: the query is computed anew without each history item, and shown are the
items whose absence takes the most from the recommended item's score. A score is a logit: the objective takes its
sigmoid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from avrec.batch import Array, UserBatch
from avrec.data.windows import Sequences, padded
from avrec.errors import UserError, nearest
from avrec.export.item_tower import ExportedItemTower
from avrec.retrieval.embed import read_items, vectors_of
from avrec.retrieval.index import Index
from avrec.towers.user_tower import UserVector

if TYPE_CHECKING:
    from avrec.data.datamodule import TwoTowerData
    from avrec.training.module import TwoTowerModule

REASONS = 2
USERS_AT_ONCE = 256
USERS_SHOWN = 5


class Recommended(NamedTuple):
    """A recommended item; ``because``: titles of history items, and what the score loses without each, most first."""

    item_id: str
    title: str
    score: float
    because: list[tuple[str, float]]


class Audience(NamedTuple):
    """Who would get a new item: its rank for every user, from 1, and the users with rank k or better, best first."""

    item_id: str
    title: str
    rank_E: Array
    users: list[str]


class Recommender:
    """A run that answers.

    Args:
        data: prepared.
        module: with its weights.
        columns: the catalogue's own column names, by avrec's; a table of new items has the same.
    """

    def __init__(
        self, data: "TwoTowerData", module: "TwoTowerModule", columns: Mapping[str, str | None] | None = None
    ) -> None:
        self.data, self.catalogue, self.module = data, data.catalogue, module.eval()
        self.columns = columns
        self.place = {item.item_id: index for index, item in enumerate(self.catalogue.items)}
        log = self.catalogue.log
        self.history = Sequences.of(log, np.ones(len(log), bool), len(self.catalogue.user_ids))

    @cached_property
    @torch.no_grad()
    def item_ND(self) -> Tensor:
        """The catalogue's embeddings."""
        return torch.cat([self.module.item_tower(batch) for batch in self.data.item_batches()]).float()

    def for_user(self, user_id: str, k: int = 10) -> list[Recommended]:
        """The k best items for a user.

        Raises:
            UserError: an unknown user.
        """
        users = {user_id: index for index, user_id in enumerate(self.catalogue.user_ids)}
        user = _known("user", user_id, users)
        first, stop = self.history.starts[user : user + 2].tolist()
        return self._recommend(user, self.history.item[first:stop], self.history.time[first:stop], k)

    def for_history(self, item_ids: Sequence[str], k: int = 10) -> list[Recommended]:
        """The k best items for somebody who is in no table, with this history, oldest first.

        Raises:
            UserError: an unknown item, or a user tower that reads no history.
        """
        if isinstance(self.module.user_tower, UserVector):
            raise UserError(
                f"history={','.join(item_ids)}: this run's user tower is a vector per user and reads no history, so "
                "somebody new gets nothing. Use user=ID, or a run of another user_tower."
            )
        items = np.asarray([_known("history", item_id, self.place) for item_id in item_ids], np.int64)
        return self._recommend(None, items, np.zeros(len(items)), k)

    @torch.no_grad()
    def _recommend(self, user: int | None, item_L: Array, time_L: Array, k: int) -> list[Recommended]:
        ids = list(self.place)
        read = np.arange(len(item_L))[-self.data.history_length :]
        # All that is read, and then the same without each of its items.
        rows = [read, *(np.delete(read, place) for place in range(len(read)))]
        stop = np.cumsum([len(kept) for kept in rows])
        first = np.append(0, stop[:-1])
        row_BL, present_BL = padded(np.concatenate(rows), first, stop, max(1, len(read)))
        history_BL, time_BL = (
            np.where(present_BL, values[row_BL], 0) if len(values) else np.zeros(row_BL.shape, values.dtype)
            for values in (item_L, time_L)
        )
        users = self.data.users.of(np.full(len(rows), user or 0), history_BL, present_BL, time_BL)
        if user is None:
            names = ("user_B", "categories_BC", "numbers_BR")
            users = replace(users, **{name: torch.zeros_like(getattr(users, name)) for name in names})
        query_BD = self._query(users)
        seen = [ids[item] for item in item_L.tolist()]
        found = Index(ids, self.item_ND.numpy()).search(query_BD[:1].numpy(), k, seen=[seen]).ids[0]
        index = [self.place[item_id] for item_id in found]
        score_BK = query_BD @ self.item_ND[index].T + self.module.score.bias
        titles = [self.title(item) for item in item_L[read].tolist()]
        result = []
        for item, score_B in zip(index, score_BK.T, strict=True):
            losses = sorted(zip((score_B[0] - score_B[1:]).tolist(), titles, strict=True), reverse=True)[:REASONS]
            because = [(title, loss) for loss, title in losses if loss > 0]
            result.append(Recommended(ids[item], self.title(item), score_B[0].item(), because))
        return result

    def title(self, item: int) -> str:
        """What an item is called; its id where it has no title."""
        return self.catalogue.titles[item] or self.catalogue.items[item].item_id

    def _query(self, users: UserBatch) -> Tensor:
        return self.module.score.scale(self.module.user_tower.last(users, self.item_ND)).float()

    def audiences(self, items: str | Path, k: int = 10) -> tuple[list[Audience], list[str]]:
        """Who would get new items, each one alone added to the catalogue.

        Args:
            items: a table of items, or a folder with one (see ``avrec.retrieval.embed``).
            k: places.

        Returns:
            The audiences of the items that can be embedded, and what cannot be used, in words.

        Raises:
            UserError: the table cannot be used, or an item is in the catalogue already.
        """
        if any(encoder.reads == "table" for encoder in self.module.item_tower.encoders.values()):
            raise UserError(
                f"items={items}: this run reads a feature matrix, which new items have no row in. Pass vectors to the "
                "exported tower: avrec.load_item_tower(RUN/item_tower).embed(...)."
            )
        tower = ExportedItemTower(self.module.item_tower, {}, self.catalogue.text)
        raw, titles = read_items(items, tower, self.columns)
        known = self.place.keys() & {item.item_id for item in raw}
        if known:
            raise UserError(f"items={items}: item {min(known)} is in the catalogue already. Use new items only.")
        found = list(vectors_of(tower, raw))
        told = [f"item {item.item_id}: {reason}" for item, (_, reason) in zip(raw, found, strict=True) if reason]
        usable = [(place, vector) for place, (vector, _) in enumerate(found) if vector is not None]
        if not usable:
            raise UserError(f"No item of {items} can be embedded. The first: {told[0]}")
        new_XD = torch.from_numpy(np.stack([vector for _, vector in usable]))
        user_ids = self.catalogue.user_ids
        parts = np.array_split(np.arange(len(user_ids)), -(-len(user_ids) // USERS_AT_ONCE))
        rank_EX = np.concatenate([self._ranks(users, new_XD) for users in parts])
        audiences = []
        for (place, _), rank_E in zip(usable, rank_EX.T, strict=True):
            first = np.argsort(rank_E, kind="stable")[: (rank_E <= k).sum()].tolist()
            title = titles[place] or raw[place].item_id
            audiences.append(Audience(raw[place].item_id, title, rank_E, [user_ids[user] for user in first]))
        return audiences, told

    @torch.no_grad()
    def _ranks(self, users: Array, new_XD: Tensor) -> Array:
        """Places of new items for these users, (B, X), among the items they have not had; of tied ones the last."""
        query_BD = self._query(self.data.users.latest(users, self.history))
        score_BN = query_BD @ self.item_ND.T
        for row, user in enumerate(users.tolist()):
            score_BN[row, self.history.item[self.history.starts[user] : self.history.starts[user + 1]]] = -torch.inf
        below_BX = torch.searchsorted(score_BN.sort(dim=1).values, query_BD @ new_XD.T)
        return (score_BN.shape[1] - below_BX + 1).numpy()


def _known(key: str, name: str, places: dict[str, int]) -> int:
    if name not in places:
        near = nearest(name, list(places)) or f"It has {len(places):,}, such as {next(iter(places))}."
        raise UserError(f"{key}={name} is not in the catalogue. {near}")
    return places[name]


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*headers)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def recommended_table(recommended: Sequence[Recommended]) -> Table:
    """To print."""
    rows = [
        (one.item_id, one.title, f"{one.score:.2f}", ", ".join(f"{title} ({loss:+.2f})" for title, loss in one.because))
        for one in recommended
    ]
    return _table(("item", "title", "score", "because of"), rows)


def audience_table(audiences: Sequence[Audience], k: int) -> Table:
    """To print."""
    rows = []
    for one in audiences:
        count, first = len(one.users), ", ".join(one.users[:USERS_SHOWN])
        share = f"{count:,} of {len(one.rank_E):,} ({count / len(one.rank_E):.1%})"
        middle = f"{np.median(one.rank_E):,.0f}"
        rows.append((one.item_id, one.title, share, middle, first + (", …" if count > USERS_SHOWN else "")))
    return _table(("item", "title", f"users with it in the first {k}", "median rank", "first of them"), rows)
