"""Shared by all tests: offline, quiet, and a tiny catalogue with real files."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
# A second thread only waits on tensors this small, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command run in this process sets up logging; its handlers write to a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny demo catalogue with videos, posters, sound and text."""
    from avrec.data.demo.source import DemoSource

    root = tmp_path_factory.mktemp("demo")
    source = DemoSource(root, num_items=32, num_users=24, num_interactions=240)
    return source.write()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, demo_root: Path) -> Path:
    """A folder in which the names on the docs' pages are there: RUN, my_catalogue, …"""
    from docs_world import make_world

    return make_world(tmp_path_factory.mktemp("world"), demo_root)


@pytest.fixture(scope="session")
def compose_cfg(tmp_path_factory: pytest.TempPathFactory):
    """Compose conf/train.yaml for a tiny catalogue: fast settings, no logger."""
    from hydra import compose, initialize_config_dir

    cache = tmp_path_factory.mktemp("cache")
    conf = Path(__file__).resolve().parent.parent / "conf"

    def make(*overrides: str, run_dir: Path | None = None):
        run = run_dir or tmp_path_factory.mktemp("run")
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose(
                "train",
                overrides=[
                    f"run_dir={run}",
                    f"cache_dir={cache}",
                    "logger=none",
                    "report=false",
                    "data.num_items=32",
                    "data.num_users=24",
                    "data.num_interactions=240",
                    "datamodule.users_per_batch=8",
                    "datamodule.prepare.workers=0",
                    "trainer.max_epochs=1",
                    "trainer.accelerator=cpu",
                    "text.width=16",
                    "text.vocab_size=512",
                    "audio.width=16",
                    "audio.seconds=2.0",
                    "vision.size=32",
                    "dim=16",
                    *overrides,
                ],
            )

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)
