"""avrec.retrieval.recommend on a tiny trained run: against the obvious twin, and its mistakes."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avrec.cli.recommend import main
from avrec.errors import UserError
from avrec.retrieval.recommend import Recommender
from avrec.run.restore import of_checkpoint
from avrec.towers.encoders.text import TextEncoder
from train import train


@pytest.fixture(scope="module")
def run(compose_cfg: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    cfg = compose_cfg("evaluation.baselines=[]", "evaluation.ablation=false", run_dir=folder)
    cfg.vision = cfg.audio = None
    train(cfg)
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    restored = of_checkpoint(run / "checkpoints" / "best.ckpt")
    return Recommender(restored.data, restored.module, restored.cfg.data.get("columns"))


def history_of(recommender: Recommender, user: int) -> list[int]:
    log = recommender.catalogue.log
    return log.item[log.user == user].tolist()


def scores(recommender: Recommender, user: int, history: list[int], times: Any) -> torch.Tensor:
    """One user's scores of the catalogue, by the towers alone."""
    data, score = recommender.data, recommender.module.score
    users = data.users.of(
        np.array([user]), np.array([history], np.int64), np.ones((1, len(history)), bool), np.array([times], float)
    )
    with torch.no_grad():
        query_BD = recommender.module.user_tower.last(users, recommender.item_ND)
        return (query_BD @ recommender.item_ND.T)[0] / score.temperature + score.bias


def test_a_user_gets_the_best_unseen_items_and_the_reasons_are_leave_one_out(recommender: Recommender) -> None:
    log, user = recommender.catalogue.log, 3
    history, times = history_of(recommender, user), log.time[log.user == user]
    found = recommender.for_user(recommender.catalogue.user_ids[user], k=4)
    score_N = scores(recommender, user, history, times)
    order = [item for item in score_N.argsort(descending=True).tolist() if item not in history][:4]
    assert [recommender.place[one.item_id] for one in found] == order
    assert [one.title for one in found] == [recommender.catalogue.titles[item] for item in order]
    np.testing.assert_allclose([one.score for one in found], score_N[order], rtol=1e-4)
    places = range(len(history))
    losses = [
        score_N[order[0]] - scores(recommender, user, np.delete(history, p).tolist(), np.delete(times, p))[order[0]]
        for p in places
    ]
    best = max(places, key=lambda place: losses[place])
    title, loss = found[0].because[0]
    assert title == recommender.title(history[best])
    assert loss == pytest.approx(losses[best].item(), abs=1e-3)


def test_the_catalogue_may_lie_elsewhere_than_at_training(recommender: Recommender, run: Path, tmp_path: Path) -> None:
    restored = of_checkpoint(run / "checkpoints" / "best.ckpt", tmp_path)
    moved = Recommender(restored.data, restored.module)
    assert moved.catalogue.root.is_relative_to(tmp_path)
    user = moved.catalogue.user_ids[0]
    assert moved.for_user(user) == recommender.for_user(user)


def test_a_history_is_served_without_a_user(recommender: Recommender) -> None:
    ids = list(recommender.place)[:3]
    found = recommender.for_history(ids, k=100)
    assert {one.item_id for one in found} == {*recommender.place} - {*ids}
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert {title for one in found for title, _ in one.because} <= {recommender.title(item) for item in range(3)}
    assert found != recommender.for_history(ids[::-1] + list(recommender.place)[5:9], k=100)


