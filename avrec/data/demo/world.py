"""The demo's planted world: what every item is, what every user likes, and what they chose over time.

An item is one value of each facet plus an appeal. Each modality reveals two facets and no modality reveals them
all, so that a model which reads several modalities knows more than one which reads a single one: a fact about the
world, not a hope about the model. A user's taste is a value for each facet value, drifting over time:

    log preference(u, i, t) = sum over facets f of taste_u,f(t)[facet_f(i)] + appeal_i

Choices are drawn from the softmax of that log preference over what is published and not yet seen.
Axes: ``B`` users, ``N`` items, ``F`` facets (here only), ``V`` values of all facets, ``A`` anchors, ``W`` rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from avrec.batch import Array
from avrec.data.demo.domains import DOMAINS
from avrec.errors import UserError

FACETS: Mapping[str, int] = {"theme": 8, "tone": 6, "palette": 8, "shape": 6, "timbre": 6, "rhythm": 6}
"""How many values each facet has."""

MODALITY_FACETS: Mapping[str, tuple[str, ...]] = {
    "text": ("theme", "tone"),
    "vision": ("palette", "shape"),
    "audio": ("timbre", "rhythm"),
}
"""The facets that each modality reveals."""

START = 1_688_169_600
"""The first day, 2023-07-01 00:00 UTC."""
SPAN = 546 * 86_400
"""The world lasts 546 days, to the end of 2024."""

COLD_SHARE = 0.09
COLD_FROM = 0.92
MISSING_SHARE = 0.06
FEWEST = 3
_ANCHORS = 3
_GROUPS = 8
_SHARPNESS = 2.8
_DRIFT = 0.15
_EXPLORE = 0.04
_PLANS = ("free", "student", "standard", "family", "premium")


def most_interactions(num_items: int, num_users: int) -> int:
    """So many that they can still be drawn."""
    return num_items // 2 * num_users * 3 // 4


@dataclass(frozen=True)
class WorldSize:
    """How many items, users and interactions a world has."""

    num_items: int
    num_users: int
    num_interactions: int

    def check(self) -> None:
        """Refuses sizes that no world can have with a ``UserError``."""
        if self.num_items < 20:
            raise UserError(f"num_items must be at least 20, so that some are cold; got {self.num_items}.")
        if self.num_users < 10:
            raise UserError(f"num_users must be at least 10; got {self.num_users}.")
        low, high = FEWEST * self.num_users, most_interactions(self.num_items, self.num_users)
        if not low <= self.num_interactions <= high:
            raise UserError(
                f"num_interactions={self.num_interactions} does not fit {self.num_users} users and "
                f"{self.num_items} items: nobody sees an item twice and everyone sees at least {FEWEST}. "
                f"Use {low} to {high}, or change num_users or num_items."
            )

    @property
    def most(self) -> int:
        """The largest number of items that one user sees: fewer than there are at the start."""
        return self.num_items // 2


@dataclass(frozen=True)
class Truth:
    """What the generator knows about preferences: the oracle's whole knowledge.

    Attributes:
        user_ids: users' own ids, (B,).
        item_ids: items' own ids, (N,).
        facets_NF: value of each facet, in the order of ``FACETS``.
        appeal_N: log preference that an item has for everyone.
        anchors_BAV: taste at A moments spread evenly over the user's active span.
        active_B2: first and last moment of each user, Unix s.
    """

    user_ids: Array
    item_ids: Array
    facets_NF: Array
    appeal_N: Array
    anchors_BAV: Array
    active_B2: Array

    def save(self, path: Path) -> None:
        """Writes one npz file."""
        np.savez_compressed(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Reads what ``save`` wrote."""
        with np.load(path) as file:
            return cls(**{f.name: file[f.name] for f in fields(cls)})

    def taste(self, user_W: Array, time_W: Array) -> Array:
        """The taste of user ``user_W[w]`` at ``time_W[w]`` (Unix s), (W, V); held beyond the active span."""
        first_W, last_W = self.active_B2[user_W].T.astype(np.float64)
        share_W = np.clip((time_W - first_W) / np.maximum(last_W - first_W, 1.0), 0.0, 1.0)
        position_W = share_W * (self.anchors_BAV.shape[1] - 1)
        before_W = np.minimum(position_W.astype(np.int64), self.anchors_BAV.shape[1] - 2)
        mix_W1 = (position_W - before_W)[:, None].astype(np.float32)
        anchors_BAV = self.anchors_BAV
        return (1 - mix_W1) * anchors_BAV[user_W, before_W] + mix_W1 * anchors_BAV[user_W, before_W + 1]

    def later_taste(self, user_W: Array, time: float) -> Array:
        """The mean taste from ``time`` to the end of each user's active span, (W, V)."""
        last_W = np.maximum(self.active_B2[user_W, 1], time)
        moments = [self.taste(user_W, time + share * (last_W - time)) for share in np.linspace(0, 1, 17)]
        return np.stack(moments).mean(axis=0, dtype=np.float32)

    def utility(self, taste_WV: Array, item_N: Array, modalities: Sequence[str] | None = None) -> Array:
        """The part of the log preference that the facets give, (W, N); of all modalities, or of those named."""
        named = MODALITY_FACETS if modalities is None else modalities
        known = {facet for modality in named for facet in MODALITY_FACETS[modality]}
        utility_WN = np.zeros((len(taste_WV), len(item_N)), np.float32)
        offset = 0
        # A sum of gathers, not a matrix product: its result does not depend on the BLAS, so nor do choices.
        for column, (facet, count) in enumerate(FACETS.items()):
            if facet in known:
                utility_WN += np.take(taste_WV, offset + self.facets_NF[item_N, column], axis=1)
            offset += count
        return utility_WN


