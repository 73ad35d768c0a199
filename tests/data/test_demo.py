"""The demo source: what is planted, what is written, and what is kept."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
from PIL import Image

from avrec.data.demo.domains import DOMAINS, write_text
from avrec.data.demo.media import item_rng
from avrec.data.demo.pictures import compose, draw_poster
from avrec.data.demo.sound import SAMPLE_RATE, SECONDS, play
from avrec.data.demo.source import DemoSource
from avrec.data.demo.world import COLD_FROM, FACETS, MODALITY_FACETS, SPAN, START, World, WorldSize, make_world
from avrec.errors import UserError

TINY = {"num_items": 24, "num_users": 60, "num_interactions": 240}
TABLES = ("items.csv", "interactions.csv", "users.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return DemoSource(tmp_path_factory.mktemp("demo"), **TINY).write()


@pytest.fixture
def without_media(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avrec.data.demo.source.make_media", lambda *_: None)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world("film", WorldSize(num_items=120, num_users=200, num_interactions=4000), seed=0)


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.stack(frames), np.concatenate(sound)


def files_of(folder: Path, column: str) -> list[Path]:
    names = pl.read_csv(folder / "items.csv")[column].drop_nulls().to_list()
    return [folder / name for name in names if name]


# What is written


def test_the_same_seed_gives_the_same_tables_and_the_same_decoded_media(folder: Path, tmp_path: Path) -> None:
    again = DemoSource(tmp_path, **TINY).write()
    assert again.name == folder.name
    for table in TABLES:
        assert (again / table).read_bytes() == (folder / table).read_bytes()
    for path in files_of(folder, "video")[:6]:
        for ours, theirs in zip(decoded(path), decoded(again / "videos" / path.name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for path in files_of(folder, "image"):
        np.testing.assert_array_equal(Image.open(path), Image.open(again / "posters" / path.name))


@pytest.mark.usefixtures("without_media")
def test_another_seed_gives_another_catalogue(folder: Path, tmp_path: Path) -> None:
    other = DemoSource(tmp_path, **TINY, seed=1).write()
    assert other.name != folder.name
    for table in TABLES:
        assert (other / table).read_bytes() != (folder / table).read_bytes()


def test_the_folder_holds_what_the_design_says(folder: Path) -> None:
    items, interactions, users = (pl.read_csv(folder / table) for table in TABLES)
    assert items.columns == ["item_id", "title", "description", "image", "video", "published"]
    assert interactions.columns == ["user_id", "item_id", "timestamp", "watch_ratio"]
    assert users.columns == ["user_id", "plan", "age"]
    assert (len(items), len(users), len(interactions)) == (24, 60, 240)
    assert set(interactions["item_id"]) <= set(items["item_id"])
    assert set(interactions["user_id"]) == set(users["user_id"])
    assert interactions["timestamp"].is_sorted()
    assert interactions["watch_ratio"].is_between(0, 1, closed="right").all()


def test_media_are_small_real_files(folder: Path) -> None:
    frames, sound = decoded(files_of(folder, "video")[0])
    assert frames.shape == (24, 96, 96, 3)
    assert SECONDS * SAMPLE_RATE <= len(sound) < (SECONDS + 0.2) * SAMPLE_RATE
    assert 0.05 < np.abs(sound).max() <= 1
    with av.open(str(files_of(folder, "video")[0])) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert (container.streams.audio[0].rate, container.streams.audio[0].channels) == (SAMPLE_RATE, 1)


def test_some_items_lack_a_modality_and_no_file_is_missing_or_left_over(folder: Path) -> None:
    for column, subfolder in (("image", "posters"), ("video", "videos")):
        files = files_of(folder, column)
        assert 0 < len(files) < 24
        assert sorted(files) == sorted((folder / subfolder).iterdir())
    assert 0 < pl.read_csv(folder / "items.csv")["description"].drop_nulls().str.len_chars().gt(0).sum() < 24


@pytest.mark.parametrize("threads", [1, 3])
def test_however_many_threads_make_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr("avrec.data.demo.source.THREADS", threads)
    together = DemoSource(tmp_path, **TINY).write()
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert names == sorted(path.relative_to(together) for path in together.rglob("*.*"))
    for path in files_of(folder, "video"):
        assert path.read_bytes() == (together / "videos" / path.name).read_bytes()


# What is kept


def test_a_second_write_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert DemoSource(folder.parent, **TINY).write() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.usefixtures("without_media")
def test_what_an_interrupted_write_left_behind_is_removed(tmp_path: Path) -> None:
    source = DemoSource(tmp_path, **TINY)
    leftover = tmp_path / f".{source.folder.name}.partial-abc"
    leftover.mkdir()
    (leftover / "items.csv").write_text("half")
    source.write()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [source.folder.name]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("avrec.data.demo.source.make_media", fail)
    with pytest.raises(KeyboardInterrupt):
        DemoSource(tmp_path, **TINY).write()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_two_processes_at_once_give_one_catalogue(tmp_path: Path) -> None:
    code = f"from avrec.data.demo.source import DemoSource; print(DemoSource({str(tmp_path)!r}, **{TINY}).write())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert printed == {str(path) for path in tmp_path.iterdir() if path.is_dir()}


# What is planted


def test_nobody_sees_an_item_before_it_is_published_or_twice(world: World) -> None:
    assert (world.log.time_W > world.published_N[world.log.item_W]).all()
    assert len(set(zip(world.log.user_W.tolist(), world.log.item_W.tolist(), strict=True))) == len(world.log.user_W)
    assert (world.log.time_W >= START).all()
    assert world.log.time_W.max() < START + SPAN + 86_400


def test_a_users_choices_are_at_different_moments(world: World) -> None:
    assert len(set(zip(world.log.user_W.tolist(), world.log.time_W.tolist(), strict=True))) == len(world.log.user_W)


def test_cold_items_are_there_only_in_the_last_stretch_and_are_chosen(world: World) -> None:
    last_stretch = START + COLD_FROM * SPAN
    cold_N = world.published_N >= last_stretch
    assert 0.08 <= cold_N.mean() <= 0.12
    assert (world.log.time_W[cold_N[world.log.item_W]] > last_stretch).all()
    in_test = world.log.time_W > np.quantile(world.log.time_W, 0.9)
    assert cold_N[world.log.item_W[in_test]].mean() > 0.05


def test_few_items_have_much_of_the_attention(world: World) -> None:
    counts = np.sort(np.bincount(world.log.item_W, minlength=120))[::-1]
    assert counts[:12].sum() / counts.sum() > 0.16
    activity = np.bincount(world.log.user_W)
    assert activity.max() > 2 * np.median(activity) > 2 * activity.min()


def test_watch_ratio_rises_with_the_true_utility(world: World) -> None:
    taste_WV = world.truth.taste(world.log.user_W, world.log.time_W)
    utility = [
        world.truth.utility(taste_1V[None], item_1[None])[0, 0]
        for taste_1V, item_1 in zip(taste_WV, world.log.item_W, strict=True)
    ]
    assert 0.5 < np.corrcoef(utility, world.log.watch_ratio_W)[0, 1] < 0.95


def test_the_modalities_share_the_facets_among_them() -> None:
    revealed = [facet for facets in MODALITY_FACETS.values() for facet in facets]
    assert sorted(revealed) == sorted(FACETS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_within_a_value_things_vary_and_across_values_they_differ(domain: str) -> None:
    texts = [write_text(domain, n % 8, n % 6, item_rng(0, n, 0)) for n in range(200)]
    assert len({title for title, _ in texts}) > 150
    assert len(set(texts)) == 200
    for make in (
        lambda value, rng: write_text(domain, value, 0, rng),
        lambda value, rng: write_text(domain, 0, value, rng),
        lambda value, rng: draw_poster(domain, 0, compose(domain, value, rng)).tobytes(),
        lambda value, rng: draw_poster(domain, value, compose(domain, 0, rng)).tobytes(),
        lambda value, rng: play(domain, value, 0, rng).tobytes(),
        lambda value, rng: play(domain, 0, value, rng).tobytes(),
    ):
        assert len({make(value, item_rng(0, 5, 0)) for value in range(6)}) == 6
        assert len({make(0, item_rng(0, number, 0)) for number in range(4)}) == 4


def test_what_an_item_is_in_one_modality_does_not_depend_on_the_others(folder: Path, tmp_path: Path) -> None:
    """Change all sound facets of the world: texts and posters stay the same, byte for byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avrec.data.demo.source.make_world", _with_other_sound)
        other = DemoSource(tmp_path, **TINY).write()
    assert (other / "items.csv").read_bytes() == (folder / "items.csv").read_bytes()
    for path in files_of(folder, "image"):
        assert path.read_bytes() == (other / "posters" / path.name).read_bytes()
    frames, sound = decoded(files_of(folder, "video")[0])
    other_frames, other_sound = decoded(files_of(other, "video")[0])
    np.testing.assert_array_equal(frames, other_frames)
    assert not np.array_equal(sound, other_sound)