def test_a_new_item_has_the_rank_that_it_would_have_in_the_catalogue(recommender: Recommender, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text("item_id,title,description\nn1,A quiet farm,Two friends\nn2,,\n")
    (audience,), told = recommender.audiences(table, k=5)
    assert (audience.item_id, audience.title) == ("n1", "A quiet farm")
    assert told == [
        "item n2: Item 'n2' has nothing that this tower reads. It reads text, identity; give at least one of them."
    ]
    from avrec.export.item_tower import ExportedItemTower

    catalogue, log = recommender.catalogue, recommender.catalogue.log
    tower = ExportedItemTower(recommender.module.item_tower, {}, catalogue.text)
    vector = torch.from_numpy(tower.embed([{"title": "A quiet farm", "description": "Two friends"}])[0])
    ranks = []
    for user in range(len(catalogue.user_ids)):
        history = history_of(recommender, user)
        users = recommender.data.users.latest(np.array([user]), recommender.history)
        with torch.no_grad():
            query_D = recommender.module.user_tower.last(users, recommender.item_ND)[0]
        own = query_D @ vector
        better = [i for i, score in enumerate(recommender.item_ND @ query_D) if score >= own and i not in history]
        ranks.append(len(better) + 1)
    assert audience.rank_E.tolist() == ranks
    wanted = [user for user in np.argsort(ranks, kind="stable") if ranks[user] <= 5]
    assert audience.users == [catalogue.user_ids[user] for user in wanted]
    assert len(log) > 0


def test_new_items_that_are_old_or_empty_are_refused(recommender: Recommender, tmp_path: Path) -> None:
    known = next(iter(recommender.place))
    (tmp_path / "old.csv").write_text(f"item_id,title\n{known},A\n")
    with pytest.raises(UserError, match=f"item {known} is in the catalogue already"):
        recommender.audiences(tmp_path / "old.csv")
    (tmp_path / "empty.csv").write_text("item_id,title\nn1,\n")
    with pytest.raises(UserError, match="No item of .* can be embedded"):
        recommender.audiences(tmp_path / "empty.csv")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["avrec recommend", *arguments])
    return main()


def test_the_command_prints_tables(
    run: Path,
    recommender: Recommender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    user, item = recommender.catalogue.user_ids[0], next(iter(recommender.place))
    assert call(monkeypatch, f"run={run}", f"user={user}", "k=2") == 0
    assert recommender.for_user(user, 2)[1].title in capsys.readouterr().out
    assert call(monkeypatch, f"run={run}", f"history=[{item},{item}]") == 0
    assert "because of" in capsys.readouterr().out
    (tmp_path / "new.csv").write_text('item_id,title\nn1,"[bold]Up[/]"\nn2,\n')
    assert call(monkeypatch, f"run={run}", f"items={tmp_path / 'new.csv'}", "k=3") == 0
    out = capsys.readouterr().out
    assert "[bold]Up[/]" in out
    assert f"of {len(recommender.catalogue.user_ids)} (" in out
    assert "Item 'n2' has nothing that this tower reads" in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["user=1"], "Exactly one of ckpt, run must be given; got none."),
        (["run=x", "usr=1"], "Unknown key `usr`. Did you mean user?"),
        (
            ["run=nowhere", "user=1"],
            "nowhere/checkpoints/best.ckpt is not a file.",
        ),
        (["run=x"], "Exactly one of user, history, items must be given; got none."),
        (["run=x", "user=1", "history=2"], "Exactly one of user, history, items must be given; got user and history."),
        (["run=x", "user=1", "k=0"], "k must be a whole number from 1; got 0."),
        (["run=x", "user=1", "k=ten"], "k must be a whole number from 1; got ten."),
        (["run=here", "user=user-9"], "user=user-9 is not in the catalogue. "),
        (["run=here", "history=[film-00001,film-x]"], "history=film-x is not in the catalogue. "),
        (["run=here", "items=nothing.csv"], "items=nothing.csv is no folder and no table."),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    run: Path,
    given: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *(f"run={run}" if one == "run=here" else one for one in given)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_new_items_are_refused_where_a_feature_matrix_is_read(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextEncoder, "reads", "table")
    with pytest.raises(UserError, match="which new items have no row in"):
        recommender.audiences("new_items.csv")


def test_a_history_is_refused_where_none_is_read(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avrec.retrieval.recommend.UserVector", type(recommender.module.user_tower))
    with pytest.raises(UserError, match=r"history=a,b: .* reads no history"):
        recommender.for_history(["a", "b"])