@dataclass(frozen=True)
class Log:
    """What happened, in order of time: who chose what when (Unix s), and the share watched, in (0, 1]."""

    user_W: Array
    item_W: Array
    time_W: Array
    watch_ratio_W: Array


@dataclass(frozen=True)
class World:
    """A whole planted world.

    Attributes:
        truth: preferences.
        published_N: when an item came out, Unix s.
        has: by kind (description, poster, video): True where the item has it; sound comes with the video.
        columns: what users.csv tells, weakly related to taste: a plan (categorical) and an age (numeric).
        log: what happened.
    """

    truth: Truth
    published_N: Array
    has: Mapping[str, Array]
    columns: Mapping[str, Array]
    log: Log


def make_world(domain: str, size: WorldSize, seed: int) -> World:
    """A world, drawn. The same arguments give the same world."""
    size.check()
    # One generator for each matter, so that a change in one does not reshuffle all the others.
    items, users, times, choices = (np.random.default_rng([seed, matter]) for matter in range(4))
    facets = [items.permutation(np.arange(size.num_items) % count) for count in FACETS.values()]
    cold_N = _some(COLD_SHARE, size.num_items, 2, items)
    kinds = ("description", "poster", "video")
    has = {kind: ~_some(MISSING_SHARE, size.num_items, 1, items) for kind in kinds}
    published_N = _published(cold_N, items)
    group_B = users.integers(_GROUPS, size=size.num_users)
    anchors_BAV = _anchors(domain, group_B, users)
    moments = _moments(size, times)
    truth = Truth(
        user_ids=np.array([f"user-{n:05d}" for n in range(size.num_users)]),
        item_ids=np.array([f"{domain}-{n:05d}" for n in range(size.num_items)]),
        facets_NF=np.stack(facets, axis=1).astype(np.int64),
        appeal_N=_appeal(size.num_items, items),
        anchors_BAV=anchors_BAV,
        active_B2=np.array([(t[0], t[-1]) for t in moments], np.int64),
    )
    chosen, utility = _choices(truth, published_N, moments, choices)
    user_W = np.repeat(np.arange(size.num_users), [len(t) for t in moments])
    time_W = np.concatenate(moments)
    order = np.lexsort((user_W, time_W))
    return World(
        truth=truth,
        published_N=published_N,
        has=has,
        columns=_columns(group_B, users),
        log=Log(user_W[order], chosen[order], time_W[order], _watch_ratio(utility, choices)[order]),
    )


def _some(share: float, count: int, least: int, rng: np.random.Generator) -> Array:
    some_N = np.zeros(count, bool)
    some_N[rng.permutation(count)[: max(least, round(share * count))]] = True
    return some_N


def _published(cold_N: Array, rng: np.random.Generator) -> Array:
    """Two thirds were there at the start; the others come evenly; cold items only in the last stretch."""
    # Evenly spread, not independent: the start then has more items than anybody will ever see.
    draw_N = (rng.permutation(len(cold_N)) + 0.5) / len(cold_N)
    launch_N = rng.uniform(-1.2, -0.01, size=len(cold_N))
    share_N = np.where(draw_N < 2 / 3, launch_N, (draw_N * 3 - 2) * COLD_FROM)
    share_N = np.where(cold_N, COLD_FROM + draw_N * 0.05, share_N)
    return (START + share_N * SPAN).astype(np.int64)


def _appeal(num_items: int, rng: np.random.Generator) -> Array:
    rank_N = rng.permutation(num_items) + 1 + num_items / 20
    appeal_N = -0.65 * np.log(rank_N / num_items)
    return (appeal_N - appeal_N.mean()).astype(np.float32)


