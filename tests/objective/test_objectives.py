"""avrec.objective.{pairs,log_sigmoid,bpr,in_batch_sigmoid,sampled_softmax} against loops anyone can check."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec.batch import UserError
from avrec.data.sampling import log_inclusion
from avrec.objective.bpr import BPR
from avrec.objective.in_batch_sigmoid import InBatchSigmoid
from avrec.objective.log_sigmoid import LogSigmoid
from avrec.objective.pairs import Pairs
from avrec.objective.sampled_softmax import SampledSoftmax


def log_sigma(x: torch.Tensor) -> torch.Tensor:
    return -torch.log(1 + torch.exp(-x))


def scores(pairs: Pairs, p: int, u: int) -> torch.Tensor:
    return (pairs.query_PD[p] * pairs.item_UD[u]).sum() + pairs.bias


def naive(name: str, pairs: Pairs, beta: float = 1.0, zero_weight: float = 1.0) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    P, U = pairs.negative_PU.shape
    for p in range(P):
        weight = pairs.weight_P[p]
        positive = scores(pairs, p, int(pairs.target_P[p]))
        others = [u for u in range(U) if pairs.negative_PU[p, u]]
        q = {u: math.exp(float(pairs.log_q_U[u])) for u in others}
        if name == "log_sigmoid":
            zeros = sum((log_sigma(-scores(pairs, p, u)) / q[u] for u in others), torch.zeros(()))
            total = total - weight * beta * log_sigma(positive) - zero_weight * zeros
        elif name == "bpr":
            norm = sum(1 / q[u] for u in others)
            if not others:
                total = total + 0 * positive
            for u in others:
                total = total - weight * log_sigma(positive - scores(pairs, p, u)) / q[u] / norm
        elif name == "in_batch_sigmoid":
            zeros = sum((log_sigma(-scores(pairs, p, u)) for u in others), torch.zeros(()))
            total = total - weight * log_sigma(positive) - zeros
        else:
            partition = torch.exp(positive) + sum(
                (torch.exp(scores(pairs, p, u)) / q[u] for u in others), torch.zeros(())
            )
            total = total - weight * (positive - torch.log(partition))
    return total / P


OBJECTIVES = {
    "log_sigmoid": LogSigmoid(),
    "bpr": BPR(),
    "in_batch_sigmoid": InBatchSigmoid(),
    "sampled_softmax": SampledSoftmax(),
}


def random_pairs(seed: int, P: int, U: int, D: int) -> Pairs:
    rng = np.random.default_rng(seed)
    target = rng.integers(U, size=P)
    negative = rng.random((P, U)) < 0.7
    negative[np.arange(P), target] = False
    return Pairs(
        query_PD=torch.tensor(rng.normal(size=(P, D)), dtype=torch.float32).requires_grad_(),
        item_UD=torch.tensor(rng.normal(size=(U, D)), dtype=torch.float32).requires_grad_(),
        target_P=torch.tensor(target),
        weight_P=torch.tensor(rng.random(P), dtype=torch.float32),
        negative_PU=torch.tensor(negative),
        log_q_U=torch.tensor(np.log(rng.uniform(0.1, 1, size=U)), dtype=torch.float32),
        bias=torch.tensor(float(rng.normal())).requires_grad_(),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), P=st.integers(1, 6), U=st.integers(2, 7), D=st.integers(1, 5))
def test_equals_its_naive_twin_in_value_and_gradient(name: str, seed: int, P: int, U: int, D: int) -> None:
    pairs = random_pairs(seed, P, U, D)
    leaves = (pairs.query_PD, pairs.item_UD, pairs.bias)
    fast, slow = OBJECTIVES[name](pairs), naive(name, pairs)
    torch.testing.assert_close(fast.double(), slow.double(), rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(fast, leaves, allow_unused=True)
    expected = torch.autograd.grad(slow, leaves, allow_unused=True)
    for one, other, leaf in zip(gradients, expected, leaves, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other, rtol=1e-3, atol=1e-5)


def test_beta_and_zero_weight() -> None:
    pairs = random_pairs(1, 4, 5, 3)
    fast = LogSigmoid(beta=0.4, zero_weight=0.3)(pairs)
    torch.testing.assert_close(fast.double(), naive("log_sigmoid", pairs, 0.4, 0.3).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"beta": 0.0}, {"beta": 1.1}, {"zero_weight": 0.0}, {"zero_weight": -1.0}])
def test_refuses_what_cannot_work(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match="Give a number"):
        LogSigmoid(**arguments)


def test_zero_terms_estimate_the_whole_catalogue_without_bias() -> None:
    rng = np.random.default_rng(0)
    N, draws, batches = 20, 15, 4000
    share = rng.dirichlet(np.ones(N))
    term = rng.random(N)
    log_q = log_inclusion(share, draws)
    estimates = []
    for _ in range(batches):
        inside = np.unique(rng.choice(N, size=draws, p=share))
        pairs = random_pairs(0, 1, len(inside), 2)
        pairs.negative_PU = torch.ones(1, len(inside), dtype=torch.bool)
        pairs.log_q_U = torch.tensor(log_q[inside], dtype=torch.float32)
        estimates.append(float((pairs.negative_weight()[0] * torch.tensor(term[inside], dtype=torch.float32)).sum()))
    error = np.std(estimates) / math.sqrt(batches)
    assert abs(np.mean(estimates) - term.sum()) < 4 * error


def test_a_log_q_of_the_wrong_shape_is_refused() -> None:
    pairs = random_pairs(0, 3, 4, 2)
    with pytest.raises(Exception, match="log_q_U"):
        Pairs(**{**vars(pairs), "log_q_U": pairs.log_q_U[:, None]})


def test_half_precision_towers_give_a_loss_in_float32() -> None:
    pairs = random_pairs(0, 3, 4, 2)
    half = Pairs(**{**vars(pairs), "query_PD": pairs.query_PD.bfloat16(), "item_UD": pairs.item_UD.bfloat16()})
    loss = LogSigmoid()(half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LogSigmoid()(pairs), rtol=0.05, atol=0.05)
