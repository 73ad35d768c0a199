import numpy as np
import pytest

from avrec.ranking_task import Ragged, RankingTask


def _task(relevant, num_items, seen=None, **changes):
    users = len(relevant)
    settings = {
        "split": "test",
        "user_index_E": np.arange(users) * 3 + 1,
        "relevant": Ragged.of(relevant),
        "seen": Ragged.of(seen or [[]] * users),
        "seen_filter": True,
        "candidates_N": np.ones(num_items, bool),
        "cold_N": np.zeros(num_items, bool),
        "popularity_N": np.zeros(num_items),
        "protocol": {"split": "temporal", "cut": 0.8},
    }
    return RankingTask(**{**settings, **changes})


@pytest.fixture(scope="session")
def make_task():
    """A task from its users' relevant items and the size of the catalogue; anything else by name."""
    return _task