def _anchors(domain: str, group_B: Array, rng: np.random.Generator) -> Array:
    """Tastes: in each facet a favourite value and a second one over a background, some redrawn at each anchor."""
    weights = np.repeat(DOMAINS[domain].weights, 2)
    weights = weights / np.sqrt(np.mean(weights**2)) * _SHARPNESS
    rows = np.arange(len(group_B))
    facets = []
    for weight, count in zip(weights, FACETS.values(), strict=True):
        group_favourite = rng.integers(count, size=_GROUPS)[group_B]
        background_BV = rng.normal(0, 0.2, size=(len(group_B), count))
        favourites = [rng.integers(count, size=len(group_B)) for _ in range(2)]
        favourites[0] = np.where(rng.uniform(size=len(group_B)) < 0.35, group_favourite, favourites[0])
        anchors = []
        for _ in range(_ANCHORS):
            taste_BV = background_BV.copy()
            for favourite_B, gain in zip(favourites, (1.0, 0.5), strict=True):
                np.maximum.at(taste_BV, (rows, favourite_B), gain)
            anchors.append(weight * taste_BV)
            drifts_B = rng.uniform(size=len(group_B)) < _DRIFT
            favourites[0] = np.where(drifts_B, rng.integers(count, size=len(group_B)), favourites[0])
        facets.append(np.stack(anchors, axis=1))
    return np.concatenate(facets, axis=2).astype(np.float32)


def _columns(group_B: Array, rng: np.random.Generator) -> dict[str, Array]:
    random_B = rng.integers(len(_PLANS), size=len(group_B))
    telling_B = rng.uniform(size=len(group_B)) < 0.5
    plan_B = np.where(telling_B, group_B % len(_PLANS), random_B)
    age_B = np.clip(20 + 5 * group_B + rng.normal(0, 9, size=len(group_B)), 13, 90)
    return {"plan": np.array(_PLANS)[plan_B], "age": age_B.astype(np.int64)}


def _moments(size: WorldSize, rng: np.random.Generator) -> list[Array]:
    """When each user chooses: spans of different length, activity skewed, evenings more than mornings."""
    counts = _activity(size, rng)
    first_B = np.maximum(rng.uniform(-0.3, 0.85, size=size.num_users), 0)
    last_B = np.minimum(first_B + rng.uniform(0.15, 1.2, size=size.num_users), 1)
    raw = np.repeat(first_B, counts) + rng.uniform(size=counts.sum()) * np.repeat(last_B - first_B, counts)
    # By rank, the world is equally busy all the time: its last tenth of interactions is its last tenth of time.
    share = (np.argsort(np.argsort(raw)) + 0.5) / len(raw)
    day = np.floor(share * (SPAN // 86_400)).astype(np.int64)
    second = np.mod(rng.normal(20.0, 3.5, size=len(raw)) * 3600, 86_400).astype(np.int64)
    time = START + day * 86_400 + second
    return [_spaced(np.sort(part)) for part in np.split(time, np.cumsum(counts)[:-1])]


def _spaced(time: Array) -> Array:
    """Strictly increasing, at least ten minutes apart, so that a user's order is never in doubt."""
    steps = 600 * np.arange(len(time))
    return np.maximum.accumulate(time - steps) + steps


def _activity(size: WorldSize, rng: np.random.Generator) -> Array:
    appetite = rng.lognormal(0, 0.8, size=size.num_users)
    counts = np.full(size.num_users, FEWEST)
    while (missing := size.num_interactions - counts.sum()) > 0:
        room = np.where(counts < size.most, appetite, 0.0)
        counts = np.minimum(counts + rng.multinomial(missing, room / room.sum()), size.most)
    return counts


def _choices(truth: Truth, published_N: Array, moments: list[Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """The item of each interaction and its utility, users after users, as in ``moments``."""
    counts = np.array([len(t) for t in moments])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    time_W = np.concatenate(moments)
    seen_BN = np.zeros((len(counts), len(published_N)), bool)
    chosen, utility = np.zeros(len(time_W), np.int64), np.zeros(len(time_W), np.float32)
    all_items = np.arange(len(published_N))
    # All users' first choice, then all users' second choice, and so on: users do not depend on each other.
    for step in range(counts.max()):
        user_b = np.flatnonzero(counts > step)
        row_b = starts[user_b] + step
        utility_bN = truth.utility(truth.taste(user_b, time_W[row_b]), all_items)
        curious_b1 = rng.uniform(size=(len(user_b), 1)) < _EXPLORE
        score_bN = np.where(curious_b1, 0, utility_bN) + truth.appeal_N
        score_bN += rng.gumbel(size=score_bN.shape)
        score_bN[seen_BN[user_b] | (published_N >= time_W[row_b, None])] = -np.inf
        chosen[row_b] = score_bN.argmax(axis=1)
        utility[row_b] = utility_bN[np.arange(len(user_b)), chosen[row_b]]
        seen_BN[user_b, chosen[row_b]] = True
    return chosen, utility


def _watch_ratio(utility_W: Array, rng: np.random.Generator) -> Array:
    standard_W = (utility_W - utility_W.mean()) / utility_W.std()
    logit_W = 0.8 + 1.3 * standard_W + rng.normal(0, 0.8, size=len(utility_W))
    return np.round(np.clip(1 / (1 + np.exp(-logit_W)), 0.01, 1.0), 3)
