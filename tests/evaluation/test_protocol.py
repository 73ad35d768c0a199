import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from avrec.evaluation.baselines import PopularityScorer, RandomScorer, ScoreMatrixScorer
from avrec.evaluation.evaluator import evaluate, fast_metrics, user_values
from avrec.evaluation.list_metrics import LIST_METRICS, novelty_at_k
from avrec.evaluation.metrics import METRICS
from avrec.evaluation.ranking import top_k
from avrec.evaluation.results import Result, read_results, results_table, write_results
from avrec.evaluation.slices import item_slices, slices_of, user_slices


@pytest.fixture
def task(make_task):
    """60 users, 40 items of which 6 are cold; half of the users have cold relevant items."""
    rng = np.random.default_rng(0)
    order = [rng.permutation(34) for _ in range(60)]
    relevant = [items[:2].tolist() + ([34 + user % 6] if user % 2 else []) for user, items in enumerate(order)]
    return make_task(
        relevant,
        40,
        seen=[items[2:10].tolist() for items in order],
        cold_N=np.arange(40) >= 34,
        popularity_N=rng.integers(1, 9, 40) * (np.arange(40) < 34.0),
    )


def oracle(task):
    scores = np.zeros((len(task), len(task.candidates_N)))
    for user in range(len(task)):
        scores[user, task.relevant[user]] = 1
    return ScoreMatrixScorer(scores)


def by_name(results):
    return {(r.slice, r.metric): r for r in results}


def test_slices(task):
    whole, cold, among_cold = slices_of(task)
    assert (whole.name, whole.candidates, len(whole.rows)) == ("all", "all", 60)
    assert (cold.name, cold.candidates) == ("cold_items", "all")
    assert (among_cold.name, among_cold.candidates) == ("cold_candidates", "cold")
    assert cold.rows.tolist() == list(range(1, 60, 2))
    for place, user in enumerate(cold.rows.tolist()):
        assert cold.relevant[place].tolist() == [34 + user % 6]


def test_no_cold_slice_without_cold_relevant_items(make_task):
    task = make_task([[0], [1]], 3, cold_N=np.array([False, False, True]))
    assert [part.name for part in slices_of(task)] == ["all"]


def test_where_all_candidates_are_cold_the_cold_slices_are_the_whole(make_task):
    cold_N = np.arange(9) >= 4
    held_out = cold_N & (np.arange(9) < 8)
    task = make_task([[4], [5, 7]], 9, cold_N=cold_N, candidates_N=held_out)
    (whole,) = slices_of(task)
    assert (whole.name, whole.candidates) == ("all", "cold")
    (result,) = evaluate("random", RandomScorer(task, 9), task, ks=(2,), metrics=("recall",))
    assert (result.protocol["candidates"], result.protocol["candidate_items"]) == ("cold", 4)
    values = fast_metrics(RandomScorer(task, 9), task, ["cold/recall@2", "recall@2"])
    assert values == {"cold/recall@2": result.value, "recall@2": result.value}


def test_some_candidates_are_called_some(make_task):
    task = make_task([[4], [0]], 6, cold_N=np.arange(6) >= 4, candidates_N=np.arange(6) != 1)
    assert [(part.name, part.candidates) for part in slices_of(task)] == [
        ("all", "some"),
        ("cold_items", "some"),
        ("cold_candidates", "cold"),
    ]


def test_values_equal_a_loop_over_users(task):
    results = by_name(evaluate("random", RandomScorer(task, 40), task, ks=(3, 10), metrics=tuple(METRICS)))
    scores = RandomScorer(task, 40)(np.arange(60)).numpy()
    candidates = {"all": range(40), "cold_items": range(40), "cold_candidates": range(34, 40)}
    for (slice_name, metric), result in results.items():
        name, k = metric.split("@")
        values = []
        for user in range(60):
            wanted = {i for i in task.relevant[user].tolist() if slice_name == "all" or i >= 34}
            if wanted:
                items = [i for i in candidates[slice_name] if i not in task.seen[user]]
                ranked = sorted(items, key=lambda i, user=user: (-scores[user, i], i))[: int(k)]
                values.append(METRICS[name]([[i in wanted for i in ranked]], [len(wanted)])[0])
        assert result.users == len(values)
        assert result.value == pytest.approx(np.mean(values), abs=1e-12)
        assert result.low <= result.value <= result.high


def test_perfect_scores_are_one_everywhere(task):
    results = evaluate("oracle", oracle(task), task, metrics=tuple(METRICS))
    assert len(results) == 3 * 2 * len(METRICS)
    for result in results:
        # In cold_items the warm relevant items may rightly stand above the cold one.
        if result.slice != "cold_items" or result.metric.startswith(("recall", "hit_rate")):
            assert (result.value, result.low, result.high) == (1, 1, 1)