def _with_other_sound(domain: str, size: WorldSize, seed: int) -> World:
    world = make_world(domain, size, seed)
    world.truth.facets_NF[:, 4:] = (world.truth.facets_NF[:, 4:] + 1) % 6
    return world


# The oracle


def test_true_scores_have_a_row_per_user_and_a_column_per_item(folder: Path) -> None:
    source = DemoSource(folder.parent, **TINY)
    users, items = ["user-00003", "user-00001"], ["film-00005", "film-00000", "film-00011"]
    scores = source.true_scores(users, items, START + SPAN / 2)
    assert scores.shape == (2, 3)
    assert scores.dtype == np.float32
    swapped = source.true_scores(users[::-1], items[::-1], START + SPAN / 2)
    np.testing.assert_array_equal(scores, swapped[::-1, ::-1])


def test_the_oracle_ranks_later_choices_far_above_chance_and_one_modality_does_less(world: World) -> None:
    cut = np.quantile(world.log.time_W, 0.8)
    later = world.log.time_W > cut
    user_W, item_W = world.log.user_W[later], world.log.item_W[later]
    taste_BV = world.truth.later_taste(np.arange(200), cut)

    def mean_rank(modalities: list[str] | None) -> float:
        scores = world.truth.utility(taste_BV, np.arange(120), modalities) + world.truth.appeal_N
        ranks = (-scores).argsort(axis=1).argsort(axis=1)
        return ranks[user_W, item_W].mean() / 119

    whole = mean_rank(None)
    assert whole < 0.25
    assert all(mean_rank([modality]) > whole + 0.04 for modality in MODALITY_FACETS)


