"""The same items on a Ray cluster: the same content, and one bad item costs itself there, too."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avrec.batch import Array
from avrec.content.items import Decoded, RawItem
from avrec.content.limits import Limits
from avrec.content.prepare import prepare_content
from avrec.content.workers import EXECUTORS
from avrec.data.sources.folder import FolderSource
from avrec.errors import UserError
from avrec.towers.encoders.preprocess import AudioPreprocess, VisionPreprocess


class Pixels(VisionPreprocess):
    """Black pictures kill their process, white ones never end."""

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        brightness = decoded.image.mean() if decoded.image is not None else 100
        if brightness == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if brightness == 255:
            time.sleep(600)
        return super().__call__(decoded)


@pytest.fixture
def cluster() -> Iterator[None]:
    """Two nodes of one CPU each."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'avrec[ray]'")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()
    nodes.shutdown()


def make_items(folder: Path, levels: list[int]) -> list[RawItem]:
    folder.mkdir()
    for index, level in enumerate(levels):
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{index}.png")
    return [RawItem(f"i{index}", image=folder / f"{index}.png") for index in range(len(levels))]


@pytest.mark.slow
def test_ray_gives_the_same_bits_and_outlives_killers_and_hangs(tmp_path: Path, cluster: None) -> None:
    items = make_items(tmp_path / "media", [*range(1, 71), 0, 255])
    preprocess = Pixels(size=8, video_frames=0)
    preprocess.fit(items)
    prepared = prepare_content(items, preprocess, tmp_path / "ray", executor="ray", limits=Limits(item_seconds=3))
    failed = {e["item_id"]: e["reason"] for e in json.loads((tmp_path / "ray" / "quarantine.json").read_text())}
    assert failed == {
        "i70": "ended the process that read it (a crash, or not enough memory)",
        "i71": "took longer than the 3 s of datamodule.prepare.limits.item_seconds",
    }
    here = prepare_content(items[:70], preprocess, tmp_path / "here")
    expected = here.read(np.arange(70))
    for name, values in prepared.read(np.arange(70)).items():
        np.testing.assert_array_equal(values, expected[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vision", "audio"])
def test_ray_decodes_real_video_and_sound_to_the_same_bits(
    kind: str, demo_root: Path, tmp_path: Path, cluster: None
) -> None:
    items = FolderSource(demo_root).load().items
    assert sum(item.video is not None for item in items) > 20
    preprocess = VisionPreprocess(size=32, video_frames=3) if kind == "vision" else AudioPreprocess(seconds=2.0)
    preprocess.fit(items)
    here, there = (
        prepare_content(items, preprocess, tmp_path / executor, workers=2, executor=executor) for executor in EXECUTORS
    )
    np.testing.assert_array_equal(here.present_N, there.present_N)
    having = np.flatnonzero(here.present_N)
    expected = here.read(having)
    assert sum(values.astype(float).std() > 0 for values in expected.values()) > 0
    for name, values in there.read(having).items():
        np.testing.assert_array_equal(values, expected[name])


def test_ray_that_is_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    items = make_items(tmp_path / "media", [5])
    with pytest.raises(UserError, match=r"pip install 'avrec\[ray\]', or use executor=local"):
        prepare_content(items, VisionPreprocess(size=8), tmp_path / "cache", executor="ray")


def test_an_unknown_executor_names_those_there_are(tmp_path: Path) -> None:
    assert list(EXECUTORS) == ["local", "ray"]
    with pytest.raises(UserError, match="executor must be local or ray; got spark"):
        prepare_content([], VisionPreprocess(size=8), tmp_path, executor="spark")
