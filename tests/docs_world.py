"""A folder in which the commands and the Python of the docs mean something: the checkout, and all that they name, tiny.

my_catalogue, new_items.csv, vectors, the published datasets, DATA/…; the runs RUN and OTHER (also A and B).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
from test_extending import block

from avrec.data.sources.layouts.movielens import GENRES_100K

ROOT = Path(__file__).resolve().parent.parent
SMALL = "trainer.max_epochs=1 datamodule.prepare.workers=0"
ROWS = [(user, (user + k) % 16, 1_500_000_000 + 1000 * (16 * k + user)) for user in range(16) for k in range(8)]
"""An invented log: (user, item, time)."""


def typed(command: str, folder: Path) -> None:
    """Type a command in a shell there, whose ``python`` and ``avrec`` are these. It must end well."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    paths["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH")]))
    shell = ["bash", "-c", command]
    done = subprocess.run(
        shell, cwd=folder, env=os.environ | paths, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


def make_world(folder: Path, demo_root: Path) -> Path:
    """Fill the folder; ``demo_root`` is a tiny demo catalogue."""
    for name in ("train.py", "evaluate.py", "avrec", "conf", "benchmarks", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    write_catalogue(folder, demo_root)
    write_published(folder)
    (folder / "site" / "colours.py").write_text(block("colours.py"))
    (folder / "my_conf" / "vision").mkdir(parents=True)
    (folder / "my_conf" / "vision" / "colours.yaml").write_text(block("my_conf/vision/colours.yaml"))
    train = f"avrec train data=folder data.root=my_catalogue {SMALL}"
    typed(f"{train} logger=[csv,tensorboard] hydra.run.dir=RUN", folder)
    typed(f"{train} logger=none seed=1 hydra.run.dir=OTHER", folder)
    (folder / "A").symlink_to("RUN")
    (folder / "B").symlink_to("OTHER")
    return folder


def write_catalogue(folder: Path, demo_root: Path) -> None:
    """my_catalogue with the columns and ids that the pages name, DATA with more of it, and files of new items."""
    mine = folder / "my_catalogue"
    shutil.copytree(demo_root, mine)
    for path in mine.glob("*.csv"):
        path.write_text(re.sub(r"film-0*(\d+),", r"item_\1,", path.read_text()))
    for name, column, values in (
        ("items", "genre", ["Drama|War", "Comedy"]),
        ("items", "region", ["EU", "EU", "US"]),
        ("users", "country", ["NO", "UK"]),
    ):
        table = pl.read_csv(mine / f"{name}.csv")
        new = pl.Series(column, [values[row % len(values)] for row in range(len(table))])
        table.with_columns(new).write_csv(mine / f"{name}.csv")
    (folder / "DATA").mkdir()
    for name in ("movies-100k", "movies-1m", "music", "beauty"):
        (folder / "DATA" / name).symlink_to(mine)
    for name, old in (("new.mp4", "videos/*"), ("song.opus", "videos/*"), ("poster.jpg", "posters/*")):
        shutil.copy(next(mine.glob(old)), folder / name)
    (folder / "new_items.csv").write_text("item_id,title,video\nnew_1,A quiet farm,new.mp4\nnew_2,Two friends,\n")


def write_published(folder: Path) -> None:
    """A dataset of each layout, in the files as they are published."""
    films = range(16)
    atomic = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in ROWS)
    reviews = ({"rating": 4.0, "parent_asin": f"B{i}", "user_id": f"A{u}", "timestamp": t * 1000} for u, i, t in ROWS)
    meta = ({"title": f"Soap {n}", "features": [], "images": [], "parent_asin": f"B{n}"} for n in films)
    tables = {
        "ml-100k/u.data": "".join(f"{u}\t{i}\t4\t{t}\n" for u, i, t in ROWS),
        "ml-100k/u.item": "".join(f"{n}|Film {n}|01-Jan-1995||x|{'|'.join('1' for _ in GENRES_100K)}\n" for n in films),
        "ml-1m/ratings.dat": "".join(f"{u}::{i}::4::{t}\n" for u, i, t in ROWS),
        "ml-1m/movies.dat": "".join(f"{n}::Film {n}::Comedy|War\n" for n in films),
        "ml-32m/ratings.csv": "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},4,{t}\n" for u, i, t in ROWS),
        "ml-32m/movies.csv": "movieId,title,genres\n" + "".join(f"{n},Film {n},Comedy|War\n" for n in films),
        "dataset/lastfm/lastfm.inter": atomic,
        "site/recbole/__init__.py": "",
        "site/recbole/dataset_example/ml-100k/ml-100k.inter": atomic,
        "MicroLens-100k/MicroLens-100k_pairs.csv": "user,item,timestamp\n"
        + "".join(f"{u},{i},{t}000\n" for u, i, t in ROWS),
        "MicroLens-100k/MicroLens-100k_titles.csv": "".join(f"{n},Clip {n}\n" for n in films),
        "beauty/All_Beauty.jsonl": "".join(json.dumps(row) + "\n" for row in reviews),
        "beauty/meta_All_Beauty.jsonl": "".join(json.dumps(row) + "\n" for row in meta),
        "s3rec/Beauty.txt": "".join(f"{u} {i}\n" for u, i, _ in ROWS),
        "baby/baby.inter": "userID\titemID\trating\ttimestamp\tx_label\n"
        + "".join(f"{u}\t{i}\t5.0\t{t}\t{max(0, n % 8 - 5)}\n" for n, (u, i, t) in enumerate(ROWS)),
    }
    for name, text in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("image_feat", "text_feat"):
        np.save(folder / "baby" / f"{name}.npy", np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32))