def test_the_oracle_knows_the_mean_taste_that_is_yet_to_come(world: World) -> None:
    user_B = np.arange(5)
    last_B = world.truth.active_B2[user_B, 1]
    at_the_end = world.truth.taste(user_B, last_B)
    np.testing.assert_allclose(world.truth.later_taste(user_B, float(last_B.max())), at_the_end, rtol=1e-5)
    middle = world.truth.later_taste(user_B, START)
    np.testing.assert_allclose(middle.mean(), world.truth.anchors_BAV[user_B].mean(), atol=0.2)


# Mistakes


def test_an_unknown_domain_is_refused_with_those_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="domain must be one of film, music, game, course; got 'opera'"):
        DemoSource(tmp_path, domain="opera")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 19}, "num_items must be at least 20, so that some are cold; got 19"),
        ({"num_users": 3}, "num_users must be at least 10; got 3"),
        ({"num_interactions": 100}, "num_interactions=100 does not fit 60 users and 24 items"),
        ({"num_interactions": 5000}, "Use 180 to 540"),
        ({"seed": -1}, r"`seed` must be an integer in \[0, "),
    ],
)
def test_numbers_that_cannot_work_are_refused(tmp_path: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DemoSource(tmp_path, **{**TINY, **change})


@pytest.mark.parametrize(("items", "users", "wanted"), [(600, 2000, 60_000), (20, 10, 75), (60, 100, 2250)])
def test_interactions_go_with_users_and_items(tmp_path: Path, items: int, users: int, wanted: int) -> None:
    assert DemoSource(tmp_path, num_items=items, num_users=users).size.num_interactions == wanted


def test_a_name_that_is_not_in_the_catalogue_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="user 'nobody' is not in the demo catalogue"):
        DemoSource(folder.parent, **TINY).true_scores(["nobody"], ["film-00000"], START)


def test_the_smallest_and_the_fullest_world_hold_together() -> None:
    world = make_world("game", WorldSize(num_items=20, num_users=10, num_interactions=75), seed=3)
    assert (world.log.time_W > world.published_N[world.log.item_W]).all()
    assert len(set(zip(world.log.user_W.tolist(), world.log.item_W.tolist(), strict=True))) == 75
