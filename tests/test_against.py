"""evaluate.py against=: two checkpoints of one catalogue are compared user by user; others are refused first.

Covers avrec.cli.evaluate.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from avrec.cli.console import show_comparison
from avrec.errors import UserError
from avrec.evaluation.comparison import Comparison
from avrec.run import build, config, evaluation
from avrec.run.comparison import names_of
from evaluate import evaluate

SMALL = [
    *("text=none", "vision=none", "audio=none", "logger=none", "trainer.accelerator=cpu", "dim=16"),
    *("data.num_items=32", "data.num_users=24", "data.num_interactions=240", "datamodule.prepare.workers=0"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes a checkpoint of untrained weights in a run folder of this name."""
    shared = tmp_path_factory.mktemp("shared")

    def make(name: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / name
        places = [f"run_dir={folder}", f"cache_dir={shared}"]
        with initialize_config_dir(str(config.CONF), version_base="1.3"):
            cfg = compose("train", overrides=[*SMALL, *places, *overrides])
        run = build.build_run(cfg)
        config.save(cfg, folder / "config.yaml")
        path = folder / "checkpoints" / "best.ckpt"
        path.parent.mkdir()
        torch.save({"state_dict": run.module.state_dict()}, path)
        return path

    return make


@pytest.fixture(scope="module")
def ours(checkpoint: Any) -> Path:
    return checkpoint("ours")


def measured(ckpt: Path, *overrides: str) -> dict[str, Any]:
    """What evaluation.json says."""
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        evaluate(compose("evaluate", overrides=[f"ckpt={ckpt}", "baselines=[]", "ablation=false", *overrides]))
    return json.loads((ckpt.parent.parent / "evaluation.json").read_text())


def test_two_runs_are_compared(ours: Path, checkpoint: Any, capsys: pytest.CaptureFixture[str]) -> None:
    alone = measured(ours)
    assert "comparison" not in alone
    theirs = checkpoint("theirs", "seed=7", "dim=8")
    report = measured(ours, f"against={theirs}", "metrics=[ndcg,coverage]", "ks=[3,10]")
    rival = measured(theirs, "metrics=[ndcg]", "ks=[3]")
    assert "comparison" not in rival
    shown = capsys.readouterr().out
    means = {
        which: {(r["slice"], r["metric"]): r["value"] for r in results if r["model"] == "avrec"}
        for which, results in (("value_a", report["results"]), ("value_b", rival["results"]))
    }
    slices = dict.fromkeys(result["slice"] for result in report["results"])
    assert [(one["slice"], one["metric"]) for one in report["comparison"]] == [(name, "ndcg@3") for name in slices]
    for one in report["comparison"]:
        assert (one["a"], one["b"]) == ("ours", "theirs")
        assert 0 < one["p"] <= one["p_holm"] <= 1
        for which, found in means.items():
            assert one[which] == found[one["slice"], "ndcg@3"]
        # As sentences: the whole, and the significant differences.
        assert (one["sentence"] in shown) == (one["slice"] == "all" or one["p_holm"] < 0.05)


def test_a_run_against_itself_is_no_different(ours: Path) -> None:
    for one in measured(ours, f"against={ours}")["comparison"]:
        assert (one["difference"], one["p"], one["p_holm"]) == (0, 1, 1)
        assert one["a"] == str(ours)


def test_the_table_is_short_and_the_sentences_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    one = Comparison("A", "B", "test", "all", "ndcg@3", 9, 0.5, 0.5, 0.0, -0.1, 0.1, 1.0, 1.0)
    slices = [replace(one, slice=f"x: {n}", p_holm=0.001 if n == 59 else 1.0) for n in range(60)]
    show_comparison([one, *slices], Path("evaluation.json"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == one.sentence
    assert lines[1] == slices[-1].sentence
    assert "59 more slices" in lines[2]
    rows = [line for line in lines if "ndcg@3" in line and line not in (one.sentence, slices[-1].sentence)]
    assert len(rows) == 25
    assert "x: 59" in rows[-1]
    assert lines[-1] == "36 more rows: evaluation.json"


def test_names_tell_checkpoints_apart() -> None:
    def names(*ends: str) -> tuple[str, ...]:
        return names_of(*(f"/runs/{end}.ckpt" for end in ends))

    assert names("a/checkpoints/best", "b/checkpoints/best") == ("a", "b")
    assert names("a/checkpoints/best", "a/checkpoints/last") == ("a/best", "a/last")
    assert names("s/0/checkpoints/best", "t/0/checkpoints/best") == ("s/0", "t/0")
    assert names("x/s/0/checkpoints/best", "y/s/0/checkpoints/best")[1] == "/runs/y/s/0/checkpoints/best.ckpt"


@pytest.mark.parametrize(
    ("theirs", "overrides", "message"),
    [
        (["data.seed=1"], [], "was trained on other items, users or interactions than ckpt="),
        (["datamodule.seen_filter=false"], [], "differ in seen_filter True and False"),
        (["split=random"], [], "was trained on other items"),
        ([], ["metrics=[novelty]"], "A comparison needs at least one of the metrics"),
        (None, [], "against must be another run's checkpoint, .* is no file"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(
    ours: Path, checkpoint: Any, theirs: list[str] | None, overrides: list[str], message: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(evaluation, "measure", lambda *_: pytest.fail("measured"))
    other = ours.parent / "missing.ckpt" if theirs is None else checkpoint("theirs", *theirs)
    with pytest.raises(UserError, match=message):
        measured(ours, f"against={other}", *overrides)


def test_a_split_that_is_not_there_is_refused_first() -> None:
    with pytest.raises(UserError, match="eval_split must be test or val; got tst"):
        measured(Path("RUN/checkpoints/best.ckpt"), "eval_split=tst")
