"""Every block of Python in README and docs, and the notebook, run as printed, in the folder of tests/docs_world.py."""

import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs_world import typed
from test_docs import PAGES, ROOT

import avrec

LEFT_OUT = {
    "# in plain Python": "tests/test_readme.py runs it",
    "from huggingface_hub": "sends to the Hub",
}
"""How a block begins that is not run, and why."""

BLOCKS = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.S) for page in PAGES}
PRINTED = [(page, number) for page, blocks in BLOCKS.items() for number in range(len(blocks))]


@pytest.fixture(scope="module")
def place(world: Path) -> Path:
    """The world after what the pages say before their blocks: vectors, and both exported programs."""
    tower = world / "RUN" / "item_tower"
    typed("avrec export ckpt=RUN/checkpoints/best.ckpt target=both format=onnx", world)
    shutil.copytree(tower / "onnx", world / "onnx")
    typed("avrec export ckpt=RUN/checkpoints/best.ckpt format=torch_export", world)
    shutil.move(world / "onnx", tower / "onnx")
    typed("avrec embed tower=RUN/item_tower items=my_catalogue out=vectors", world)
    return world


@pytest.fixture(scope="module")
def names() -> dict[str, dict[str, Any]]:
    """What each page's blocks have defined so far, and what retrieval.md leaves to the reader."""
    rng = np.random.default_rng(0)
    one_each = {"queries": rng.normal(size=(2, 64)).astype(np.float32), "vectors": np.ones((1, 64), np.float32)}
    ids = {"in_stock": ["item_1", "item_2", "item_3"], "withdrawn": ["item_2"]}
    seen = {"had_by_first_user": ["item_1"], "had_by_second_user": []}
    return {page: {"__name__": page} | (one_each | ids | seen if page == "retrieval.md" else {}) for page in BLOCKS}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), PRINTED)
def test_a_printed_block_runs(
    page: str, number: int, place: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = BLOCKS[page][number]
    for begin, reason in LEFT_OUT.items():
        if code.startswith(begin):
            pytest.skip(reason)
    for package in ("psycopg", "qdrant_client"):
        if package in code and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    database = os.environ.get("AVREC_TEST_PGVECTOR")
    if "psycopg" in code and not database:
        pytest.skip("AVREC_TEST_PGVECTOR=CONNECTION names no database in which a table may be made")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place / "site")
    # Qdrant's client has all that its server has, in memory.
    code = code.replace('"localhost"', '":memory:"').replace('"dbname=shop"', repr(database))
    exec(code, names[page])
    sys.modules.pop("colours", None)  # tests/test_extending.py looks who imports it


def test_what_is_left_out_is_printed_somewhere() -> None:
    printed = [code for blocks in BLOCKS.values() for code in blocks]
    assert [begin for begin in LEFT_OUT if not any(code.startswith(begin) for code in printed)] == []


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    defined: dict[str, Any] = {"__name__": "__main__"}
    for cell in code:
        exec("".join(cell["source"]), defined)
    assert defined["vectors"].shape == (2, 64)
    assert [len(ids) for ids in defined["found"].ids] == [5, 5, 5]


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(name.rpartition(".")[2] for name in shown) == sorted(avrec.__all__)