def test_protocol_travels_with_the_number(task):
    result = by_name(evaluate("popularity", PopularityScorer(task.popularity_N), task))["cold_candidates", "ndcg@10"]
    assert result.as_dict() == {
        "model": "popularity",
        "split": "test",
        "slice": "cold_candidates",
        "metric": "ndcg@10",
        "value": result.value,
        "low": result.low,
        "high": result.high,
        "users": 30,
        "protocol": {
            "split": "temporal",
            "cut": 0.8,
            "candidates": "cold",
            "candidate_items": 6,
            "seen_filter": True,
            "ties": "item index",
            "k": 10,
            "interval": "bootstrap over users, 1000 samples, 95 %",
        },
        "kind": "main",
    }


def test_fast_metrics_equal_the_full_evaluation(task):
    scorer = RandomScorer(task, 40)
    full = by_name(evaluate("random", scorer, task))
    fast = fast_metrics(scorer, task, ["ndcg@10", "recall@50", "cold/ndcg@10"])
    assert fast == {
        "ndcg@10": full["all", "ndcg@10"].value,
        "recall@50": full["all", "recall@50"].value,
        "cold/ndcg@10": full["cold_items", "ndcg@10"].value,
    }


def test_fast_metrics_leave_out_cold_without_cold_items(make_task):
    task = make_task([[0], [1]], 3)
    assert list(fast_metrics(RandomScorer(task, 3), task, ["cold/ndcg@10", "mrr@1"])) == ["mrr@1"]


@pytest.mark.parametrize("name", ["ndgc@10", "ndcg", "ndcg@0", "warm/ndcg@10", "ndcg@ten"])
def test_unknown_metric_names_are_refused(task, name):
    with pytest.raises(ValueError, match="metrics must be a list of recall, ndcg|must be METRIC@K"):
        fast_metrics(RandomScorer(task, 40), task, [name])


def test_a_task_without_users_is_refused(make_task):
    task = make_task([], 3)
    with pytest.raises(ValueError, match="test split has no users"):
        evaluate("random", RandomScorer(task, 3), task)


