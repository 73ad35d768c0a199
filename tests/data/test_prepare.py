"""avrec.cli.prepare: what it prepares, training finds."""

import logging
from pathlib import Path
from typing import Any

import pytest

from avrec.cli.prepare import prepare
from avrec.run import build


def shards(cache: Path) -> dict[str, int]:
    """When each shard was written, by its name."""
    return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in cache.glob("*/shard-*.json")}


def test_training_finds_what_was_prepared(tmp_path: Path, compose_cfg: Any, caplog: pytest.LogCaptureFixture) -> None:
    cfg = compose_cfg(f"datamodule.prepare.cache_dir={tmp_path}")
    with caplog.at_level(logging.INFO):
        prepare(cfg)
    assert "32 items: text 32, vision 32, audio" in caplog.text
    written = shards(tmp_path)
    assert {name.split("-")[0] for name in written} == {"text", "vision", "audio"}
    run = build.build_run(cfg)
    run.data.prepare(run.module.item_tower)
    assert shards(tmp_path) == written


def test_a_mistake_is_one_message(compose_cfg: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        prepare(compose_cfg("executor=spark"))
    assert "executor` must be one of local, ray; got spark." in capsys.readouterr().err
