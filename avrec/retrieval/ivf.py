"""An inverted file of rounded vectors, by faiss: it proposes the items that may have the largest products."""

import math
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from avrec.batch import Array
from avrec.errors import UserError

RECALL_AT = 100
MOST_FETCHED = 1000
"""Candidates above which search is exact: most lists would have to be looked through."""

PROBES = tuple(round(8 * 1.1**step) for step in range(64))
"""How many lists may be looked through."""

TRAINED_ON = 40
"""Items per list that its centre is learned from; faiss asks for 39."""


class InvertedLists:
    """Items under integer keys, in lists around centres (Jégou et al. 2011, section 4), 8 bits a number.

    Args:
        lists: faiss's.
        probes: lists to look through for ``RECALL_AT`` candidates, and for ``MOST_FETCHED``.
        path: the file that they are mapped from.
    """

    def __init__(self, lists: Any, probes: list[int], path: Path | None = None) -> None:
        self.lists, self.probes, self.path = lists, probes, path

    @classmethod
    def of(cls, vector_ND: Array, key_N: Array) -> Self:
        """Around 4 √N centres, learned from a sample.

        Raises:
            UserError: faiss is missing.
        """
        faiss = _faiss()
        count = max(1, min(round(4 * len(vector_ND) ** 0.5), len(vector_ND) // TRAINED_ON))
        lists = faiss.index_factory(vector_ND.shape[1], f"IVF{count},SQ8", faiss.METRIC_INNER_PRODUCT)
        lists.cp.min_points_per_centroid = 1  # of few items it would warn
        drawn = np.random.default_rng(0).permutation(len(vector_ND))[: TRAINED_ON * count]
        lists.train(vector_ND[np.sort(drawn)])
        lists.add_with_ids(vector_ND, key_N)
        return cls(lists, [])

    @classmethod
    def read(cls, path: Path, probes: list[int], mapped: bool) -> Self:
        """Read what ``write`` wrote, or leave it on disk.

        Raises:
            FileNotFoundError: it is not there.
            UserError: faiss is missing.
            RuntimeError: it is damaged.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there")
        faiss = _faiss()
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mapped else 0), probes, path if mapped else None)

    def write(self, path: Path) -> None:
        """Write a file that needs no other; of mapped lists, faiss would only write where they are."""
        if self.path is None:
            _faiss().write_index(self.lists, str(path))
        else:
            shutil.copyfile(self.path, path)

    @property
    def count(self) -> int:
        """How many lists there are."""
        return int(self.lists.nlist)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.lists.ntotal, self.lists.d

    def search(self, query_BD: Array, count: int, wanted: int) -> Array:
        """Keys of ``count`` items for each query, -1 where there are fewer; ``wanted`` says how many lists it takes."""
        first, last = self.probes[0], self.probes[-1]
        # Between the two that were measured, by a power law.
        share = max(0.0, math.log(wanted / RECALL_AT)) / math.log(MOST_FETCHED / RECALL_AT)
        probed = _faiss().SearchParametersIVF(nprobe=math.ceil(first * (last / first) ** share))
        _, key_BF = self.lists.search(query_BD, count, params=probed)
        return key_BF

    def add(self, vector_ND: Array, key_N: Array) -> None:
        """Put items in."""
        self.lists.add_with_ids(vector_ND, key_N)

    def remove(self, key_N: Array) -> None:
        """Take items out."""
        self.lists.remove_ids(key_N)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError(
            "An index of this size needs faiss, and it is not installed. pip install 'avrec[retrieval]', or give "
            "approximate_above=None for exact search."
        ) from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss
