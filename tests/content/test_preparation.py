"""Preparation: what is done once, what is done again, and what happens when something fails."""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avrec.batch import Array
from avrec.content import keys as content_keys
from avrec.content import workers as executors
from avrec.content.items import Decoded, DecodeRequest, RawItem
from avrec.content.limits import Limits
from avrec.content.prepare import prepare_content
from avrec.content.preprocess import ArraySpec
from avrec.errors import UserError
from avrec.io import file_digest

RED, GREEN, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)


def hang() -> None:
    """As a decoder hangs: in C, without ever letting another thread of Python have its turn."""
    ctypes.PyDLL(None).pause()


@dataclass
class Thumbnail:
    """The mean colour of the picture; does as the picture's first pixel says."""

    scale: int = 1
    calls: list[Decoded] = field(default_factory=list)
    slowly: float = 0.0
    mended: bool = False
    modality: str = "vision"

    def fit(self, items: list[RawItem]) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def request(self) -> DecodeRequest:
        return DecodeRequest(image=True)

    def arrays(self) -> dict[str, ArraySpec]:
        return {"colour": ArraySpec((3,), "float32"), "noise": ArraySpec((4,), "uint8")}

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        self.calls.append(decoded)
        time.sleep(self.slowly)
        if decoded.image is None:
            return None
        first = tuple(decoded.image[0, 0].tolist())
        if first == RED and not self.mended:
            raise RuntimeError("red is refused")
        if first == BLACK:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == GREEN:
            hang()
        if first == WHITE:
            np.ones(1 << 30, np.uint8)
        digest = hashlib.sha256(decoded.image.tobytes()).digest()
        colour = decoded.image.mean(axis=(0, 1), dtype=np.float32) * self.scale
        return {"colour": colour, "noise": np.frombuffer(digest, np.uint8, 4)}


class Words(Thumbnail):
    def request(self) -> DecodeRequest:
        return DecodeRequest(text=True)

    def __call__(self, decoded: Decoded) -> dict[str, Array] | None:
        self.calls.append(decoded)
        values = np.full(3, len(decoded.text or ""), np.float32)
        return {"colour": values, "noise": np.zeros(4, np.uint8)} if decoded.text else None


@dataclass
class Halved:
    """Frozen layers."""

    weights: int = 1
    batches: list[int] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def arrays(self) -> dict[str, ArraySpec]:
        return {"half": ArraySpec((3,), "float32")}

    def __call__(self, content: dict[str, Array]) -> dict[str, Array]:
        self.batches.append(len(content["colour"]))
        return {"half": content["colour"] / 2}


def make_items(folder: Path, count: int, colours: dict[int, tuple[int, int, int]] | None = None) -> list[RawItem]:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        colour = (colours or {}).get(index, (index % 256, 100, 255 - index % 256))
        Image.new("RGB", (4, 4), colour).save(folder / f"{index}.png")
    return [RawItem(f"i{index}", image=folder / f"{index}.png") for index in range(count)]


