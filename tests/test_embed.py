"""Only new items are embedded, finished work stays, and broken files are reported at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from filelock import FileLock

import avrec
from avrec.cli.embed import main
from avrec.content.items import RawItem, TextFields
from avrec.data.sources.folder import FolderSource
from avrec.errors import UserError
from avrec.export.item_tower import export_item_tower
from avrec.retrieval import embed as module
from avrec.retrieval.embed import EmbedJob, embed, read_items
from avrec.towers.encoders.features import FeaturesEncoder
from avrec.towers.encoders.identity import IdentityEncoder
from avrec.towers.encoders.text import TextEncoder
from avrec.towers.encoders.vision import VisionEncoder
from avrec.towers.fusion import ConcatFusion
from avrec.towers.item_tower import ItemTower

FEW = 12


def export(folder: Path, catalogue: Path, seed: int = 0) -> Path:
    """An untrained tower of text, vision and identity."""
    torch.manual_seed(seed)
    items = FolderSource(catalogue).load()
    encoders = {
        "text": TextEncoder(width=16, depth=1, heads=2, vocab_size=300, max_tokens=24),
        "vision": VisionEncoder(size=32, video_frames=2),
        "identity": IdentityEncoder(len(items.items), width=6),
    }
    for encoder in encoders.values():
        if encoder.preprocess is not None:
            encoder.preprocess.fit(items.items)
    tower = ItemTower(encoders, ConcatFusion, 8)
    trained_N = np.arange(len(items.items)) % 4 != 1
    return export_item_tower(tower, folder, [i.item_id for i in items.items], trained_N, items.text)


@pytest.fixture(scope="module")
def tower(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("tower") / "item_tower", demo_root)


@pytest.fixture
def catalogue(demo_root: Path, tmp_path: Path) -> Path:
    """The first items of the demo, with files of their own, and no interactions: none are needed."""
    folder = tmp_path / "catalogue"
    rows = pl.read_csv(demo_root / "items.csv").head(FEW)
    for column in ("image", "video"):
        for name in filter(None, rows[column].to_list()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(demo_root / name, folder / name)
    rows.write_csv(folder / "items.csv")
    return folder


def change(catalogue: Path, edit) -> pl.DataFrame:
    rows = pl.DataFrame(edit(pl.read_csv(catalogue / "items.csv").to_dicts()))
    rows.write_csv(catalogue / "items.csv")
    return rows


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of what has been embedded, in this process."""
    ids: list[str] = []
    original = module.vectors_of

    def noting(tower, items):
        ids.extend(item.item_id for item in items)
        return original(tower, items)

    monkeypatch.setattr(module, "vectors_of", noting)
    return ids


def run(tower: Path, catalogue: Path, out: Path, shard_size: int = 5) -> pl.DataFrame:
    return pl.read_parquet(embed(tower, catalogue, out, shard_size=shard_size, workers=0))


def assert_same(there: pl.DataFrame, here: pl.DataFrame) -> None:
    assert there.drop("vector").equals(here.drop("vector"))
    np.testing.assert_allclose(there["vector"].to_numpy(), here["vector"].to_numpy(), atol=1e-6)


