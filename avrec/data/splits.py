"""Splits: which interaction is for training, validation and test."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from annotated_types import Interval

from avrec.batch import Array
from avrec.checked import Seed, check_fields
from avrec.data.tables import Catalogue
from avrec.errors import UserError

TRAIN, VAL, TEST = 0, 1, 2
ROLES = {"train": TRAIN, "val": VAL, "test": TEST}
OpenShare = Annotated[float, Interval(gt=0, lt=1)]
History = Literal["past", "all"]


@dataclass(frozen=True)
class Split:
    """The role of every row of the log.

    Attributes:
        role: TRAIN, VAL or TEST per row of the sorted log, int8.
        protocol: the split's settings and what it leaks, for every result.
        test_time: the moment at which test rankings are asked for, in the log's time; None where there is no
            one moment for all users.
        history: "past": no history row is newer than the user's first row to be found; "all": no such limit.
        item_role_N: the role that each item is held out for, int8: none of its rows has another one; None where
            items are not held out.
        candidates: "all" items, or only the "cold" ones that are held out for the ranking.
    """

    role: Array
    protocol: dict[str, Any] = field(default_factory=dict)
    test_time: float | None = None
    history: str = "past"
    item_role_N: Array | None = None
    candidates: str = "all"


class Splitter(Protocol):
    """Assigns roles to the rows of a catalogue's log."""

    def __call__(self, catalogue: Catalogue) -> Split:
        """Roles of the rows of ``catalogue.log``."""


