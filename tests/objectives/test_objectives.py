"""avrec.objective.{pairs,log_sigmoid,bpr,in_batch_sigmoid,sampled_softmax} against loops anyone can check."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from avrec.batch import ItemBatch, TrainBatch, UserBatch
from avrec.data.windows import log_inclusion
from avrec.errors import UserError
from avrec.objectives.bpr import BPR
from avrec.objectives.in_batch_sigmoid import InBatchSigmoid
from avrec.objectives.log_sigmoid import LogSigmoid
from avrec.objectives.pairs import Pairs, pairs_of
from avrec.objectives.sampled_softmax import SampledSoftmax

Loss = Callable[[float, Tensor, dict[int, Tensor], dict[int, float]], Tensor]


def log_sigma(x: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-x))


# One positive's loss, from its weight, its score, and the score and the inclusion probability of each negative.


def log_sigmoid_twin(beta: float = 1.0, zero_weight: float = 1.0) -> Loss:
    def loss(weight: float, positive: Tensor, negatives: dict[int, Tensor], q: dict[int, float]) -> Tensor:
        total = -weight * beta * log_sigma(positive)
        for j, score in negatives.items():
            total = total - zero_weight * log_sigma(-score) / q[j]
        return total

    return loss


def bpr_twin(weight: float, positive: Tensor, negatives: dict[int, Tensor], q: dict[int, float]) -> Tensor:
    total = positive * 0
    for j, score in negatives.items():
        share = (1 / q[j]) / sum(1 / q[i] for i in negatives)
        total = total - weight * share * log_sigma(positive - score)
    return total


def in_batch_twin(weight: float, positive: Tensor, negatives: dict[int, Tensor], q: dict[int, float]) -> Tensor:
    total = -weight * log_sigma(positive)
    for score in negatives.values():
        total = total - log_sigma(-score)
    return total


def softmax_twin(weight: float, positive: Tensor, negatives: dict[int, Tensor], q: dict[int, float]) -> Tensor:
    partition = torch.exp(positive)
    for j, score in negatives.items():
        partition = partition + torch.exp(score) / q[j]
    return -weight * torch.log(torch.exp(positive) / partition)


CASES = {
    "log_sigmoid": (LogSigmoid(), log_sigmoid_twin()),
    "log_sigmoid, beta": (LogSigmoid(beta=0.4), log_sigmoid_twin(beta=0.4)),
    "log_sigmoid, zero_weight": (LogSigmoid(zero_weight=0.3), log_sigmoid_twin(zero_weight=0.3)),
    "bpr": (BPR(), bpr_twin),
    "in_batch_sigmoid": (InBatchSigmoid(), in_batch_twin),
    "sampled_softmax": (SampledSoftmax(), softmax_twin),
}


def batch_and_embeddings(seed: int, B: int, Q: int, U: int, D: int) -> tuple[TrainBatch, Tensor, Tensor, Tensor]:
    """A batch of random masks, weights and inclusion probabilities, and embeddings to train."""
    rng = np.random.default_rng(seed)
    target_BQ = rng.integers(U, size=(B, Q))
    present_BQ = rng.random((B, Q)) < 0.7
    present_BQ[0, 0] = True
    own_BU = rng.random((B, U)) < 0.3
    own_BU[np.arange(B)[:, None], target_BQ] = True
    weight_BQ = np.where(present_BQ, rng.choice([0.0, 0.5, 1.0, 3.0], size=(B, Q)), 0)
    batch = TrainBatch(
        items=ItemBatch(torch.arange(U), torch.ones(U, 1, dtype=torch.bool), {}),
        users=UserBatch(*[torch.zeros(B, 1)] * 6),
        target_BQ=torch.from_numpy(target_BQ),
        target_present_BQ=torch.from_numpy(present_BQ),
        weight_BQ=torch.from_numpy(weight_BQ.astype(np.float32)),
        own_BU=torch.from_numpy(own_BU),
        log_q_U=torch.from_numpy(np.log(rng.uniform(0.02, 1, size=U)).astype(np.float32)),
    )
    query_BQD = torch.tensor(rng.normal(size=(B, Q, D)) * 1.5, dtype=torch.float32, requires_grad=True)
    item_UD = torch.tensor(rng.normal(size=(U, D)) * 1.5, dtype=torch.float32, requires_grad=True)
    bias = torch.tensor(float(rng.normal()), requires_grad=True)
    return batch, query_BQD, item_UD, bias


def naive(twin: Loss, batch: TrainBatch, query_BQD: Tensor, item_UD: Tensor, bias: Tensor) -> Tensor:
    """Every user, every position, every item: one at a time, in float64."""
    query_BQD, item_UD, bias = query_BQD.double(), item_UD.double(), bias.double()
    total, positives = torch.zeros((), dtype=torch.float64), 0
    for b in range(len(batch.own_BU)):
        for q in range(batch.target_BQ.shape[1]):
            if not batch.target_present_BQ[b, q]:
                continue
            negatives, inclusion = {}, {}
            for u in range(len(item_UD)):
                if not batch.own_BU[b, u]:
                    negatives[u] = (query_BQD[b, q] * item_UD[u]).sum() + bias
                    inclusion[u] = math.exp(float(batch.log_q_U[u]))
            positive = (query_BQD[b, q] * item_UD[batch.target_BQ[b, q]]).sum() + bias
            total = total + twin(float(batch.weight_BQ[b, q]), positive, negatives, inclusion)
            positives += 1
    return total / positives


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), B=st.integers(1, 4), Q=st.integers(1, 4), U=st.integers(1, 7), D=st.integers(1, 5))
@example(seed=0, B=1, Q=3, U=1, D=2)  # several positives of one user, and no negative at all
@example(seed=1, B=1, Q=4, U=6, D=3)
def test_equals_its_naive_twin_in_value_and_gradient(case: str, seed: int, B: int, Q: int, U: int, D: int) -> None:
    objective, twin = CASES[case]
    batch, *leaves = batch_and_embeddings(seed, B, Q, U, D)
    fast, slow = objective(pairs_of(batch, *leaves)), naive(twin, batch, *leaves)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(fast, leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(slow, leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def random_pairs(seed: int = 0, P: int = 5, U: int = 6, D: int = 4) -> Pairs:
    rng = np.random.default_rng(seed)
    target = rng.integers(U, size=P)
    negative = rng.random((P, U)) < 0.7
    negative[np.arange(P), target] = False
    return Pairs(
        query_PD=torch.tensor(rng.normal(size=(P, D)), dtype=torch.float32),
        item_UD=torch.tensor(rng.normal(size=(U, D)), dtype=torch.float32),
        target_P=torch.tensor(target),
        weight_P=torch.tensor(rng.random(P), dtype=torch.float32),
        negative_PU=torch.tensor(negative),
        log_q_U=torch.tensor(np.log(rng.uniform(0.1, 1, size=U)), dtype=torch.float32),
        bias=torch.tensor(0.3),
    )


def changed(pairs: Pairs, **values: Any) -> Pairs:
    return Pairs(**{**vars(pairs), **values})


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_negative_and_no_target_does_not_matter(case: str) -> None:
    pairs = random_pairs()
    pairs.negative_PU[:, 2] = False
    pairs.target_P[pairs.target_P == 2] = 0
    pairs.negative_PU[torch.arange(5), pairs.target_P] = False
    items = pairs.item_UD.clone()
    items[2] = 50.0
    objective = CASES[case][0]
    assert objective(changed(pairs, item_UD=items)) == objective(pairs)


@pytest.mark.parametrize("case", CASES)
def test_far_scores_stay_finite(case: str) -> None:
    pairs = random_pairs()
    query = (pairs.query_PD * 1e3).requires_grad_()
    loss = CASES[case][0](changed(pairs, query_PD=query))
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, query)[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, r"objective\.beta must be above 0 and at most 1, .*got 0\.0"),
        ({"beta": 1.1}, r"objective\.beta must be .*got 1\.1"),
        ({"beta": -0.5}, r"objective\.beta must be .*got -0\.5"),
        ({"beta": math.nan}, r"objective\.beta must be .*got nan"),
        (
            {"zero_weight": 0.0},
            r"objective\.zero_weight must be a finite number above 0; got 0\.0\..* infinite",
        ),
        ({"zero_weight": -1.0}, r"objective\.zero_weight must be .*got -1\.0"),
        ({"zero_weight": float("nan")}, r"objective\.zero_weight must be .*got nan"),
    ],
)
def test_refuses_what_cannot_work(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LogSigmoid(**arguments)


def test_zero_terms_estimate_the_whole_catalogue_without_bias() -> None:
    """4,000 batches of 15 independent draws; the mean may miss the sum by four standard errors."""
    rng = np.random.default_rng(0)
    N, draws, batches = 20, 15, 4000
    # No item is very rare: one that is in no batch at all would hide from the error's own estimate.
    share_N = 0.5 / N + 0.5 * rng.dirichlet(np.ones(N))
    log_zero_N = torch.tensor(rng.random(N), dtype=torch.float32)
    pairs = random_pairs(0, 1, N, 2)
    pairs.negative_PU = torch.ones(1, N, dtype=torch.bool)
    pairs.negative_PU[0, :3] = False
    pairs.log_q_U = torch.tensor(log_inclusion(share_N, draws), dtype=torch.float32)
    term_N = (pairs.negative_weight()[0] * log_zero_N).numpy()
    estimates = [term_N[np.unique(rng.choice(N, size=draws, p=share_N))].sum() for _ in range(batches)]
    error = np.std(estimates) / math.sqrt(batches)
    truth = float(log_zero_N[3:].sum())
    assert abs(np.mean(estimates) - truth) < 4 * error
    # Sharp enough: weights 1 / (n p), without the correction for distinct items, would be found out.
    assert (
        abs(
            (log_zero_N[3:].numpy() * np.exp(log_inclusion(share_N, draws) - np.log(draws * share_N))[3:]).sum() - truth
        )
        > 20 * error
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("log_q_U", lambda value: value[:, None]),
        ("weight_P", lambda value: value[:-1]),
        ("negative_PU", lambda value: value.T),
        ("negative_PU", lambda value: value.float()),
        ("bias", lambda value: value[None]),
    ],
)
def test_wrong_shapes_are_refused(name: str, change: Callable[[Tensor], Tensor]) -> None:
    pairs = random_pairs()
    with pytest.raises(Exception, match=name):
        changed(pairs, **{name: change(getattr(pairs, name))})


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_half_precision_towers_give_a_loss_in_float32(case: str, autocast: bool) -> None:
    pairs = random_pairs()
    half = changed(pairs, query_PD=pairs.query_PD.bfloat16(), item_UD=pairs.item_UD.bfloat16())
    objective = CASES[case][0]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective(half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(pairs), rtol=0.02, atol=0.02)
    rounded = changed(pairs, query_PD=half.query_PD.float(), item_UD=half.item_UD.float())
    torch.testing.assert_close(loss, objective(rounded), rtol=1e-6, atol=1e-6)