def test_the_vectors_are_the_towers_and_in_the_order_of_the_table(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    table = run(tower, catalogue, tmp_path / "out")
    exported = avrec.load_item_tower(tower)
    raw, titles = read_items(catalogue / "items.csv", exported)
    assert table.columns == ["item_id", "vector", "key"]
    assert table["item_id"].to_list() == [item.item_id for item in raw]
    assert titles == pl.read_csv(catalogue / "items.csv")["title"].to_list()
    np.testing.assert_allclose(table["vector"].to_numpy(), exported.embed(raw), atol=1e-6)
    assert table["key"].n_unique() == FEW
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["items.failures.json", "items.parquet"]


def test_only_what_is_new_is_embedded(tower: Path, catalogue: Path, tmp_path: Path, embedded: list[str]) -> None:
    first = run(tower, catalogue, tmp_path / "out")
    assert sorted(embedded) == sorted(first["item_id"])
    embedded.clear()
    assert run(tower, catalogue, tmp_path / "out").equals(first)
    assert embedded == []

    def edit(rows):
        rows[2]["title"] = "Another title"
        return [{**rows[3], "item_id": "new"}, *rows[1:]][::-1]

    change(catalogue, edit)
    image = next(row["image"] for row in pl.read_csv(catalogue / "items.csv").to_dicts()[:4] if row["image"])
    with (catalogue / image).open("ab") as file:
        file.write(b"more")
    second = run(tower, catalogue, tmp_path / "out")
    rows = pl.read_csv(catalogue / "items.csv")
    touched = rows.filter(pl.col("image") == image)["item_id"].to_list()
    assert sorted(embedded) == sorted({"new", first["item_id"][2], *touched})
    assert second["item_id"].to_list() == rows["item_id"].to_list()
    old, new = (dict(zip(t["item_id"], t["vector"].to_list(), strict=True)) for t in (first, second))
    assert old[first["item_id"][2]] != new[first["item_id"][2]]
    assert all(old[i] == new[i] for i in set(old) & set(new) - set(embedded))


def test_another_tower_embeds_all_anew(
    tower: Path, demo_root: Path, catalogue: Path, tmp_path: Path, embedded: list[str]
) -> None:
    place = shutil.copytree(tower, tmp_path / "tower")
    first = run(place, catalogue, tmp_path / "out")
    embedded.clear()
    (place / "README.md").write_text("A card changes no vector.")
    run(place, catalogue, tmp_path / "out")
    assert embedded == []
    export(place, demo_root, seed=1)
    second = run(place, catalogue, tmp_path / "out")
    assert sorted(embedded) == sorted(first["item_id"])
    assert not np.allclose(first["vector"].to_numpy(), second["vector"].to_numpy())


def test_what_was_finished_before_an_interruption_stays(
    tower: Path, catalogue: Path, tmp_path: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tower, catalogue, tmp_path / "whole")
    change(catalogue, lambda rows: [*rows[1:], {**rows[0], "image": "nowhere.png"}])
    embedded.clear()
    store = EmbedJob._store
    shards: list[int] = []

    def dying(job, found, failures):
        if len(shards) == 2:
            raise KeyboardInterrupt
        shards.append(len(found))
        store(job, found, failures)

    monkeypatch.setattr(EmbedJob, "_store", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tower, catalogue, tmp_path / "out")
    assert not (tmp_path / "out" / "items.parquet").exists()
    (tmp_path / "out" / "parts" / "damaged.parquet").write_bytes(b"half")
    monkeypatch.setattr(EmbedJob, "_store", store)
    embedded.clear()
    table = run(tower, catalogue, tmp_path / "out")
    assert len({*embedded}) == FEW - sum(shards)
    assert {*table["item_id"]} == {*whole["item_id"]}
    assert len(json.loads((tmp_path / "out" / "items.failures.json").read_text())) == 1


def test_broken_files_are_told_at_the_end_and_tried_again_when_mended(
    tower: Path, catalogue: Path, tmp_path: Path, embedded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (catalogue / "broken.png").write_bytes(b"no picture")
    blank = {"title": None, "description": None, "image": None, "video": None}

    def edit(rows):
        rows[0] |= {"image": "broken.png", "video": None}
        return [*rows, {**rows[1], **blank, "item_id": "empty"}]

    rows = change(catalogue, edit)
    table = run(tower, catalogue, tmp_path / "out")
    assert table["item_id"].to_list() == rows["item_id"].to_list()[:-1]
    failures = json.loads((tmp_path / "out" / "items.failures.json").read_text())
    told = sorted(failures.values())
    assert "broken.png" in "".join(told)
    assert "is not a picture" in "".join(told)
    assert any(text.startswith("item empty: Item 'empty' has nothing that this tower reads") for text in told)
    assert table["key"][0] in failures
    assert "2 items could not be used whole: " in capsys.readouterr().out
    embedded.clear()
    run(tower, catalogue, tmp_path / "out")
    assert embedded == []
    assert json.loads((tmp_path / "out" / "items.failures.json").read_text()) == failures
    shutil.copy2(next((catalogue / "posters").iterdir()), catalogue / "broken.png")
    run(tower, catalogue, tmp_path / "out")
    assert embedded == [rows["item_id"][0]]
    assert len(json.loads((tmp_path / "out" / "items.failures.json").read_text())) == 1


def test_a_device_is_used_by_one_process(
    tower: Path, catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, devices = run(tower, catalogue, tmp_path / "here"), []
    original = module.load_item_tower

    def on_another(folder, device="cpu", classes=()):
        devices.append(device)
        return original(folder, classes=classes)

    monkeypatch.setattr(module, "load_item_tower", on_another)
    there = pl.read_parquet(embed(tower, catalogue, tmp_path / "there", device="cuda:7", workers=2))
    assert devices == ["cuda:7"] * 2, "a worker would not know of the stand-in"
    assert_same(there, here)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    here = run(tower, catalogue, tmp_path / "here")
    there = pl.read_parquet(embed(tower, catalogue, tmp_path / "there", device="cuda"))
    np.testing.assert_allclose(there["vector"].to_numpy(), here["vector"].to_numpy(), atol=1e-3)


def test_a_table_under_its_own_column_names(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    here = run(tower, catalogue, tmp_path / "here")
    names = {"item_id": "movieId", "title": "name", "image": "poster"}
    pl.read_csv(catalogue / "items.csv").rename(names).write_csv(catalogue / "items.csv")
    there = pl.read_parquet(embed(tower, catalogue, tmp_path / "there", workers=0, columns=names))
    assert_same(there, here)


def test_columns_that_the_tower_misses_are_told(
    tower: Path, catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tower, catalogue, tmp_path / "whole")
    assert "which the tower reads" not in capsys.readouterr().err
    pl.read_csv(catalogue / "items.csv").rename({"title": "name", "image": "poster"}).write_csv(catalogue / "items.csv")
    assert len(run(tower, catalogue, tmp_path / "part")) == FEW
    told = capsys.readouterr().err
    assert "items.csv has no title, image, which the tower reads" in told
    assert "say so: columns='{title: NAME}'" in told


def test_where_no_item_gets_a_vector_nothing_is_replaced(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    before = run(tower, catalogue, tmp_path / "out")
    pl.DataFrame({"item_id": ["new1", "new2"], "name": ["A", "B"]}).write_csv(catalogue / "items.csv")
    for _ in range(2):
        with pytest.raises(UserError, match=r"No item of .* got a vector.* Item 'new1' has nothing that this tower"):
            run(tower, catalogue, tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "items.parquet").equals(before)
    assert not (tmp_path / "out" / "parts").exists()


def test_an_item_that_ends_its_process_is_lost_alone(tmp_path: Path) -> None:
    job = EmbedJob(tmp_path, tmp_path, "weights")
    item = RawItem("killer", image=Path("/a/bomb.png"))
    job.mark_failed("k1", item, "Segmentation fault")
    job.mark_failed("k2", item, None)
    told = [json.loads(path.read_text()) for path in tmp_path.glob("*.failures.json")]
    assert sorted(text for entry in told for text in entry.values()) == [
        "item killer: /a/bomb.png ended its process (Segmentation fault)",
        "item killer: /a/bomb.png took longer than 120 s",
    ]


# ---------------------------------------------------------------------------------------------------------
# Processes


def test_a_path_is_no_pattern_and_what_is_no_parquet_stays(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out [1]"
    for _ in range(2):
        path = embed(tower, catalogue, out, workers=0)
        assert len(pl.read_parquet(path, glob=False)) == FEW
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="was written by something else"):
        embed(tower, catalogue, out, workers=0)
    assert path.read_bytes() == b"PAR1"


def test_a_folder_is_written_by_one_process(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UserError, match="is being written by another process"):
        embed(tower, catalogue, tmp_path / "out", workers=0)
    assert embed(tower, catalogue, tmp_path / "out", workers=0).is_file()


@pytest.mark.slow
def test_a_kill_loses_a_shard_at_most_and_workers_give_the_same(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    arguments = [f"tower={tower}", f"items={catalogue}", f"out={tmp_path / 'out'}", "shard_size=1", "workers=1"]
    command = [sys.executable, "-m", "avrec.retrieval.embed", *arguments]
    process = subprocess.Popen(command, start_new_session=True)
    parts = tmp_path / "out" / "parts"
    while process.poll() is None and len([*parts.glob("*.parquet")]) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len([*parts.glob("[!.]*.parquet")])
    assert 3 <= done <= FEW
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{FEW} of {FEW} items" in told
    assert f"{FEW - done} were new" in told
    here = run(tower, catalogue, tmp_path / "here")
    there = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert_same(there, here)


@pytest.mark.slow
def test_ray_gives_the_same(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'avrec[ray]'")
    (catalogue / "broken.png").write_bytes(b"no picture")
    change(catalogue, lambda rows: [{**rows[0], "image": "broken.png", "video": None}, *rows[1:]])
    here = run(tower, catalogue, tmp_path / "here")
    there = pl.read_parquet(embed(tower, catalogue, tmp_path / "ray", executor="ray", shard_size=5))
    assert_same(there, here)
    here_told, told = (json.loads((tmp_path / o / "items.failures.json").read_text()) for o in ("here", "ray"))
    assert told == here_told != {}


# ---------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["items=x", "out=x"], "Exactly one of tower, run must be given; got none."),
        (["tower={tower}", "out=x"], "`items` must be given"),
        (["tower={tower}", "items={items}", "out={out}", "shards=3"], "Unknown key `shards`. Did you mean shard_size?"),
        (
            ["tower={tower}", "items={items}", "out={out}", "shard_size=x"],
            "`shard_size` must be an integer ≥ 1; got x.",
        ),
        (
            ["tower={tower}", "items={items}", "out={out}", "shard_size=0"],
            "`shard_size` must be an integer ≥ 1; got 0.",
        ),
        (
            ["tower={tower}", "items={items}", "out={out}", "executor=spark"],
            "must be one of local, ray; got spark.",
        ),
        (["tower={tower}", "items={items}", "out={out}", "device=warp"], "device=warp cannot be used: "),
        (
            ["tower={tower}", "items={items}", "out={out}", "device=cuda", "executor=ray"],
            "needs executor=local",
        ),
        (
            ["tower={tower}", "items={items}", "out={out}", "columns=title"],
            "such as 'columns={title: name}'; got title.",
        ),
        (["tower={tower}", "items={items}", "out={out}", "columns={{title: name}}"], "columns.title=name: "),
        (["tower={tower}", "items={items}", "out={out}", "columns={{titel: name}}"], "Did you mean title?"),
        (["tower=nowhere", "items={items}", "out={out}"], "is not an exported item tower. Use RUN/item_tower."),
        (["tower={tower}", "items={items}/posters", "out={out}"], "has no items table"),
        (["tower={tower}", "items={items}/nothing.csv", "out={out}"], "is no folder and no table"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tower: Path,
    catalogue: Path,
    tmp_path: Path,
    given: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"tower": tower, "items": catalogue, "out": tmp_path / "out"}
    monkeypatch.setattr(sys, "argv", ["avrec embed", *(argument.format(**places) for argument in given)])
    assert main() == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_tower_of_a_feature_matrix_is_refused(catalogue: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.ones((FEW, 4), np.float32))
    encoders = {"text": partial(FeaturesEncoder, "text", "matrix.npy")(root=tmp_path)}
    export_item_tower(ItemTower(encoders, ConcatFusion, 8), tmp_path / "tower", [], np.zeros(0), TextFields())
    with pytest.raises(UserError, match="reads a feature matrix, which new items have no row in"):
        embed(tmp_path / "tower", catalogue, tmp_path / "out")


def test_a_runs_own_embeddings_are_not_replaced(tower: Path, catalogue: Path, tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a"], "vector": [[1.0]]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(UserError, match="was written by something else"):
        embed(tower, catalogue, tmp_path, workers=0)
    assert pl.read_parquet(tmp_path / "items.parquet").columns == ["item_id", "vector"]


def test_items_under_a_runs_own_column_names(tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "new.csv").write_text("song,name,clip\n007,Up,clip.mp4\n")
    names = {"item_id": "song", "title": "name", "video": "clip", "image": "poster"}
    items, titles = read_items(tmp_path / "new.csv", avrec.load_item_tower(tower), names)
    told = capsys.readouterr().err
    assert "new.csv has no description, poster, which the tower reads" in told
    assert "It has song, name, clip. If one of them is meant, rename it." in told
    assert titles == ["Up"]
    assert (items[0].item_id, items[0].text, items[0].video) == ("007", "Up", tmp_path / "clip.mp4")


@pytest.mark.parametrize(("embeds", "advice"), [(True, ", or say which it is: columns='{item_id: NAME}'"), (False, "")])
def test_a_missing_column_is_named_as_its_command_takes_it(
    tower: Path, tmp_path: Path, embeds: bool, advice: str
) -> None:
    (tmp_path / "new.csv").write_text("song\n007\n")
    with pytest.raises(UserError) as error:
        read_items(tmp_path / "new.csv", avrec.load_item_tower(tower), all_there=embeds)
    assert str(error.value).endswith(f"It has song. Rename the column that is meant to item_id{advice}.")
