"""The exact ranker: the first k of the catalogue, or the ranks of given items, in memory of one chunk of users.

Ties stand in the order of item index, lowest first, here and wherever else avrec ranks exactly.
"""

from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from avrec.batch import Array
from avrec.errors import UserError
from avrec.ranking_task import Ragged, RankingTask

_BLOCK = 256


class Scorer(Protocol):
    """Anything that can score the catalogue for evaluated users: a model, a baseline, an oracle."""

    def __call__(self, rows: Array) -> torch.Tensor:
        """Scores of all N items, higher is better, for the evaluated users with these row numbers.

        Args:
            rows: row numbers into the task's evaluated users, int64, (B,).

        Returns:
            (B, N) on any device, fresh: the caller may overwrite it. A user's scores must not depend on which
            other rows are asked for.
        """


class EmbeddingScorer:
    """Score = query . item, of embeddings computed ahead: one per evaluated user and catalogue item, on one device."""

    def __init__(self, query_ED: torch.Tensor, item_ND: torch.Tensor) -> None:
        if query_ED.ndim != 2 or item_ND.ndim != 2 or query_ED.shape[1] != item_ND.shape[1]:
            raise UserError(
                f"queries have shape {tuple(query_ED.shape)} and items {tuple(item_ND.shape)}; "
                "they must be (users, D) and (items, D) with the same D."
            )
        self.query_ED = query_ED.detach()
        self.item_ND = item_ND.detach()

    def __call__(self, rows: Array) -> torch.Tensor:
        """The products of these users' queries with every item."""
        # The rounding of a matrix product may depend on its shape. Every score is therefore computed in the same
        # block of users whichever rows are asked for, so that no last digit (and no tie) hangs on the chunk size.
        blocks = np.unique(rows // _BLOCK)
        scores_BN = self.query_ED.new_empty(len(rows), len(self.item_ND))
        for block in blocks.tolist():
            query_BD = self.query_ED[block * _BLOCK : (block + 1) * _BLOCK]
            places = np.flatnonzero(rows // _BLOCK == block)
            wanted = rows[places] - block * _BLOCK
            first = int(places[0])
            whole = np.array_equal(wanted, np.arange(len(query_BD))) and places[-1] - first == len(places) - 1
            if whole:
                torch.mm(query_BD, self.item_ND.T, out=scores_BN[first : first + len(places)])
            else:
                scores_BN[places] = (query_BD @ self.item_ND.T)[wanted]
        return scores_BN


def top_k(
    scorer: Scorer, task: RankingTask, k: int, chunk: int | None = None, candidates_N: Array | None = None
) -> Array:
    """The k best items of every evaluated user, best first; ties stand in the order of item index, lowest first.

    Exact: equal scores at the k-th place are decided by item index too, which ``torch.topk`` alone leaves open.
    Memory is O(chunk x N); the result does not depend on ``chunk``. Where torch.distributed is initialised, every
    process must call this with the same scorer and task: each ranks every n-th chunk, and all get the whole result.

    Args:
        scorer: gives the scores of the users asked for.
        task: whom to rank for; its seen items are left out where it has the seen filter.
        k: places, at least 1.
        chunk: users scored at a time (a multiple of 256 suits ``EmbeddingScorer``); by default 512, or 256 for more
            than half a million items.
        candidates_N: True where the item may be ranked; by default ``task.candidates_N``.

    Returns:
        Item indices, int64, (E, k); -1 where a user has fewer than k candidates.

    Raises:
        UserError: k or chunk below 1, shapes that do not fit the task, or a candidate's score is NaN.
    """
    candidates_N = task.candidates_N if candidates_N is None else np.asarray(candidates_N, dtype=bool)
    if chunk is None:
        chunk = 512 if len(candidates_N) <= 2**19 else 256
    if k < 1 or chunk < 1:
        raise UserError(f"k is {k} and chunk is {chunk}; both must be at least 1.")
    if candidates_N.shape != task.candidates_N.shape:
        raise UserError(f"candidates have shape {candidates_N.shape}; the catalogue's is {task.candidates_N.shape}.")
    columns = _Columns(candidates_N)
    top_EK = np.full((len(task), k), -1, dtype=np.int64)
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with torch.inference_mode():
        for start in range(rank * chunk, len(task), processes * chunk):
            rows = np.arange(start, min(start + chunk, len(task)))
            scores_BN = _scores(scorer, rows, len(candidates_N))
            masked = columns.seen(task.seen, rows) if task.seen_filter else np.zeros(0, np.int64)
            scores_BN = columns.of(scores_BN)
            places_BK, values_BK = best_columns(scores_BN, k, masked)
            # A NaN stands first, so that the first place tells of any in the row.
            if values_BK[:, :1].isnan().any():
                _refuse_nan(scores_BN, rows, columns)
            top_EK[rows, : places_BK.shape[1]] = columns.items(places_BK.cpu().numpy())
    return top_EK if processes == 1 else _together(top_EK)


def best_columns(scores_BN: torch.Tensor, k: int, masked: Array | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k columns of each row, best first; of equal scores the lowest column first.

    Exact also where the k-th score is tied, which ``torch.topk`` leaves open.

    Args:
        scores_BN: contiguous; the scores of masked columns are overwritten.
        k: columns, at least 1.
        masked: columns that are left out, as positions in the flattened scores.

    Returns:
        Columns, int64, and their scores, (B, K), K the smaller of k and N; -1 and minus infinity where a row has fewer
        than K columns. A row with NaN begins with it.
    """
    masked = np.zeros(0, np.int64) if masked is None else masked
    places = min(k, scores_BN.shape[1])
    if places == 0:
        return torch.zeros(len(scores_BN), 0, dtype=torch.int64), scores_BN[:, :0]
    _fill(scores_BN, masked, -torch.inf)
    # One place more than wanted shows whether the k-th place is tied with one that was left out.
    values_BK, best_BK = scores_BN.topk(min(k + 1, scores_BN.shape[1]), dim=1)
    last_B = values_BK[:, places - 1]
    open_B = last_B == -torch.inf
    if values_BK.shape[1] > places:
        open_B |= last_B == values_BK[:, places]
    best_BK, values_BK = best_BK[:, :places], values_BK[:, :places]
    tied_B = open_B | (values_BK[:, 1:] == values_BK[:, :-1]).any(dim=1)
    if not tied_B.any():
        return best_BK, values_BK
    # Ties are rare among a model's scores, so that only the rows that have some are done again. Their scores stay.
    best_BK = best_BK.contiguous()
    best_BK[tied_B] = best_BK[tied_B].sort(dim=1).values
    if open_B.any():
        blocked_BN = torch.zeros_like(scores_BN, dtype=torch.bool)
        _fill(blocked_BN, masked, True)
        best_BK[open_B] = _settle(scores_BN[open_B], blocked_BN[open_B], last_B[open_B], places)
    best_BK[tied_B] = _by_score(scores_BN[tied_B], best_BK[tied_B])
    return best_BK, values_BK


def ranks(scorer: Scorer, task: RankingTask, chunk: int = 256) -> Array:
    """The rank, from 1, of every relevant item in its user's ranking, aligned with ``task.relevant.values``, int64."""
    found = [np.zeros(0, np.int64)]
    with torch.inference_mode():
        for start in range(0, len(task), chunk):
            rows = np.arange(start, min(start + chunk, len(task)))
            scores_BN = _scores(scorer, rows, len(task.candidates_N)).cpu().numpy()
            for row, scores_N in zip(rows.tolist(), scores_BN, strict=True):
                relevant = task.relevant[row]
                own_R = scores_N[relevant][:, None]
                open_N = np.array(task.candidates_N, dtype=bool)
                if task.seen_filter:
                    open_N[task.seen[row]] = False
                tied_RN = (scores_N == own_R) & (np.arange(len(scores_N)) < relevant[:, None])
                found.append((((scores_N > own_R) | tied_RN) & open_N).sum(axis=1) + 1)
    return np.concatenate(found)


def _together(top_EK: Array) -> Array:
    """All processes' rows: those of the others are -1, below any item."""
    device = torch.accelerator.current_accelerator() if dist.get_backend() == "nccl" else None
    every_EK = torch.from_numpy(top_EK).to(device or "cpu")
    dist.all_reduce(every_EK, dist.ReduceOp.MAX)
    return every_EK.cpu().numpy()


def find_hits(top_EK: Array, relevant: Ragged, num_items: int) -> Array:
    """True where the ranked item (-1: none) is one of the user's distinct relevant items, bool, (E, K)."""
    if len(relevant.values) == 0:
        return np.zeros(top_EK.shape, dtype=bool)
    users = relevant.rows()
    keys = np.sort(users * num_items + relevant.values)
    wanted_EK = np.arange(len(top_EK))[:, None] * num_items + top_EK
    places_EK = np.searchsorted(keys, wanted_EK).clip(max=len(keys) - 1)
    # -1 would otherwise be read as the last item of the user before.
    return (keys[places_EK] == wanted_EK) & (top_EK >= 0)


class _Columns:
    """The candidates as columns of the score matrix: all of them, or a selection in the order of item index."""

    def __init__(self, candidates_N: Array) -> None:
        self.index = np.flatnonzero(candidates_N)
        self.everything = len(self.index) == len(candidates_N)
        self.place_N = np.where(candidates_N, np.cumsum(candidates_N) - 1, -1)

    def of(self, scores_BN: torch.Tensor) -> torch.Tensor:
        if self.everything:
            return scores_BN.contiguous()
        return scores_BN[:, torch.from_numpy(self.index).to(scores_BN.device)]

    def items(self, places_BK: Array) -> Array:
        if self.everything:
            return places_BK
        # One more entry, so that place -1 (none) reads as item -1.
        return np.append(self.index, -1)[places_BK]

    def seen(self, seen: Ragged, rows: Array) -> Array:
        """The seen items of these consecutive users as positions in the flattened (B, columns) scores."""
        starts = seen.starts[rows[0] : rows[-1] + 2]
        places = self.place_N[seen.values[starts[0] : starts[-1]]]
        flat = np.repeat(np.arange(len(rows)) * len(self.index), np.diff(starts)) + places
        return flat if self.everything else flat[places >= 0]


def _scores(scorer: Scorer, rows: Array, num_items: int) -> torch.Tensor:
    scores_BN = scorer(rows)
    if tuple(scores_BN.shape) != (len(rows), num_items):
        raise UserError(
            f"the scorer gave scores of shape {tuple(scores_BN.shape)} for {len(rows)} users; "
            f"it must be ({len(rows)}, {num_items}): one score per user and item of the catalogue."
        )
    return scores_BN if scores_BN.is_floating_point() else scores_BN.double()


def _fill(values_BN: torch.Tensor, flat: Array, value: float) -> None:
    """Overwrite these positions of the flattened, contiguous values."""
    if values_BN.device.type == "cpu" and values_BN.dtype in (torch.float32, torch.float64, torch.bool):
        # numpy writes scattered values several times faster than torch, which starts its threads for them.
        values_BN.numpy().reshape(-1)[flat] = value
    else:
        values_BN.view(-1).index_fill_(0, torch.from_numpy(flat).to(values_BN.device), value)


def _settle(scores_RN: torch.Tensor, blocked_RN: torch.Tensor, last_R: torch.Tensor, places: int) -> torch.Tensor:
    """The best columns of rows tied at the last place, in the order of column: the lowest of the tied ones."""
    above_RN = scores_RN > last_R[:, None]
    tied_RN = (scores_RN == last_R[:, None]) & ~blocked_RN
    free_R = places - above_RN.sum(dim=1)
    chosen_RN = above_RN | (tied_RN & (tied_RN.cumsum(dim=1) <= free_R[:, None]))
    row, column = chosen_RN.nonzero(as_tuple=True)
    best_RK = torch.full((len(scores_RN), places), -1, dtype=torch.int64, device=scores_RN.device)
    best_RK[row, chosen_RN.cumsum(dim=1)[row, column] - 1] = column
    return best_RK


def _by_score(scores_BN: torch.Tensor, best_BK: torch.Tensor) -> torch.Tensor:
    """Columns given in their order (-1 last), by falling score; a stable sort keeps tied ones in their order."""
    values_BK = scores_BN.gather(1, best_BK.clamp(min=0)).masked_fill(best_BK < 0, -torch.inf)
    return best_BK.gather(1, values_BK.sort(dim=1, descending=True, stable=True).indices)


def _refuse_nan(scores_BN: torch.Tensor, rows: Array, columns: _Columns) -> None:
    row, column = scores_BN.isnan().nonzero(as_tuple=True)
    item = int(columns.index[int(column[0])])
    raise UserError(
        f"the score of item {item} for evaluated user {int(rows[int(row[0])])} is NaN, one of {len(row)} among "
        f"the users {rows[0]} to {rows[-1]}; a ranking needs numbers (infinities are allowed). "
        "Look for NaN in the embeddings of that user and item."
    )