class _Checked:
    """What splitters with arguments share.

    Raises:
        UserError: a choice that is not known, or shares that leave nothing to train on.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        given = vars(self)
        val, test = given.get("val_share", 0.1), given.get("test_share", 0.1)
        if val + test >= 1:
            raise UserError(f"`val_share` + `test_share` must be below 1; got {val} and {test}.")


class LeaveLastOut:
    """Each user's last interaction is for test, the one before for validation, the rest for training.

    What the field compares by. It leaks the future across users: one user's training rows may be younger than
    another's test row. Ties in time keep the order of the file. A user with two interactions has no validation
    row, one with a single interaction is for training alone.
    """

    def __call__(self, catalogue: Catalogue) -> Split:
        """Roles of the rows of ``catalogue.log``."""
        log = catalogue.log
        length = np.bincount(log.user) if len(log) else np.zeros(0, np.int64)
        last = np.cumsum(length)[log.user] - 1
        from_end = last - np.arange(len(log))
        long_enough = length[log.user]
        role = np.full(len(log), TRAIN, np.int8)
        role[(from_end == 0) & (long_enough >= 2)] = TEST
        role[(from_end == 1) & (long_enough >= 3)] = VAL
        return Split(role, {"split": "leave_last_out", "leaks": "the future across users"})


@dataclass(frozen=True)
class Temporal(_Checked):
    """Two cut-off times for all users: what is older is for training, the youngest is for test.

    A user is asked for once, at the cut-off, and may have several items to be found. Items and users that appear
    only after the cut-off are cold and new.

    Args:
        val_share: share of the interactions between the cut-offs.
        test_share: share of the interactions after the second.
    """

    val_share: OpenShare = 0.1
    test_share: OpenShare = 0.1

    def __call__(self, catalogue: Catalogue) -> Split:
        """Roles of the rows of ``catalogue.log``.

        Raises:
            UserError: the log has no timestamps, or too few distinct ones.
        """
        log = catalogue.log
        if not log.has_time:
            raise UserError(
                "split=temporal needs a timestamp column in the interactions, and there is none. "
                "Add it, or use split=leave_last_out."
            )
        val_time, test_time = _cuts(log.time, self.val_share, self.test_share)
        role = _role_at(log.time, val_time, test_time)
        if not (role == TRAIN).any() or not (role == VAL).any():
            raise UserError(
                f"split=temporal: the log has too few distinct timestamps to be cut at {val_time:g} and "
                f"{test_time:g}. Use other shares, or split=leave_last_out."
            )
        protocol = {"split": "temporal", "val_from": val_time, "test_from": test_time, "leaks": "nothing"}
        return Split(role, protocol, test_time)


@dataclass(frozen=True)
class ColdItems(_Checked):
    """Some items are held out whole, for validation or for test: none of their rows is trained on or is history.

    The test asks for a user's rows of the test items, validation for those of the validation items, so that the
    checkpoint is chosen by cold items too. A user is asked once, at the moment of the first of them. Training rows
    may be younger than that, of the same user too.

    Args:
        by: ``random``: the first shares of the seed's permutation of the items; ``published``: the youngest items
            by publication time; ``first_seen``: by their first interaction. Items without such a time stay warm.
        val_share: share of the items (of those with a time) that are held out for validation.
        test_share: share that is held out for test.
        candidates: ``cold``: only the items held out for a ranking are ranked in it; ``all``: the whole catalogue.
        history: ``past``: the warm items up to the moment of asking; ``all``: all warm items of the user, younger
            ones too, as published work on cold items has it.
        seed: of ``by=random``.
    """

    by: Literal["random", "published", "first_seen"] = "random"
    val_share: OpenShare = 0.1
    test_share: OpenShare = 0.2
    candidates: Literal["cold", "all"] = "cold"
    history: History = "past"
    seed: Seed = 0

    def __call__(self, catalogue: Catalogue) -> Split:
        """Roles of the rows of ``catalogue.log``.

        Raises:
            UserError: the times that ``by`` asks for are not there, or too few items to hold any out.
        """
        num_items = len(catalogue.items)
        if self.by == "random":
            item_role_N = np.full(num_items, TRAIN, np.int8)
            order = np.random.default_rng(self.seed).permutation(num_items)
            test, val = (round(num_items * share) for share in (self.test_share, self.val_share))
            item_role_N[order[:test]] = TEST
            item_role_N[order[test : test + val]] = VAL
            chosen: dict[str, Any] = {"seed": self.seed}
        else:
            time_N = self._times(catalogue)
            known_N = np.isfinite(time_N)
            val_time, test_time = _cuts(time_N[known_N], self.val_share, self.test_share)
            item_role_N = np.where(known_N, _role_at(time_N, val_time, test_time), TRAIN).astype(np.int8)
            chosen = {"val_from": val_time, "test_from": test_time, "items_without_time": int((~known_N).sum())}
        counts = {name: int((item_role_N == role).sum()) for name, role in ROLES.items()}
        if not all(counts.values()):
            raise UserError(
                f"split=cold_items: by={self.by} leaves {counts['train']} of {num_items} items to train on, "
                f"{counts['val']} for validation and {counts['test']} for test. Each needs one at least; give other "
                "shares, or by=random."
            )
        held_out = {"val_items": counts["val"], "test_items": counts["test"]}
        protocol = {"split": "cold_items", "by": self.by, **chosen, **held_out, **_history(self.history)}
        role = item_role_N[catalogue.log.item]
        return Split(role, protocol, None, self.history, item_role_N, self.candidates)

    def _times(self, catalogue: Catalogue) -> Array:
        """When each item came out or was first seen; not finite where unknown."""
        log = catalogue.log
        time_N = np.full(len(catalogue.items), np.inf)
        if self.by == "published":
            time_N = catalogue.published_N
        elif log.has_time:
            np.minimum.at(time_N, log.item, log.time)
        if not np.isfinite(time_N).any():
            column = "published column in the items" if self.by == "published" else "timestamp in the interactions"
            raise UserError(f"split.by={self.by} needs a {column}, and there is none. Add it, or use split.by=random.")
        return time_N


@dataclass(frozen=True)
class Random(_Checked):
    """A random share of the interactions is for test, another for validation.

    A user is asked once, at the moment of the first row to be found, and may have several. Later rows may be trained
    on: the share says how well held-out choices are filled in, not how well the future is foretold.

    Args:
        val_share: share for validation.
        test_share: share for test.
        of: ``user``: the shares of each user's rows (half a row rounds up, one row at least stays for training);
            ``all``: those of the whole log.
        history: ``past``: rows up to the moment of asking; ``all``: all others of the user, younger ones too.
        seed: another seed, other rows. The order of the rows in the file does not matter.
    """

    val_share: OpenShare = 0.1
    test_share: OpenShare = 0.1
    of: Literal["user", "all"] = "user"
    history: History = "past"
    seed: Seed = 0

    def __call__(self, catalogue: Catalogue) -> Split:
        """Roles of the rows of ``catalogue.log``."""
        log = catalogue.log
        # Users are numbered as the file names them: their ids, not their numbers, order the draws.
        id_rank = np.argsort(np.argsort(np.asarray(catalogue.user_ids)))
        canonical = np.lexsort((log.weight, log.time, log.item, id_rank[log.user]))
        draw = np.empty(len(log))
        draw[canonical] = np.random.default_rng(self.seed).random(len(log))
        group = log.user if self.of == "user" else np.zeros_like(log.user)
        size = np.bincount(group)
        order = np.lexsort((draw, group))
        place = np.empty(len(log), np.int64)
        place[order] = np.arange(len(log)) - (np.cumsum(size) - size)[group[order]]
        test = np.minimum((size * self.test_share + 0.5).astype(int), size - 1)
        val = np.minimum((size * self.val_share + 0.5).astype(int), size - 1 - test)
        role = np.where(place < test[group], TEST, np.where(place < (test + val)[group], VAL, TRAIN)).astype(np.int8)
        settings = {"val_share": self.val_share, "test_share": self.test_share, "of": self.of, "seed": self.seed}
        return Split(role, {"split": "random", **settings, **_history(self.history)}, history=self.history)


@dataclass(frozen=True)
class Given(_Checked):
    """The roles that come with the log: a column ``split`` of the interactions, or the file that a row stands in.

    Args:
        history: ``past``: rows up to the first that is to be found; ``all``: all rows of earlier roles.
    """

    history: History = "past"

    def __call__(self, catalogue: Catalogue) -> Split:
        """Roles of the rows of ``catalogue.log``.

        Raises:
            UserError: the log brings no roles, or lacks one.
        """
        role = catalogue.log.given_role
        missing = list(ROLES) if role is None else [name for name, one in ROLES.items() if not (role == one).any()]
        if role is None or missing:
            raise UserError(
                f"split=given: no interaction is marked {' or '.join(missing)}. The log must bring rows of all three "
                "roles, in a column split (train, val, test) or in files of their own; mark some, or give another "
                "split."
            )
        time = catalogue.log.time
        younger = int((time[role == TRAIN] > time[role == TEST].min()).sum())
        leaks = f"{younger} training rows are younger than the oldest test row" if younger else "nothing"
        return Split(role, {"split": "given", "history": self.history, "leaks": leaks}, history=self.history)


def _cuts(times: Array, val_share: float, test_share: float) -> tuple[float, float]:
    """The moments from which on the youngest shares of ``times`` are for validation and for test."""
    order = np.sort(times)
    places = (int(len(order) * (1 - share)) for share in (val_share + test_share, test_share))
    val_from, test_from = (float(order[min(len(order) - 1, place)]) for place in places)
    return val_from, test_from


def _role_at(times: Array, val_from: float, test_from: float) -> Array:
    return np.where(times < val_from, TRAIN, np.where(times < test_from, VAL, TEST)).astype(np.int8)


def _history(history: str) -> dict[str, str]:
    """What a split whose roles do not follow time tells of its histories and leaks."""
    newer = "training rows" if history == "past" else "training and history rows"
    return {"history": history, "leaks": f"the future: {newer} may be younger than what is to be found"}