@pytest.fixture
def items(tmp_path: Path) -> list[RawItem]:
    made = make_items(tmp_path / "media", 6)
    return [*made[:3], RawItem("nothing"), *made[3:]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_rows_are_the_catalogues(items: list[RawItem], cache: Path) -> None:
    prepared = prepare_content(items, Thumbnail(), cache)
    assert prepared.modality == "vision"
    assert prepared.present_N.tolist() == [True, True, True, False, True, True, True]
    read = prepared.read(np.array([6, 0, 4, 0]))
    assert read["colour"].tolist() == [[5, 100, 250], [0, 100, 255], [3, 100, 252], [0, 100, 255]]
    assert prepared.read(np.zeros(0, np.int64))["noise"].shape == (0, 4)
    with pytest.raises(IndexError, match="1 items have no vision"):
        prepared.read(np.array([1, 3]))
    assert not (cache / "quarantine.json").exists()


def test_the_second_time_nothing_is_done(items: list[RawItem], cache: Path) -> None:
    first, second = Thumbnail(), Thumbnail()
    before = prepare_content(items, first, cache)
    after = prepare_content(items[::-1], second, cache)
    assert (len(first.calls), len(second.calls)) == (6, 0)
    assert after.read(np.array([0]))["noise"].tolist() == before.read(np.array([6]))["noise"].tolist()


def test_only_a_changed_file_is_done_again(items: list[RawItem], cache: Path) -> None:
    prepare_content(items, Thumbnail(), cache)
    changed = items[2].image
    assert changed is not None
    Image.new("RGB", (4, 4), (9, 9, 9)).save(changed)
    again = Thumbnail()
    prepared = prepare_content([*items, RawItem("same picture", image=changed)], again, cache)
    assert len(again.calls) == 1
    assert prepared.read(np.array([2, 7]))["colour"].tolist() == [[9, 9, 9]] * 2


def test_a_copied_catalogue_keeps_its_rows_and_its_failures_name_its_own_files(
    items: list[RawItem], cache: Path, tmp_path: Path
) -> None:
    assert items[0].image is not None
    items[0].image.write_bytes(b"broken")
    prepare_content(items, Thumbnail(), cache, max_failed_share=0.2)
    shutil.copytree(tmp_path / "media", tmp_path / "copy")
    copies = [replace(item, image=item.image and tmp_path / "copy" / item.image.name) for item in items]
    again = Thumbnail()
    prepared = prepare_content(copies, again, cache, max_failed_share=0.2)
    assert again.calls == []
    assert prepared.present_N.tolist() == [False, True, True, False, True, True, True]
    (failure,) = json.loads((cache / "quarantine.json").read_text())
    assert failure["path"] == str(copies[0].image)


def test_bytes_are_read_again_only_when_a_file_changes(
    items: list[RawItem], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_content(items, Thumbnail(), cache)
    read: list[Path] = []
    monkeypatch.setattr(content_keys, "file_digest", lambda path: read.append(path) or file_digest(path))
    prepare_content(items, Thumbnail(), cache)
    assert read == []
    assert items[1].image is not None
    os.utime(items[1].image, (1, 1))
    again = Thumbnail()
    prepare_content(items, again, cache)
    assert (read, again.calls) == ([items[1].image], [])
    (cache / "digests.json").write_text("damaged")
    prepare_content(items, again, cache)
    assert (len(read), again.calls) == (7, [])


def test_other_settings_are_another_store(items: list[RawItem], cache: Path) -> None:
    single, double = prepare_content(items, Thumbnail(), cache), prepare_content(items, Thumbnail(2), cache)
    assert len(list(cache.glob("vision-*"))) == 2
    np.testing.assert_array_equal(2 * single.read(np.array([1, 5]))["colour"], double.read(np.array([1, 5]))["colour"])


def test_text_is_its_own_key(cache: Path) -> None:
    items = [RawItem("a", "one"), RawItem("b"), RawItem("c", ""), RawItem("d", "three"), RawItem("e", "one")]
    words = Words(modality="text")
    prepared = prepare_content(items, words, cache)
    assert prepared.present_N.tolist() == [True, False, False, True, True]
    assert prepared.read(np.array([0, 3, 4]))["colour"][:, 0].tolist() == [3, 5, 3]
    assert len(words.calls) == 3
    prepare_content([*items[1:], RawItem("a", "other")], words, cache)
    assert len(words.calls) == 4


# ---------------------------------------------------------------------------------------------------------
# Failures


def test_few_failures_are_a_report(items: list[RawItem], cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = cache / "deep" / "report.json"
    report.parent.mkdir(parents=True)
    of_audio = {"item_id": "x", "path": "/x", "reason": "is empty", "modality": "audio"}
    report.write_text(json.dumps([of_audio, {**of_audio, "modality": "vision"}]))
    assert items[0].image is not None
    items[0].image.unlink()
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        preprocess = Thumbnail()
        prepared = prepare_content(items, preprocess, cache, max_failed_share=0.2, report=report)
        assert prepared.present_N.tolist() == [False, True, True, False, True, True, True]
        failure = {"item_id": "i0", "path": str(items[0].image), "reason": "does not exist"}
        assert json.loads(report.read_text()) == [of_audio, {**failure, "modality": "vision"}]
        assert "1 of the 6 items with a source for vision" in caplog.text
    assert preprocess.calls == []
    make_items(items[0].image.parent, 1)
    prepare_content(items, Thumbnail(), cache, report=report)
    assert json.loads(report.read_text()) == [of_audio]


def test_many_failures_stop(items: list[RawItem], cache: Path) -> None:
    for item in items[:3]:
        assert item.image is not None
        item.image.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare_content(items, Thumbnail(), cache)
    message = str(caught.value)
    assert "3 of the 6 items with a source for vision" in message
    assert "(50.0%); at most 5.0% may" in message
    assert f"item i1: {items[1].image} is empty" in message
    assert str(cache / "quarantine.json") in message
    assert "datamodule.prepare.max_failed_share=0.5" in message
    assert len(json.loads((cache / "quarantine.json").read_text())) == 3
    assert prepare_content(items, Thumbnail(), cache, max_failed_share=0.5).present_N.sum() == 3


def test_what_a_preprocess_raises_is_a_failure_until_it_is_mended(tmp_path: Path, cache: Path) -> None:
    items = make_items(tmp_path, 3, {1: (255, 0, 0)})
    with pytest.raises(UserError, match="could not be preprocessed: RuntimeError: red is refused"):
        prepare_content(items, Thumbnail(), cache)
    mended = Thumbnail(mended=True)
    assert prepare_content(items, mended, cache).present_N.all()
    assert len(mended.calls) == 1


def test_a_wrong_row_is_an_error_and_no_failure(items: list[RawItem], cache: Path) -> None:
    preprocess = Thumbnail()
    preprocess.arrays = lambda: {"colour": ArraySpec((4,), "float32"), "noise": ArraySpec((4,), "uint8")}
    with pytest.raises(ValueError, match="declared is float32"):
        prepare_content(items, preprocess, cache)


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"max_failed_share": 5}])
def test_arguments_are_checked(cache: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"`{next(iter(wrong))}` must be "):
        prepare_content([], Thumbnail(), cache, **wrong)


