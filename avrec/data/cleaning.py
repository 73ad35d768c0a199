"""Cleaning: which rows of a log are kept, step by step, each with its count before and after."""

import logging
from dataclasses import dataclass

import polars as pl

from avrec.errors import UserError

logger = logging.getLogger(__name__)

SAME = ("keep", "first", "last", "sum")


@dataclass(frozen=True)
class Step:
    """What one step left."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Cleaning:
    """The steps, in this order; each is logged with the rows before and after it.

    Args:
        min_feedback: rows whose feedback (a rating, say) is below it are dropped; None: none are.
        duplicates: rows with the same user, item and time: the ``first`` or the ``last`` in the file stays, their
            feedback is added up (``sum``), or all are kept (``keep``).
        repeats: rows with the same user and item at different times: ``keep`` them (songs), or one, as above (films).
        min_per_user: k-core: users with fewer interactions are dropped, and items likewise, until nothing changes.
        min_per_item: the same for items.

    Raises:
        UserError: a policy that is not known, or a negative number.
    """

    min_feedback: float | None = None
    duplicates: str = "last"
    repeats: str = "keep"
    min_per_user: int = 0
    min_per_item: int = 0

    def __post_init__(self) -> None:
        for name in ("duplicates", "repeats"):
            if getattr(self, name) not in SAME:
                raise UserError(f"data.clean.{name} must be one of {', '.join(SAME)}; got {getattr(self, name)}.")
        for name in ("min_per_user", "min_per_item"):
            if getattr(self, name) < 0:
                raise UserError(f"data.clean.{name} must be at least 0; got {getattr(self, name)}.")

    def __call__(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, list[Step]]:
        """The rows (user, item, time, feedback) that stay, in their order, and what each step did.

        Raises:
            UserError: nothing is left.
        """
        steps: list[Step] = []

        def step(name: str, left: pl.DataFrame) -> pl.DataFrame:
            if len(left) < len(rows):
                steps.append(Step(name, len(rows), len(left)))
                logger.info("%s: %s rows, %s stay", name, f"{len(rows):,}", f"{len(left):,}")
            return left

        if (least := self.min_feedback) is not None:
            rows = step(f"feedback below {least:g}", rows.filter(pl.col("feedback") >= least))
        rows = step("duplicates (same user, item and time)", _one_of(rows, ["user", "item", "time"], self.duplicates))
        rows = step("repeats (same user and item)", _one_of(rows, ["user", "item"], self.repeats))
        rows = step(f"{self.min_per_user}/{self.min_per_item}-core", self._core(rows))
        if rows.is_empty():
            done = "; ".join(f"{s.name}: {s.before} rows, {s.after} stay" for s in steps)
            raise UserError(f"data.clean leaves no interaction ({done}). Lower its limits.")
        return rows, steps

    def _core(self, rows: pl.DataFrame) -> pl.DataFrame:
        while True:
            before = len(rows)
            for key, least in (("user", self.min_per_user), ("item", self.min_per_item)):
                if least > 1:
                    rows = rows.filter(pl.len().over(key) >= least)
            if len(rows) == before:
                return rows


def _one_of(rows: pl.DataFrame, key: list[str], policy: str) -> pl.DataFrame:
    if policy == "keep" or not rows.select(key).is_duplicated().any():
        return rows
    if policy == "sum":
        # The first row's place and time, with the feedback of all.
        rows = rows.with_columns(feedback=pl.col("feedback").sum().over(key))
        policy = "first"
    # Of repeats, the first and last in time; of duplicates, in the file.
    order = rows.with_row_index("row").sort("time", maintain_order=True)
    kept = order.unique(key, keep="first" if policy == "first" else "last", maintain_order=True)
    return kept.sort("row").drop("row")