def printed(results):
    console = Console(width=100, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get()


def test_table_fits_and_says_its_protocol(task):
    results = [
        *evaluate("random", RandomScorer(task, 40), task),
        *evaluate("popularity", PopularityScorer(task.popularity_N), task),
        *evaluate("oracle", oracle(task), task),
    ]
    text = printed([replace(r, protocol={**r.protocol, "test_from": 1704196800.0, "share": 0.2}) for r in results])
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "test_from 2024-01-02 12:00 UTC, share 0.2" in " ".join(text.split())
    for expected in ("test: cold_candidates", "60 users", "30 users", "seen_filter True", "oracle", "1.0000"):
        assert expected in text
    best = max(r.value for r in results if r.model != "oracle" and (r.slice, r.metric) == ("all", "ndcg@10"))
    assert f"{best:.4f}" in text
    assert f"{best:.1%}" in text


def test_table_without_oracle_or_with_gaps(task):
    results = evaluate("random", RandomScorer(task, 40), task, metrics=tuple(METRICS))
    results += evaluate("popularity", PopularityScorer(task.popularity_N), task, ks=(10,))
    text = printed(results)
    assert "share" not in text
    assert "hit_rate@50" in text


def test_list_metrics_stand_beside_the_others(task):
    scorer, names = RandomScorer(task, 40), ("ndcg", *LIST_METRICS)
    item_ND = np.random.default_rng(0).normal(size=(40, 3))
    results = evaluate("random", scorer, task, ks=(2, 3), metrics=names, item_ND=item_ND)
    asked = [f"{name}@3" for name in names if name != "diversity"]
    found, fast = by_name(results), fast_metrics(scorer, task, asked)
    for slice_name, candidates in (("all", range(40)), ("cold_items", range(40)), ("cold_candidates", range(34, 40))):
        rows = range(60) if slice_name == "all" else range(1, 60, 2)
        top = top_k(scorer, task, 3, candidates_N=np.isin(np.arange(40), candidates))[rows]
        coverage = found[slice_name, "coverage@3"]
        assert coverage.low == coverage.high == coverage.value == len(set(top.ravel()) - {-1}) / len(candidates)
        assert coverage.protocol["interval"] == "none: one number over all users"
        novelty = found[slice_name, "novelty@3"]
        assert novelty.value == pytest.approx(novelty_at_k(top, task.popularity_N).mean())
        assert novelty.low <= novelty.value <= novelty.high
        assert novelty.protocol["interval"].startswith("bootstrap")
        # The others' numbers do not hang on what stands beside them.
        alone = by_name(evaluate("random", scorer, task, (3,)))[slice_name, "ndcg@3"].as_dict()
        assert found[slice_name, "ndcg@3"].as_dict() == alone | {
            end: pytest.approx(alone[end], abs=1e-12) for end in ("low", "high")
        }
    assert fast == {name: found["all", name].value for name in fast}
    assert 0 < found["all", "popularity@3"].value < 1
    (alone,) = (r for r in evaluate("random", scorer, task, (3,), ("coverage",)) if r.slice == "all")
    assert alone == found["all", "coverage@3"]


def test_table_of_list_metrics_fits_and_has_no_best(task):
    metrics = ("coverage", "novelty", "popularity", "recall", "ndcg")
    results = evaluate("random", RandomScorer(task, 40), task, metrics=metrics)
    results += evaluate("popularity", PopularityScorer(task.popularity_N), task, metrics=metrics)
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert "below each value: bootstrap" in " ".join(text.split())
    console = Console(width=100, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(results_table(results))
    for metric in ("ndcg@10", "novelty@10", "popularity@10"):
        best = max(r.value for r in results if (r.slice, r.metric) == ("all", metric))
        assert (f"\x1b[1m{best:.4f}" in capture.get()) == (metric == "ndcg@10")


def test_more_slices_share_the_ranking(task):
    asked = []

    def scorer(rows):
        asked.append(len(rows))
        return RandomScorer(task, 40)(rows)

    slices = user_slices(task, "third", np.arange(60) % 3) + item_slices(task, "half", np.arange(40) // 20)
    results = evaluate("random", scorer, task, (3, 10), ("ndcg", "coverage", "recall"), slices)
    own = evaluate("random", RandomScorer(task, 40), task, (3, 10), ("ndcg", "coverage", "recall"))
    assert results[: len(own)] == own
    assert sum(asked) == 2 * 60  # all candidates, and the cold ones
    more = by_name(results[len(own) :])
    names = [*(f"third: {third}" for third in range(3)), "half: 0", "half: 1"]
    assert list(more) == [(name, metric) for name in names for metric in ("ndcg@3", "recall@3")]
    thirds = [more[f"third: {third}", "ndcg@3"] for third in range(3)]
    whole = by_name(own)["all", "ndcg@3"]
    assert np.mean([part.value for part in thirds]) == pytest.approx(whole.value)
    assert [part.users for part in thirds] == [20] * 3
    assert thirds[0].protocol == whole.protocol


def test_values_of_users_are_what_results_are_means_of(task):
    scorer = RandomScorer(task, 40)
    values = {part.name: (part, found) for part, found in user_values(scorer, task, metrics=("mrr", "coverage"))}
    for result in evaluate("random", scorer, task, metrics=("mrr", "coverage")):
        part, found = values[result.slice]
        assert found[result.metric].mean() == result.value
        assert found[result.metric].shape == (() if "coverage" in result.metric else part.rows.shape)


def test_two_runs_write_the_same_bytes_and_read_back(task, tmp_path):
    for run in ("a", "b"):
        results = evaluate("random", RandomScorer(task, 40), task)
        write_results(tmp_path / run / "metrics.json", results, {"fit": 1 / 3}, {"items": np.int64(40)})
    first = (tmp_path / "a/metrics.json").read_bytes()
    assert first == (tmp_path / "b/metrics.json").read_bytes()
    assert sorted(json.loads(first)) == ["data", "results", "timing"]
    report = read_results(tmp_path / "a/metrics.json")
    assert report.results == results
    assert report.timing == {"fit": 1 / 3}
    assert report.data == {"items": 40}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["metrics.json"]


def test_files_written_before_results_had_kinds_are_read(task, tmp_path):
    slices = user_slices(task, "parity", np.arange(60) % 2)
    results = evaluate("avrec", RandomScorer(task, 40), task, slices=slices)
    changes = [
        {"model": "avrec without text", "kind": "without", "modality": "text"},
        {"model": "avrec, text alone", "kind": "alone", "modality": "text"},
        {"metric": "score_variance/text", "kind": "variance_share", "modality": "text"},
    ]
    results += [replace(results[0], **change) for change in changes]
    entries = [result.as_dict() for result in results]
    for entry in entries:
        for name in ("kind", "group", "label", "modality"):
            entry.pop(name, None)
    (tmp_path / "old.json").write_text(json.dumps({"results": entries, "timing": {}, "data": {}}))
    assert read_results(tmp_path / "old.json").results == results
    assert {result.kind for result in results} == {"main", "slice", "without", "alone", "variance_share"}


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_results(path, [], {}, {})
    bad = Result("m", "test", "all", "ndcg@10", float("nan"), 0.0, 0.0, 1, {})
    with pytest.raises(ValueError, match="must be finite"):
        write_results(path, [bad], {}, {})
    assert read_results(path).results == []
    path.write_text('{"results": [{}]}')
    with pytest.raises(ValueError, match="cannot be read as results"):
        read_results(path)