# ---------------------------------------------------------------------------------------------------------
# Frozen layers


def test_frozen_layers_are_computed_once(items: list[RawItem], cache: Path) -> None:
    frozen = Halved()
    prepared = prepare_content(items, Thumbnail(), cache, frozen=frozen)
    assert prepared.present_N.tolist() == [True, True, True, False, True, True, True]
    assert prepared.read(np.array([6, 1]))["half"].tolist() == [[2.5, 50, 125], [0.5, 50, 127]]
    prepare_content(items, Thumbnail(), cache, frozen=frozen)
    assert frozen.batches == [6]
    other, preprocess = Halved(weights=2), Thumbnail()
    prepare_content(items, preprocess, cache, frozen=other)
    assert other.batches == [6]
    assert preprocess.calls == []
    assert len(list(cache.glob("vision-frozen-*"))) == 2


# ---------------------------------------------------------------------------------------------------------
# Interruptions and worker processes


def test_an_interruption_loses_one_shard_at_most(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = make_items(tmp_path, 80)
    write, written = executors.write_shard, [0]

    def interrupted(*arguments: Any) -> None:
        write(*arguments)
        written[0] += 1
        if written[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(executors, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_content(items, Thumbnail(), cache, workers=0)
    rest = Thumbnail()
    prepare_content(items, rest, cache, workers=0)
    assert len(rest.calls) == 80 - 64


def test_workers_give_the_same_bits_and_outlive_killers_and_hangs(tmp_path: Path) -> None:
    items = make_items(tmp_path / "media", 70, {3: RED, 40: BLACK, 45: GREEN})
    cache, limits = tmp_path / "two", Limits(item_seconds=2)
    prepared = prepare_content(items, Thumbnail(), cache, workers=2, limits=limits)
    failed = {entry["item_id"]: entry["reason"] for entry in json.loads((cache / "quarantine.json").read_text())}
    assert list(failed) == ["i3", "i40", "i45"]
    assert "red is refused" in failed["i3"]
    assert "ended the process that read it" in failed["i40"]
    assert failed["i45"] == "took longer than the 2 s of datamodule.prepare.limits.item_seconds"
    assert np.flatnonzero(~prepared.present_N).tolist() == [3, 40, 45]
    alone = prepare_content([item for item in items if item.item_id not in failed], Thumbnail(), tmp_path / "none")
    expected = alone.read(np.flatnonzero(alone.present_N))
    for name, values in prepared.read(np.flatnonzero(prepared.present_N)).items():
        np.testing.assert_array_equal(values, expected[name])
    again = Thumbnail()
    prepare_content(items, again, cache, limits=limits)
    assert len(again.calls) == 1  # the one that was refused; the killers are remembered


def test_what_failed_is_tried_again_under_other_limits(items: list[RawItem], cache: Path) -> None:
    narrow, first = Limits(pixels=8), Thumbnail()
    with pytest.raises(UserError, match=r"at most 8 pixels by datamodule\.prepare\.limits\.pixels"):
        prepare_content(items, first, cache, limits=narrow)
    prepared = prepare_content(items, first, cache)
    assert prepared.present_N.sum() == 6
    assert json.loads((cache / "quarantine.json").read_text()) == []
    assert len(first.calls) == 12
    prepare_content(items, first, cache, limits=narrow)  # what is there needs no limit
    assert len(first.calls) == 12


@pytest.mark.parametrize("limit", ["pixels", "seconds", "frames", "item_seconds", "memory_gib"])
def test_limits_are_above_zero(limit: str) -> None:
    with pytest.raises(UserError, match=f"`{limit}` must .* got 0"):
        Limits(**{limit: 0})


def test_memory_is_bounded_in_workers(tmp_path: Path) -> None:
    items = make_items(tmp_path / "media", 2, {1: WHITE})
    prepared = prepare_content(
        items, Thumbnail(), tmp_path / "cache", workers=1, max_failed_share=1, limits=Limits(memory_gib=0.5)
    )
    assert prepared.present_N.tolist() == [True, False]
    (failed,) = json.loads((tmp_path / "cache" / "quarantine.json").read_text())
    assert failed["reason"].startswith("could not be preprocessed: ")
    assert "allocate" in failed["reason"]


def living(group: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [row[2] for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from avrec.content.prepare import prepare_content
from test_preparation import Thumbnail, make_items
folder = Path({work!r})
def main():
    items = make_items(folder / "media", 80)
    print(prepare_content(items, Thumbnail(slowly={slowly}), folder / "cache", workers=2).present_N.sum(), flush=True)
"""


def write_script(folder: Path, last: str, slowly: float = 0.0) -> str:
    tests = str(Path(__file__).parent)
    return SCRIPT.format(folder=tests, work=str(folder), slowly=slowly) + last


def test_a_script_without_a_guarded_main_still_works(tmp_path: Path) -> None:
    code = write_script(tmp_path, "main()")
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=60)
    assert done.stdout == "80\n"
    assert "Worker processes cannot start here" in done.stderr


def test_ctrl_c_leaves_no_workers_and_keeps_what_is_done(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(write_script(tmp_path, "if __name__ == '__main__':\n    main()\n", slowly=0.02))
    process = subprocess.Popen(
        [sys.executable, script], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not list(tmp_path.glob("cache/*/shard-*.json")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.strip().endswith(b"KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while (alive := living(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []
    rest = Thumbnail()
    items = [RawItem(f"i{index}", image=tmp_path / "media" / f"{index}.png") for index in range(80)]
    prepare_content(items, rest, tmp_path / "cache", workers=0)
    assert 0 < len(rest.calls) <= 80 - 32
