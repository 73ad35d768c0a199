"""The items whose embeddings have the largest product with a query: exactly, or by an inverted file above a size."""

import json
import random
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from avrec.batch import Array
from avrec.errors import UserError
from avrec.evaluation.ranking import best_columns
from avrec.io import write_json
from avrec.retrieval.ivf import MOST_FETCHED, PROBES, RECALL_AT, InvertedLists

FORMAT = 2
APPROXIMATE_ABOVE = 500_000
"""Items from which on exact search takes tens of milliseconds a query on one core."""

LEAST_RECALL = 0.95
SAMPLED_QUERIES = 200
SPARE = 1.1
"""Candidates per item wanted: their order is of rounded vectors, and their scores are computed anew."""

ATTEMPTS = 5
"""Times that an index is read anew where it is replaced meanwhile."""

BLOCK_SCORES = 2**26
"""Scores computed at a time, 256 MiB."""


class Found(NamedTuple):
    """Items found for B queries, best first.

    Attributes:
        ids: of each query's items; fewer than k where filters leave fewer.
        score_BK: query · item, float32, K the smaller of k and the number of items; minus infinity where there is none.
    """

    ids: list[list[str]]
    score_BK: Array


class Index:
    """Embeddings under string ids, searched by product.

    Exact up to ``approximate_above`` items; ties stand in the order in which items were given. Above, an inverted file
    (faiss; Jégou et al. 2011, section 4) proposes candidates: items lie in lists around 4 √N centres, rounded to 8 bits
    a number, and only the lists nearest to a query are looked through. The candidates' scores are exact, and how many
    of the exact first items are found is measured on a sample and printed when it is built.

    Args:
        ids: of the items, each once.
        vector_ND: their embeddings, copied where they are not float32 or read-only.
        approximate_above: number of items; None: always exact.
        query_SD: queries that the recall is measured with; by default, items drawn at random.

    Attributes:
        ids: of the items, in order.
        vector_ND: their embeddings, float32.
        recall: of approximate search, from 0 to 1, as measured when it was built; None where search is exact.

    Raises:
        UserError: an id twice, shapes that do not fit, a number that is not finite, or faiss is missing.
    """

    def __init__(
        self,
        ids: Sequence[str],
        vector_ND: Array,
        approximate_above: int | None = APPROXIMATE_ABOVE,
        query_SD: Array | None = None,
    ) -> None:
        self.ids: list[str] = []
        self.vector_ND: Array = np.zeros((0, (np.shape(vector_ND) or (0,))[-1]), np.float32)
        self.recall: float | None = None
        # Names of rows, rising, that stay when others are removed: the lists need no rebuilding.
        self._key_N: Array = np.zeros(0, np.int64)
        self._lists: InvertedLists | None = None
        self._mapped = False
        self._append(ids, vector_ND)
        self._row = {item_id: row for row, item_id in enumerate(self.ids)}
        if approximate_above is not None and len(self) > approximate_above:
            self._build(query_SD)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._row

    def search(
        self,
        query_BD: Array,
        k: int = 10,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] = (),
        seen: Iterable[Iterable[str]] | None = None,
    ) -> Found:
        """The k items with the largest products. Ids in filters that the index does not have are passed over.

        Args:
            query_BD: queries, (B, D).
            k: items per query, at least 1.
            allow: only these; searched exactly, whatever the size.
            deny: none of these.
            seen: per query, none of these.

        Raises:
            UserError: k below 1, queries of another shape or not finite, a filter of something else than ids, or not
                one list of seen items per query.
        """
        query_BD = _numbers(query_BD, "Queries")
        if (
            not isinstance(k, int | np.integer)
            or isinstance(k, bool)
            or k < 1
            or query_BD.ndim != 2
            or query_BD.shape[1] != self.vector_ND.shape[1]
        ):
            raise UserError(
                f"k={k!r} and queries of shape {query_BD.shape} were given. k must be a whole number from 1, "
                f"and queries (B, {self.vector_ND.shape[1]})."
            )
        _check_finite(query_BD, "a query")
        try:
            rows, denied = None if allow is None else self._rows(allow), self._rows(deny)
            hidden = [denied] * len(query_BD) if seen is None else [np.union1d(denied, self._rows(own)) for own in seen]
        except TypeError as error:
            raise UserError(f"A filter holds something else than ids: {error}. Use lists of ids: [ID].") from error
        if len(hidden) != len(query_BD):
            raise UserError(f"{len(hidden)} lists of seen items for {len(query_BD)} queries. Use one list per query.")
        fetched = k + max((len(rows) for rows in hidden), default=0)
        # Lists know no filters: what they may take away is fetched on top, as long as that is little.
        exact = allow is not None or self._lists is None or fetched > min(MOST_FETCHED, len(self) // 8)
        row_BK, score_BK = self._search(query_BD, min(k, len(self)), hidden, None if exact else fetched, rows)
        found = zip(row_BK.tolist(), (score_BK > -np.inf).sum(axis=1).tolist(), strict=True)
        return Found([[self.ids[row] for row in rows[:count]] for rows, count in found], score_BK)

    def add(self, ids: Sequence[str], vector_ND: Array) -> None:
        """Append items.

        Raises:
            UserError: an id is there already; see also the constructor.
        """
        self._check_writable()
        first = len(self)
        self._append(ids, vector_ND)
        self._row.update((item_id, row) for row, item_id in enumerate(self.ids[first:], first))
        if self._lists is not None:
            self._lists.add(self.vector_ND[first:], self._key_N[first:])

    def remove(self, ids: Iterable[str]) -> None:
        """Take items out; the others keep their order.

        Raises:
            UserError: an id is not there.
        """
        self._check_writable()
        ids = list(ids)
        unknown = [item_id for item_id in ids if item_id not in self._row]
        if unknown:
            raise UserError(
                f"{len(unknown)} ids are not in the index, the first is {unknown[0]!r}. Nothing is removed."
            )
        gone = self._rows(ids)
        if self._lists is not None:
            self._lists.remove(self._key_N[gone])
        stay = np.delete(np.arange(len(self)), gone)
        self.ids = [self.ids[row] for row in stay.tolist()]
        self.vector_ND, self._key_N = self.vector_ND[stay], self._key_N[stay]
        self._row = {item_id: row for row, item_id in enumerate(self.ids)}

    # ---- files

    def save(self, folder: str | Path) -> Path:
        """Write the index, or replace the one that is there: whoever loads meanwhile gets one of the two.

        Raises:
            UserError: the folder holds something else, or cannot be written.
        """
        folder = Path(folder)
        if folder.is_symlink():
            folder = folder.resolve()
        if folder.exists() and not (folder / "index.json").is_file() and not _is_empty(folder):
            raise UserError(f"{folder} is there and is no index. Use another folder, or remove it.")
        # index.json comes last, and names the files that belong to it.
        before, stamp = _stamp_of(folder), uuid.uuid4().hex[:12]
        probes = self._lists and self._lists.probes
        about = {"format": FORMAT, "recall": self.recall, "probes": probes, "stamp": stamp, "ids": self.ids}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"vectors-{stamp}.npy", self.vector_ND)
            if self._lists is not None:
                self._lists.write(folder / f"lists-{stamp}.faiss")
            write_json(folder / "index.json", {**about, "keys": self._key_N.tolist()})
        except OSError as error:
            _remove(folder, stamp)
            raise UserError(f"{folder} cannot be written: {error.strerror}. Use another folder.") from error
        _remove(folder, before)
        return folder

    @classmethod
    def load(cls, folder: str | Path, mapped: bool = False) -> "Index":
        """Read what ``save`` wrote.

        Args:
            folder: its folder.
            mapped: leave vectors and lists on disk, as memory maps that processes share; nothing can be added or
                removed then.

        Raises:
            UserError: the folder is no index, is damaged, or of another version.
        """
        path = Path(folder)
        try:
            for attempt in range(ATTEMPTS):
                try:
                    return cls._loaded(path, json.loads((path / "index.json").read_text("utf-8")), mapped)
                except FileNotFoundError:  # replaced just now, perhaps
                    if attempt == ATTEMPTS - 1:
                        raise
                    time.sleep(random.uniform(0, 0.01))  # not in step with whoever saves again and again
            raise AssertionError
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder} is no index that can be read: {error}. Build it again.") from error

    @classmethod
    def _loaded(cls, path: Path, about: dict[str, Any], mapped: bool) -> "Index":
        stamp = about["stamp"] if about["format"] == FORMAT else None
        if stamp is None:
            raise ValueError("it is of another version")
        # "c": torch wants memory that it could write to; what is written stays in this process.
        vector_ND = np.load(path / f"vectors-{stamp}.npy", mmap_mode="c" if mapped else None, allow_pickle=False)
        ids, keys = about["ids"], np.asarray(about["keys"], np.int64)
        if vector_ND.ndim != 2 or not (mapped or np.isfinite(vector_ND).all()) or (np.diff(keys) <= 0).any():
            raise ValueError("its vectors or keys are damaged")
        index = cls([], vector_ND[:0])
        index.ids, index.vector_ND, index.recall = ids, vector_ND.view(np.ndarray), about["recall"]
        index._row = {item_id: row for row, item_id in enumerate(ids)}
        fits = isinstance(ids, list) and all(isinstance(item_id, str) for item_id in ids)
        if not fits or vector_ND.dtype != np.float32 or not len(index._row) == len(vector_ND) == len(keys) == len(ids):
            raise ValueError("its files are not of one index")
        index._key_N = keys
        if about["probes"]:
            index._lists = InvertedLists.read(path / f"lists-{stamp}.faiss", about["probes"], mapped)
            if index._lists.shape != vector_ND.shape:
                raise ValueError("its files are not of one index")
        index._mapped = mapped
        return index

    def _check_writable(self) -> None:
        if self._mapped:
            raise UserError("A memory-mapped index cannot be changed. Load it with mapped=False.")

    # ---- what is in it

    def _append(self, ids: Sequence[str], vector_ND: Array) -> None:
        ids, vector_ND = list(ids), _numbers(vector_ND, "Vectors")
        if vector_ND.shape != (len(ids), self.vector_ND.shape[1]):
            raise UserError(
                f"{len(ids)} ids and vectors of shape {vector_ND.shape} were given; "
                f"({len(ids)}, {self.vector_ND.shape[1]}) would fit."
            )
        known = set(self.ids)
        wrong = [i for i in ids if not isinstance(i, str) or i in known or known.add(i)]  # type: ignore[func-returns-value]
        if wrong:
            raise UserError(
                f"The id {wrong[0]!r} is no text, or stands twice. Ids are distinct strings; remove it first."
            )
        _check_finite(vector_ND, "an embedding")
        self.ids += ids
        self.vector_ND = np.concatenate([self.vector_ND, vector_ND]) if len(self.vector_ND) else vector_ND
        next_key = self._key_N[-1] + 1 if len(self._key_N) else 0
        self._key_N = np.concatenate([self._key_N, np.arange(len(ids)) + next_key])

    def _rows(self, ids: Iterable[str]) -> Array:
        """Distinct rows of the ids that are there, in order."""
        if isinstance(ids, str):
            raise UserError("A filter is one text, which would be read letter by letter. Use a list of ids: [ID].")
        return np.unique(np.asarray([self._row[i] for i in ids if i in self._row], np.int64))

    # ---- search in blocks of queries, exactly or (where a number is to be fetched) in the lists

    def _search(
        self, query_BD: Array, k: int, hidden: list[Array], fetched: int | None, rows: Array | None = None
    ) -> tuple[Array, Array]:
        row_BK = np.zeros((len(query_BD), k), np.int64)
        score_BK = np.full((len(query_BD), k), -np.inf, np.float32)
        vectors = self.vector_ND if rows is None else self.vector_ND[rows]
        each = len(vectors) if fetched is None else int(fetched * SPARE) * (vectors.shape[1] + 1)
        size = max(1, BLOCK_SCORES // max(1, each))
        for start in range(0, len(query_BD) if len(vectors) else 0, size):
            block = slice(start, start + size)
            if fetched is None:
                best_BK, value_BK = _search_all(query_BD[block], k, hidden[block], vectors, rows)
            else:
                best_BK, value_BK = self._search_lists(query_BD[block], k, hidden[block], fetched)
            row_BK[block, : best_BK.shape[1]], score_BK[block, : best_BK.shape[1]] = best_BK, value_BK
        return row_BK, score_BK

    def _search_lists(self, query_BD: Array, k: int, hidden: list[Array], fetched: int) -> tuple[Array, Array]:
        assert self._lists is not None
        keys_BF = self._lists.search(query_BD, int(fetched * SPARE), fetched)
        absent_BF = keys_BF < 0
        # Keys are rows until something is removed; a search among a million of them is slower than the lists.
        row_BF = keys_BF if self._key_N[-1] == len(self) - 1 else np.searchsorted(self._key_N, keys_BF)
        # In the order of items (those that are absent last), so that a stable sort leaves ties in it.
        row_BF = np.sort(np.where(absent_BF, len(self), row_BF), axis=1)
        vectors_BFD = self.vector_ND[np.minimum(row_BF, len(self) - 1)]
        score_BF = np.matmul(vectors_BFD, query_BD[:, :, None])[..., 0]
        score_BF[absent_BF] = -np.inf
        for b, own in enumerate(hidden):
            if len(own):
                score_BF[b, np.isin(row_BF[b], own)] = -np.inf
        best_BK = np.argsort(-score_BF, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(row_BF, best_BK, axis=1), np.take_along_axis(score_BF, best_BK, axis=1)

    def _build(self, query_SD: Array | None) -> None:
        self._lists = lists = InvertedLists.of(self.vector_ND, self._key_N)
        if query_SD is None:
            sample = np.random.default_rng(0).choice(len(self), min(SAMPLED_QUERIES, len(self)), replace=False)
            query_SD = self.vector_ND[sample]
        query_SD = np.ascontiguousarray(query_SD[:SAMPLED_QUERIES], np.float32)
        self.recall = self._calibrate(lists, query_SD, min(RECALL_AT, len(self)))
        if len(self) >= MOST_FETCHED:
            self._calibrate(lists, query_SD, MOST_FETCHED)
        print(
            f"approximate search of {len(self):,} items: recall@{min(RECALL_AT, len(self))} {self.recall:.3f} against "
            f"exact search ({len(query_SD)} queries, {min(lists.probes[0], lists.count)} of {lists.count} lists)"
        )

    def _calibrate(self, lists: InvertedLists, query_SD: Array, size: int) -> float:
        """Choose how many lists to look through for so many candidates.

        Returns:
            Their recall of the last of the exact ones: filters may take away those before.
        """
        none = [np.zeros(0, np.int64)] * len(query_SD)
        exact_SK, _ = self._search(query_SD, size, none, None)
        before = lists.probes
        for probes in PROBES:
            if before and probes < before[-1]:
                continue
            lists.probes = [*before, probes]
            found_SK, score_SK = self._search(query_SD, size, none, size)
            found = zip(exact_SK[:, -RECALL_AT:], found_SK, score_SK, strict=True)
            recall_S = [np.isin(wanted, rows[scores > -np.inf]).mean() for wanted, rows, scores in found]
            # Less its standard error, so that other queries find as much.
            if np.mean(recall_S) - np.std(recall_S) / len(recall_S) ** 0.5 >= LEAST_RECALL:
                break
        return float(np.mean(recall_S))


def _search_all(
    query_BD: Array, k: int, hidden: list[Array], vectors: Array, rows: Array | None
) -> tuple[Array, Array]:
    score_BN = torch.from_numpy(query_BD) @ torch.from_numpy(vectors).T
    for b, own in enumerate(hidden):
        if len(own):
            score_BN[b, own if rows is None else np.isin(rows, own)] = -torch.inf
    best_BK, value_BK = (found.numpy() for found in best_columns(score_BN, k))
    return (best_BK if rows is None else rows[best_BK]), value_BK


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _stamp_of(folder: Path) -> str:
    """What marks the files of the index that is there; "" where there is none that can be read."""
    try:
        return str(json.loads((folder / "index.json").read_text("utf-8"))["stamp"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _remove(folder: Path, stamp: str) -> None:
    """Remove the files of one index; others in the folder are not its."""
    for name in (f"vectors-{stamp}.npy", f"lists-{stamp}.faiss"):
        with suppress(OSError):  # it was never written
            (folder / name).unlink()


def _numbers(values: Any, what: str) -> Array:
    try:
        return np.require(values, np.float32, ["C", "W"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} are no array of numbers: {error}. Use a numpy array of float32.") from error


def _check_finite(values: Array, what: str) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"A number in {what} is not finite (row {int((~np.isfinite(values)).any(axis=1).argmax())}).")
