"""avrec.data.sampling and avrec.data.sequences: every row a target once, an order that resumes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.data.sampling import WindowSampler, log_inclusion
from avrec.data.sequences import Sequences, padded


def sequences_of(lengths: list[int]) -> Sequences:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = int(starts[-1])
    return Sequences(starts, np.arange(rows), np.arange(rows, dtype=np.float64), np.ones(rows, np.float32))


LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.integers(0, 3))
def test_every_row_is_a_target_once(lengths: list[int], L: int, B: int, seed: int, epoch: int) -> None:
    sequences = sequences_of(lengths)
    sampler = WindowSampler(sequences, L, B, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    targets: list[int] = []
    for user, first, stop in np.concatenate(batches):
        assert 1 <= stop - first <= L + 1
        assert sequences.starts[user] <= first < stop <= sequences.starts[user + 1]
        targets += range(first if first == sequences.starts[user] else first + 1, stop)
    assert sorted(targets) == list(range(int(sequences.starts[-1])))


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 5))
def test_the_order_goes_on_where_it_stopped(lengths: list[int], L: int, B: int, used: int) -> None:
    sampler = WindowSampler(sequences_of(lengths), L, B, seed=7)
    sampler.set_epoch(2)
    whole = list(sampler)
    used = min(used, len(whole))
    other = WindowSampler(sequences_of(lengths), L, B, seed=0)
    other.load_state_dict({"epoch": 2, "first_batch": used, "seed": 7})
    other.set_epoch(2)
    rest = list(other)
    assert len(rest) == len(whole) - used
    assert all((one == two).all() for one, two in zip(rest, whole[used:], strict=True))
    other.set_epoch(3)
    assert other.first_batch == 0


def test_several_processes_share_a_batch() -> None:
    sequences = sequences_of([3, 9, 4, 30, 2, 1, 8])
    parts = [list(WindowSampler(sequences, 5, 2, 1, rank, 3)) for rank in range(3)]
    whole = list(WindowSampler(sequences, 5, 6, 1))
    assert {len(part) for part in parts} == {len(whole)}
    for number, batch in enumerate(whole):
        together = {tuple(row) for part in parts for row in part[number].tolist()}
        assert together == {tuple(row) for row in batch.tolist()}


@pytest.mark.parametrize(("share", "draws"), [(0.3, 1), (0.05, 20), (1.0, 3), (0.5, 4)])
def test_log_inclusion_is_the_naive_formula(share: float, draws: int) -> None:
    assert np.exp(log_inclusion(np.array([share]), draws))[0] == pytest.approx(1 - (1 - share) ** draws)


def test_log_inclusion_is_stable_for_rare_items() -> None:
    assert log_inclusion(np.array([1e-12]), 10)[0] == pytest.approx(np.log(1e-11))


def test_padded_against_a_loop() -> None:
    values = np.arange(10, 20)
    got, present = padded(values, np.array([0, 4, 9]), np.array([3, 4, 10]), 3)
    assert got.tolist() == [[10, 11, 12], [0, 0, 0], [19, 0, 0]]
    assert present.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
