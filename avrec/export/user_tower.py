"""User towers as files: what it takes to make a query of a person's history, and nothing that names a person.

A folder holds ``config.json``, ``model.safetensors`` and a model card, README.md. Vectors learned of single users are
left out, so that histories serve everybody, or are exported under hashed ids in ``user_ids.json``. Loading reads JSON
and safetensors only: nothing is unpickled.
"""

import hashlib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avrec.batch import Array, UserBatch
from avrec.errors import UserError
from avrec.export.card import write_card
from avrec.export.classes import builder, name_of, options_of
from avrec.export.folder import FORMAT, Folder, export_folder, write_weights
from avrec.io import write_json
from avrec.towers.score import Score
from avrec.towers.user_tower import UserTowerBase

TABLE = "user_table.weight"


def export_user_tower(
    tower: UserTowerBase,
    score: Score,
    folder: str | Path,
    dim: int,
    history_length: int,
    user_columns: Sequence[Mapping[str, Any]] = (),
    users: Mapping[str, int] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Write a user tower as files.

    The folder appears complete or not at all; an exported tower that is there is replaced.

    Args:
        tower: the trained tower.
        score: its temperature is part of a query, its bias of a score.
        folder: where to.
        dim: D.
        history_length: a query reads the youngest so many items.
        user_columns: how the catalogue coded them.
        users: row of the user table by user id, for vectors under hashed ids; None: they are left out.
        finish: writes more into the folder before it appears; None: a card that tells nothing of the run.

    Raises:
        UserError: nothing is left of the tower without its users.
    """
    if tower.NEEDS_USERS and users is None:
        raise UserError(
            f"A {type(tower).__name__} is a vector per user: without them nothing is left to export. Add users=hashed."
        )
    folder = Path(folder)
    state = dict(tower.state_dict())
    with export_folder(folder) as beside:
        keys: list[str] = []
        if users is not None and TABLE in state:
            salt = secrets.token_hex(16)
            # Sorted by key, so that a row's place tells nothing either.
            rows = {_key(salt, user_id): row for user_id, row in users.items()}
            keys = sorted(rows)
            state[TABLE] = state[TABLE][[0, *(rows[key] for key in keys)]]
            write_json(beside / "user_ids.json", {"salt": salt, "keys": keys}, readable=True)
        elif TABLE in state:
            state[TABLE] = state[TABLE][:1]
        config = {
            "format": FORMAT,
            "model_type": "avrec_user_tower",
            "dim": dim,
            "history_length": history_length,
            "temperature": score.temperature.item(),
            "bias": score.bias.item(),
            "tower": {"name": name_of(type(tower)), **options_of(tower), "num_users": len(keys)},
            "user_columns": list(user_columns),
        }
        write_json(beside / "config.json", config, readable=True)
        write_weights(beside, state)
        (finish or write_card)(beside)
    return folder


def _key(salt: str, user_id: str) -> str:
    return hashlib.blake2b(user_id.encode(), key=salt.encode(), digest_size=16).hexdigest()


class UserGraph(nn.Module):
    """A user tower over histories of item vectors, temperature included.

    Args:
        tower: the user tower.
        temperature: queries are divided by it.
        dim: D.
        history_length: L of a tower that takes histories of one length only.
    """

    output = "query"

    def __init__(self, tower: UserTowerBase, temperature: float, dim: int, history_length: int) -> None:
        super().__init__()
        self.tower = tower.eval()
        self.temperature = temperature
        self.dim = dim
        self.length = history_length if tower.FIXED_LENGTH else None
        self.num_users = 0 if tower.user_table is None else tower.user_table.num_embeddings - 1
        self.sizes: list[int] = [] if tower.columns is None else tower.columns.category_sizes
        self.numbers: int = 0 if tower.columns is None else tower.columns.numbers
        more = {"user": self.num_users, "categories": self.sizes, "numbers": self.numbers}
        self.reads = ["history", "history_present", "history_time", *(name for name, read in more.items() if read)]
        self.free = {
            name: (0, 1) if name.startswith("history") and self.length is None else (0,) for name in self.reads
        }

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Queries (B, D).

        Args:
            inputs: ``history`` (B, L, D), ``history_present`` (B, L), ``history_time`` (B, L); besides, where the
                tower reads them, ``user`` (B,), ``categories`` (B, C) and ``numbers`` (B, R).
        """
        history_BLD = inputs["history"]
        B, L, _ = history_BLD.shape
        blank = history_BLD.new_zeros(B, 0)
        users = UserBatch(
            user_B=inputs["user"] if self.num_users else history_BLD.new_zeros(B, dtype=torch.long),
            categories_BC=inputs["categories"] if self.sizes else blank,
            numbers_BR=inputs["numbers"] if self.numbers else blank,
            history_BL=torch.arange(B * L, device=history_BLD.device).view(B, L),
            history_present_BL=inputs["history_present"],
            history_time_BL=inputs["history_time"],
        )
        return self.tower.last(users, history_BLD.flatten(0, 1)) / self.temperature

    def reference(self, inputs: dict[str, Tensor]) -> Tensor:
        """The same outside of any program."""
        return self(inputs)

    def random(self, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Inputs of ``count`` users; gaps in time are those where a bucket ends, where rounding would show."""
        L = self.length or int(rng.integers(2, 9))
        present_BL = np.arange(L) < rng.integers(0, L + 1, (count, 1))
        time_BL = np.cumsum(2.0 ** rng.integers(0, 31, (count, L)) - 1, axis=1) * present_BL
        arrays = {
            "history": rng.standard_normal((count, L, self.dim), np.float32),
            "history_present": present_BL,
            "history_time": time_BL,
            "user": rng.integers(self.num_users + 1, size=count),
            "categories": rng.integers([*self.sizes], size=(count, len(self.sizes))),
            "numbers": rng.standard_normal((count, self.numbers), np.float32),
        }
        return {name: torch.from_numpy(arrays[name]) for name in self.reads}


class ExportedUserTower:
    """A user tower with all that it takes to make queries.

    Attributes:
        graph: the network, in evaluation mode.
        config: as in config.json; its ``bias`` belongs to the score: ``query · item + bias``.
        dim: D.
        items: item id → vector; empty where no table of items was given.
    """

    def __init__(
        self, graph: UserGraph, config: Mapping[str, Any], users: Mapping[str, Any], items: Mapping[str, Array]
    ) -> None:
        self.graph = graph
        self.config = config
        self.dim: int = config["dim"]
        self.items = items
        self._columns = config["user_columns"] if graph.tower.columns is not None else []
        self._salt = users.get("salt", "")
        self._row = {key: row for row, key in enumerate(users.get("keys", ()), start=1)}

    def query(
        self,
        histories: Sequence[Any],
        times: Sequence[Sequence[float]] | None = None,
        user_columns: Sequence[Mapping[str, Any]] | None = None,
        user_ids: Sequence[str] | None = None,
    ) -> Array:
        """Queries after whole histories.

        Args:
            histories: per user the items, oldest first: vectors (n, D), or ids of the items table; n may be 0.
            times: per user when each was, as in the log of interactions; None: all at one moment.
            user_columns: per user values by column; what is not given counts as missing.
            user_ids: per user the id, where vectors of users were exported; others count as unknown.

        Returns:
            float32 (B, D): their dot product with an item embedding is the score, up to the bias.

        Raises:
            UserError: lengths that do not match, an item or a column that is not known, or vectors of another width.
        """
        return self.run(self.inputs(histories, times, user_columns, user_ids))

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Array]) -> Array:
        """Queries (B, D) of ``inputs``."""
        return self.graph({name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()

    def rows(self, user_ids: Sequence[str]) -> Array:
        """Rows of the exported user table, int64 (B,); 0 where a user is unknown."""
        return np.array([self._row.get(_key(self._salt, str(user_id)), 0) for user_id in user_ids], np.int64)

    def inputs(
        self,
        histories: Sequence[Any],
        times: Sequence[Sequence[float]] | None = None,
        user_columns: Sequence[Mapping[str, Any]] | None = None,
        user_ids: Sequence[str] | None = None,
    ) -> dict[str, Array]:
        """What ``onnx/model.onnx`` and ``model.pt2`` take, by name; takes and refuses what ``query`` does."""
        B, longest = len(histories), self.config["history_length"]
        for name, given in {"times": times, "user_columns": user_columns, "user_ids": user_ids}.items():
            if given is not None and len(given) != B:
                raise UserError(f"query was given {B} histories and {len(given)} {name}. Use one for each.")
        vectors = [self._vectors(row, history) for row, history in enumerate(histories)]
        L = self.graph.length or max([1, *(min(longest, len(items)) for items in vectors)])
        history_BLD, present_BL = np.zeros((B, L, self.dim), np.float32), np.zeros((B, L), bool)
        time_BL = np.zeros((B, L))
        for row, items in enumerate(vectors):
            place = slice(0, len(items[-longest:]))
            history_BLD[row, place], present_BL[row, place] = items[-longest:], True
            if times is not None:
                if len(times[row]) != len(items):
                    raise UserError(
                        f"History {row} has {len(items)} items and {len(times[row])} times. Use one for each."
                    )
                time_BL[row, place] = np.asarray(times[row], np.float64)[-longest:]
        coded = [self._coded(row) for row in ([{}] * B if user_columns is None else user_columns)]
        arrays = {
            "history": history_BLD,
            "history_present": present_BL,
            "history_time": time_BL,
            "user": self.rows([""] * B if user_ids is None else user_ids),
            "categories": np.array([codes for codes, _ in coded], np.int64).reshape(B, len(self.graph.sizes)),
            "numbers": np.array([numbers for _, numbers in coded], np.float32).reshape(B, self.graph.numbers),
        }
        return {name: arrays[name] for name in self.graph.reads}

    def _vectors(self, row: int, history: Any) -> Array:
        if len(history) == 0:
            return np.zeros((0, self.dim), np.float32)
        if np.ndim(history[0]) == 0:
            unknown = [item_id for item_id in map(str, history) if item_id not in self.items]
            if unknown:
                advice = "Pass its vector" if self.items else "Load the tower with items=RUN/embeddings/items.parquet"
                raise UserError(f"History {row} has item {unknown[0]!r}, which is in no items table. {advice}.")
            history = [self.items[str(item_id)] for item_id in history]
        vectors = np.asarray(history, np.float32)
        if vectors.shape[1:] != (self.dim,):
            raise UserError(f"History {row} has shape {vectors.shape}. Use vectors of {self.dim} numbers, or item ids.")
        if not np.isfinite(vectors).all():
            raise UserError(f"History {row} has a number that is not finite. Leave that item out.")
        return vectors

    def _coded(self, values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        columns = self._columns
        unknown = set(values) - {column["name"] for column in columns}
        if unknown:
            names = ", ".join(column["name"] for column in columns) or "none"
            raise UserError(f"There is no user column {sorted(unknown)[0]!r}. This tower was trained with: {names}.")
        codes, numbers = [], []
        for column in columns:
            value = values.get(column["name"])
            if "values" in column:
                text = str(value).lower() if isinstance(value, bool) else str(value)
                codes.append(column["values"].index(text) + 1 if text in column["values"] else 0)
            else:
                numbers.append(_standardised(value, column))
        return codes, numbers

    def __repr__(self) -> str:
        names = [column["name"] for column in self._columns]
        return f"{type(self).__name__}(dim={self.dim}, users={len(self._row)}, user_columns={names})"


def _standardised(value: Any, column: Mapping[str, Any]) -> float:
    """0, the mean, where it is missing: None, or the NaN of a data frame."""
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{column['name']}={value!r} is no number, as this user column was. Use one.") from error
    if math.isinf(number):
        raise UserError(f"{column['name']}={value!r} is not finite. Use a number, or None where it is missing.")
    return 0.0 if math.isnan(number) or not column["spread"] else (number - column["mean"]) / column["spread"]


def load_user_tower(
    folder: str | Path, items: str | Path | None = None, classes: Sequence[type[nn.Module]] = ()
) -> ExportedUserTower:
    """Load an exported user tower.

    Args:
        folder: what ``export_user_tower`` wrote.
        items: a Parquet file of ``item_id`` and ``vector``, such as RUN/embeddings/items.parquet, for histories that
            are lists of ids.
        classes: user towers of your own, and parts of them; those that the folder does not name are left aside.

    Raises:
        UserError: the folder is not an exported user tower, is damaged, of another format, or names a class that is
            not given.
    """
    files, build = Folder(folder, "user_tower"), builder(folder, classes, "load_user_tower")
    config = files.config()
    with files.reading():
        given = dict(config["tower"])
        name, num_users = given.pop("name"), given.pop("num_users", 0)
        tower = build(name, given, UserTowerBase, num_users=num_users, dim=config["dim"])
        files.fill(tower)
        has_users = (files.path / "user_ids.json").is_file()
        graph = UserGraph(tower, config["temperature"], config["dim"], config["history_length"])
        users = files.json("user_ids.json") if has_users else {}
        if has_users and len(users["keys"]) != num_users:
            raise ValueError("user_ids.json is of another tower")
        return ExportedUserTower(graph, config, users, {} if items is None else _vectors_of(Path(items)))


def _vectors_of(path: Path) -> dict[str, Array]:
    import polars as pl

    try:
        table = pl.read_parquet(path, glob=False, columns=["item_id", "vector"])
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"items={path} is no table of item_id and vector: {reason}. Use RUN/embeddings/items.parquet."
        ) from error
    return dict(zip(table["item_id"].to_list(), table["vector"].to_numpy(), strict=True))
