"""Sequences and padding against loops."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.data.tables import Interactions
from avrec.data.windows import Sequences, padded


@st.composite
def logs(draw):
    users = draw(st.integers(1, 6))
    user = np.array(sorted(draw(st.lists(st.integers(0, users - 1), max_size=25))), np.int64)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = len(user)
    log = Interactions(user, rng.integers(9, size=rows), rng.random(rows), rng.random(rows).astype(np.float32))
    return log, rng.random(rows) < draw(st.sampled_from([0.0, 0.6, 1.1])), users


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(1, 5))
def test_sequences(given_, longest):
    log, keep, users = given_
    sequences = Sequences.of(log, keep, users)
    assert len(sequences) == users
    for user in range(users):
        rows = slice(sequences.starts[user], sequences.starts[user + 1])
        mine = [row for row in range(len(log)) if keep[row] and log.user[row] == user]
        assert sequences.lengths()[user] == len(mine)
        for name in ("item", "time", "weight"):
            assert getattr(sequences, name)[rows].tolist() == getattr(log, name)[mine].tolist()
            assert getattr(sequences, name).dtype == getattr(log, name).dtype
        first, stop = sequences.last(np.array([user]), longest)
        assert sequences.item[first[0] : stop[0]].tolist() == log.item[mine[-longest:]].tolist()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([np.int64, np.float64, np.float32]))
def test_padded(data, dtype):
    total = data.draw(st.integers(0, 12))
    pairs = st.tuples(st.integers(0, total), st.integers(0, total)).map(sorted)
    bounds = np.array(data.draw(st.lists(pairs, max_size=5)), np.int64).reshape(-1, 2)
    width = data.draw(st.integers(int((bounds[:, 1] - bounds[:, 0]).max(initial=0)), 14))
    values = np.arange(1, total + 1).astype(dtype)
    rows, present = padded(values, bounds[:, 0], bounds[:, 1], width)
    assert rows.dtype == dtype
    assert rows.shape == present.shape == (len(bounds), width)
    for row, mask, (first, stop) in zip(rows.tolist(), present.tolist(), bounds, strict=True):
        length = stop - first
        assert row == [*values[first:stop].tolist(), *[0] * (width - length)]
        assert mask == [True] * length + [False] * (width - length)


def test_a_row_wider_than_the_table_is_cut():
    rows, present = padded(np.arange(5), np.array([0]), np.array([5]), 2)
    assert rows.tolist() == [[0, 1]]
    assert present.all()
