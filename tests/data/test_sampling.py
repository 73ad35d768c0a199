"""avrec.data.windows: every row a target once, an order that resumes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.data.windows import Sequences, WindowSampler, log_inclusion, padded


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


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_length_is_the_same_in_every_epoch_and_process(lengths: list[int], L: int, B: int, world: int) -> None:
    samplers = [WindowSampler(sequences_of(lengths), L, B, 3, rank, world) for rank in range(world)]
    assert len({len(sampler) for sampler in samplers}) == 1
    for epoch in range(4):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert all(1 <= len(batch) <= B for batch in batches)
            assert all(len(batch) == B for batch in batches[:-1])


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 4), st.integers(2, 4))
def test_processes_together_cover_the_batch(lengths: list[int], L: int, B: int, world: int) -> None:
    sequences = sequences_of(lengths)
    whole = list(WindowSampler(sequences, L, B * world, 5))
    parts = [list(WindowSampler(sequences, L, B, 5, rank, world)) for rank in range(world)]
    for number, batch in enumerate(whole):
        together = [tuple(row) for part in parts for row in part[number].tolist()]
        assert set(together) == {tuple(row) for row in batch.tolist()}
        # Twice only where the last batch has fewer windows than there are processes.
        assert len(together) == max(len(batch), world)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sequences = sequences_of([9, 3, 1, 0, 25, 6, 7])

    def order(seed: int, epoch: int, global_seed: int) -> list[list[int]]:
        np.random.seed(global_seed)
        sampler = WindowSampler(sequences, 4, 2, seed)
        sampler.set_epoch(epoch)
        return np.concatenate(list(sampler)).tolist()

    assert order(1, 1, 0) == order(1, 1, 9)
    assert len({str(order(seed, epoch, 0)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    sampler = WindowSampler(sequences, 4, 2, 1)
    assert [np.concatenate(list(sampler)).tolist() for _ in range(2)] == [order(1, 0, 0)] * 2


def test_cuts_of_long_histories_move_from_epoch_to_epoch() -> None:
    sampler = WindowSampler(sequences_of([40]), 8, 4)
    firsts = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        firsts |= {int(stop) for _, first, stop in np.concatenate(list(sampler)) if first == 0}
    # 39 pairs in five windows of eight: one pair of slack, so the first window ends after eight or nine rows.
    assert firsts == {8, 9}


def test_set_epoch_starts_a_new_epoch_at_its_first_batch() -> None:
    sampler = WindowSampler(sequences_of([5] * 6), 9, 2)
    sampler.load_state_dict({"epoch": 3, "first_batch": 2, "seed": 0})
    sampler.set_epoch(3)
    assert (sampler.first_batch, len(list(sampler)), len(sampler)) == (2, 1, 3)
    sampler.set_epoch(4)
    assert (sampler.first_batch, len(list(sampler)), len(sampler)) == (0, 3, 3)
    assert sampler.state_dict() == {"epoch": 4, "first_batch": 0, "seed": 0}


def test_no_sequence_no_batch() -> None:
    sampler = WindowSampler(sequences_of([0, 0]), 4, 2)
    assert len(sampler) == 0
    assert list(sampler) == []


def test_log_inclusion_is_what_draws_give() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.15, 0.05])
    draws = rng.choice(4, size=(40_000, 6), p=share)
    seen = [(draws == item).any(1).mean() for item in range(4)]
    np.testing.assert_allclose(np.exp(log_inclusion(share, 6)), seen, atol=0.01)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-300, 1.0), st.integers(1, 100_000))
def test_log_inclusion_is_a_log_probability(share: float, draws: int) -> None:
    got = float(log_inclusion(np.array([share]), draws)[0])
    # Between the largest of the draws' probabilities and the sum of them (Boole's inequality).
    assert np.log(share) - 1e-9 <= got <= min(0.0, np.log(share) + np.log(draws)) + 1e-9
