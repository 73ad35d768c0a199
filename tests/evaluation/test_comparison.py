"""Two models over the same users: against loops, with a planted winner, and in words."""

from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from avrec.errors import UserError
from avrec.evaluation.baselines import RandomScorer, ScoreMatrixScorer
from avrec.evaluation.comparison import Comparison, Contender, check_same_question, compare, comparison_table
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.slices import user_slices

USERS, ITEMS = 80, 40


@pytest.fixture
def task(make_task, rng):
    """Users with two warm items, every other one with a cold one as well."""
    order = [rng.permutation(34)[:2].tolist() for _ in range(USERS)]
    relevant = [items + ([34 + user % 6] if user % 2 else []) for user, items in enumerate(order)]
    return make_task(relevant, ITEMS, cold_N=np.arange(ITEMS) >= 34)


def knowing(task, share, seed=0):
    """Finds each relevant item with this probability, and is random otherwise."""
    rng = np.random.default_rng(seed)
    scores = rng.random((len(task), ITEMS))
    for user in range(len(task)):
        scores[user, task.relevant[user]] += rng.random(len(task.relevant[user])) < share
    return ScoreMatrixScorer(scores)


def test_a_planted_winner_wins_and_equals_do_not(task):
    good, poor, other = (knowing(task, share, seed) for seed, share in enumerate((0.8, 0.2, 0.2)))
    for one in compare(Contender("good", good, task), Contender("poor", poor, task)):
        assert one.low <= one.difference <= one.high
        if one.slice != "cold_candidates":
            assert one.difference > 0
            assert one.p_holm < 0.05
            assert one.sentence.startswith(f"good is better on {one.slice} ({one.metric}) by +.")
    assert all(one.p_holm > 0.05 for one in compare(Contender("a", poor, task), Contender("b", other, task)))


def test_values_are_those_of_evaluate_and_corrected_over_slices(task):
    a, b = Contender("a", knowing(task, 0.8), task), Contender("b", RandomScorer(task, ITEMS), task)
    found = compare(a, b, 5, ("ndcg", "recall", "coverage"))
    assert [(one.slice, one.metric) for one in found] == [
        (name, metric) for name in ("all", "cold_items", "cold_candidates") for metric in ("ndcg@5", "recall@5")
    ]
    for which, contender in (("value_a", a), ("value_b", b)):
        results = evaluate("x", contender.scorer, task, (5,), ("ndcg", "recall"))
        assert [getattr(one, which) for one in found] == [result.value for result in results]
        assert [one.users for one in found] == [result.users for result in results]
    for metric in ("ndcg@5", "recall@5"):
        whole, *slices = (one for one in found if one.metric == metric)
        assert whole.p_holm == whole.p, "one question, asked first"
        family = sorted(slices, key=lambda one: one.p)
        worst = 0.0
        for place, one in enumerate(family):
            worst = max(worst, min(1.0, one.p * (2 - place)))
            assert one.p_holm == pytest.approx(worst)
    assert found[0].as_dict()["sentence"] == found[0].sentence


def test_users_are_matched_by_their_index_in_the_catalogue(task):
    rows = np.random.default_rng(5).permutation(USERS)[:50]
    fewer = replace(
        task, user_index_E=task.user_index_E[rows], relevant=task.relevant.take(rows), seen=task.seen.take(rows)
    )
    scores = knowing(task, 0.5)
    same = Contender("fewer", ScoreMatrixScorer(lambda asked: scores(rows[asked])), fewer)
    for one in compare(Contender("whole", scores, task), same):
        assert one.users == (50 if one.slice == "all" else (rows % 2).sum())
        assert (one.difference, one.p, one.low, one.high) == (0, 1, 0, 0)
        assert one.sentence.startswith("whole and fewer do not differ significantly on ")


def test_more_slices_are_compared_too(task):
    slices = user_slices(task, "parity", np.arange(USERS) % 2)
    a, b = (Contender(name, knowing(task, share), task, slices) for name, share in (("a", 0.8), ("b", 0.5)))
    found = {one.slice: one for one in compare(a, b, metrics=("ndcg",))}
    assert list(found) == ["all", "cold_items", "cold_candidates", "parity: 0", "parity: 1"]
    assert found["parity: 0"].users == found["parity: 1"].users == USERS // 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"split": "random", "cut": 0.8}}, "split temporal and random"),
        ({"protocol": {"split": "temporal", "cut": 0.8, "seed": 1}}, "seed None and 1"),
        ({"seen_filter": False}, "seen_filter True and False"),
        ({"split": "val"}, "evaluated split test and val"),
        ({"candidates_N": np.arange(ITEMS) > 0}, "their candidates"),
        ({"user_index_E": np.arange(USERS) * 3}, "users: they share none"),
        ({"user_index_E": np.arange(USERS) * 3 + 4}, "their held-out items"),
    ],
)
def test_different_questions_are_refused(task, changes, message):
    with pytest.raises(UserError, match=f"a and b differ in .*{message}"):
        check_same_question(("a", "b"), task, replace(task, **changes))
    check_same_question(("a", "b"), task, replace(task))


def test_metrics_without_a_better_are_refused(task):
    one = Contender("a", RandomScorer(task, ITEMS), task)
    with pytest.raises(UserError, match=r"at least one of the metrics recall, .* got metrics=\['coverage'\]"):
        compare(one, one, metrics=["coverage"])


def example(difference, low, high, p):
    return Comparison("A", "B", "test", "cold_items", "ndcg@10", 9, 0.5, 0.5, difference, low, high, p, p)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0.012, 0.004, 0.02, 0.001), "A is better on cold_items (ndcg@10) by +.012 [.004, .020], p=.001"),
        ((-0.012, -0.02, -0.004, 0.0001), "B is better on cold_items (ndcg@10) by +.012 [.004, .020], p<.001"),
        (
            (0.012, -0.004, 0.02, 0.3),
            "A and B do not differ significantly on cold_items (ndcg@10): +.012 [-.004, .020], p=.300",
        ),
        ((1.0, 1.0, 1.0, 0.01), "A is better on cold_items (ndcg@10) by +1.000 [1.000, 1.000], p=.010"),
    ],
)
def test_sentences(numbers, sentence):
    assert example(*numbers).sentence == sentence


def test_table_has_all_numbers_and_any_name():
    console = Console(width=100)
    with console.capture() as capture:
        named = replace(example(0.0124, 0.004, 0.02, 0.001), a="run[1]")
        console.print(comparison_table([named, example(-0.5, -0.6, 0.4, 0.5)]))
    text = capture.get()
    for expected in ("run[1] against B", "+0.0124", "+0.004 +0.020", "0.0010", "-0.5000", "Holm"):
        assert expected in text
