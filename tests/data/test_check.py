"""The check of a catalogue: what loading refuses is an error, all of it at once; what is fine can be loaded.

Covers avrec.data.check.raw_tables.
"""

import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avrec.cli.check import run as report_on
from avrec.cli.check import token_counter
from avrec.content.containers import open_media
from avrec.content.items import DecodeFailure, DecodeRequest, RawItem
from avrec.content.limits import Limits
from avrec.data.check.checks import check
from avrec.data.check.findings import MediaFacts
from avrec.data.check.media import inspect, inspect_all, sampled
from avrec.data.cleaning import Cleaning
from avrec.data.sources.folder import FolderSource
from avrec.data.splits import Temporal
from avrec.errors import UserError
from avrec.run.config import CONF

NOON = 1_704_196_800  # 2024-01-02 12:00 UTC
ITEMS = {
    "item_id": ["i1", "i2", "i3", "i4"],
    "title": ["One", "Two", "Three", "Four"],
    "image": ["a.png", "", "a.png", ""],
    "published": ["2020-01-01", "", "2021-01-01", ""],
}
LOG = {
    "user_id": ["u1", "u2", "u1", "u2", "u1", "u2"],
    "item_id": ["i1", "i2", "i2", "i3", "i3", "i1"],
    "timestamp": [str(NOON + 3600 * n) for n in range(6)],
    "rating": ["5", "4", "3", "5", "1", "2"],
    "split": ["train", "train", "train", "test", "val", "val"],
}
USERS = {"user_id": ["u1", "u2"], "plan": ["pro", "free"]}
TABLES = {"items": ITEMS, "interactions": LOG, "users": USERS}


def write(root, **changes):
    """A catalogue; a change is (column, row, value), (column, None) to drop it, or a whole table."""
    root.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / "a.png")
    for name, columns in TABLES.items():
        columns = {column: list(values) for column, values in columns.items()}
        change = changes.get(name, ())
        if isinstance(change, dict):
            columns = change
        elif len(change) == 2:
            del columns[change[0]]
        elif change:
            column, row, value = change
            columns[column][row] = value
        pl.DataFrame(columns, strict=False).write_csv(root / f"{name}.csv")
    return root


def found(report):
    return {finding.check: finding.count for finding in report.findings if finding.count and finding.verdict == "error"}


def refused(source):
    try:
        source.load()
    except UserError:
        return True
    return False


BROKEN = {
    "an item without id": ({"items": ("item_id", 3, " ")}, {}, {"empty_ids": 1}),
    "an item twice": ({"items": ("item_id", 3, "i1")}, {}, {"double_ids": 1}),
    "an item without row": ({"interactions": ("item_id", 0, "i9")}, {}, {"orphans": 1}),
    "a row without user": ({"interactions": ("user_id", 0, "")}, {}, {"empty_ids": 1}),
    "a row without item": ({"interactions": ("item_id", 0, "")}, {}, {"empty_ids": 1}),
    "a time that is none": ({"interactions": ("timestamp", 0, "soon")}, {}, {"unreadable_times": 1}),
    "all times none": ({"interactions": {**LOG, "timestamp": ["soon"] * 6}}, {}, {"unreadable_times": 6, "damage": 1}),
    "no time": ({"interactions": ("timestamp", 2, "")}, {}, {"unreadable_times": 1}),
    "times in another form": ({}, {"time": "iso"}, {"unreadable_times": 6, "damage": 1}),
    "a unit that is none": ({}, {"time": "h"}, {"damage": 1}),
    "a rating that is none": ({"interactions": ("rating", 1, "good")}, {}, {"unreadable_feedback": 1}),
    "an infinite rating": ({"interactions": ("rating", 1, "inf")}, {}, {"unreadable_feedback": 1}),
    "a negative rating": ({"interactions": ("rating", 1, "-1")}, {}, {"negative_feedback": 1}),
    "an unknown column": ({}, {"feedback": "stars"}, {"damage": 1}),
    "an unknown role": ({"interactions": ("split", 1, "holdout")}, {}, {"unknown_splits": 1}),
    "a path that leaves": ({"items": ("image", 1, "../x.png")}, {}, {"outside_paths": 1}),
    "a publication that is none": ({"items": ("published", 1, "soon")}, {}, {"damage": 1}),
    "a user twice": ({"users": ("user_id", 1, "u1")}, {}, {"double_ids": 1}),
    "a user without id": ({"users": ("user_id", 1, "")}, {}, {"empty_ids": 1}),
    "no items": ({"items": {"item_id": [], "title": []}}, {}, {"orphans": 6, "damage": 1}),
    "no log": ({"interactions": {"user_id": [], "item_id": []}}, {}, {"damage": 1}),
    "a text that is not there": ({}, {"text": ["plot"]}, {"damage": 1}),
    "cleaning without rest": ({}, {"clean": Cleaning(min_per_user=50)}, {"damage": 1}),
    "a name for no column": ({}, {"columns": {"title": "name"}}, {"damage": 1}),
    "no column item_id": ({"items": ("item_id", None)}, {}, {"damage": 1}),
    "no column user_id": ({"interactions": ("user_id", None)}, {}, {"damage": 1}),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("changes", "options", "errors"), BROKEN.values(), ids=BROKEN)
def test_what_loading_refuses_is_an_error(changes, options, errors, tmp_path):
    source = FolderSource(write(tmp_path, **changes), **{"feedback": "rating", "feedback_map": "scale", **options})
    assert refused(source)
    report = check(source)
    assert found(report) == errors
    assert report.status in (1, 2)
    assert all(finding.examples and finding.advice for finding in report.sorted() if finding.count)


FINE = {
    "as it is": ({}, {}),
    "negative, but cut": ({"interactions": ("rating", 1, "-1")}, {"feedback_map": "threshold", "threshold": 3.0}),
    "negative, but dropped": ({"interactions": ("rating", 1, "-1")}, {"clean": Cleaning(min_feedback=0)}),
    "no times": ({"interactions": ("timestamp", None)}, {}),
    "a role in capitals": ({"interactions": ("split", 1, " Train")}, {}),
    "a user that is not in the log": ({"users": ("user_id", 1, "u9")}, {}),
}


@pytest.mark.parametrize(("changes", "options"), FINE.values(), ids=FINE)
def test_what_can_be_loaded_is_no_error(changes, options, tmp_path):
    source = FolderSource(write(tmp_path, **changes), **{"feedback": "rating", "feedback_map": "scale", **options})
    assert not refused(source)
    assert (check(source).status, found(check(source))) == (0, {})


JUNK = [
    "",
    " ",
    "i1",
    "u1",
    "-1",
    "1e400",
    "nan",
    "2024-01-02",
    "2024-13-01",
    "999999999999999999999",
    "é",
    "../..",
    "x",
]
CELLS = [(table, column) for table, columns in TABLES.items() for column in columns]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CELLS), st.integers(0, 5), st.sampled_from(JUNK)), max_size=3))
def test_no_error_means_loadable_whatever_a_cell_holds(tmp_path_factory, edits):
    root = write(tmp_path_factory.mktemp("c"))
    for (table, column), row, value in edits:
        frame = pl.read_csv(root / f"{table}.csv", infer_schema=False)
        cells = frame[column].to_list()
        cells[row % len(cells)] = value
        frame.with_columns(pl.Series(column, cells, pl.String)).write_csv(root / f"{table}.csv")
    source = FolderSource(root, feedback="rating", feedback_map="scale")
    report = check(source)
    assert refused(source) == (set(found(report)) - {"missing_files"} != set())
    shutil.rmtree(root)


def test_all_of_it_is_reported_at_once_and_the_rest_described(tmp_path):
    log = {name: [*values, *values] for name, values in LOG.items()}
    log["item_id"][0], log["item_id"][1], log["user_id"][2], log["timestamp"][3] = "i8", "i9", "", "soon"
    report = check(FolderSource(write(tmp_path, interactions=log, items=("image", 1, "/etc/passwd"))))
    assert found(report) == {"orphans": 2, "empty_ids": 1, "unreadable_times": 1, "outside_paths": 1}
    examples = {finding.check: finding.examples for finding in report.findings if finding.count}
    assert examples["orphans"] == ["i8", "i9"]
    assert examples["empty_ids"] == ["row 3"]
    assert examples["unreadable_times"] == ["row 4: 'soon'"]
    assert report.counts == {"users": 2, "items": 4, "interactions": 6}
    assert sum(report.hours) == 6
    assert any(note.startswith("timestamps are read as Unix time in s, 2024-01-02") for note in report.notes)


def test_what_is_odd_is_a_warning(tmp_path):
    items = {
        **ITEMS,
        "poster": ["a.jpg", "", "", ""],
        "plot": ["a.jpg", "words", "words", ""],
        "image": ["a.png", "b.png", "", ""],
    }
    log = {name: [*values, values[0]] for name, values in LOG.items()}
    users = {"user_id": ["u1", *(f"u{n}" for n in range(9, 39))], "email": [f"{n}@example.org" for n in range(31)]}
    report = check(FolderSource(write(tmp_path, items=items, interactions=log, users=users)))
    examples = {finding.check: finding.examples for finding in report.findings if finding.count}
    assert examples["paths_in_text"] == ["poster"]
    assert examples["missing_files"] == ["i2: b.png"]
    assert examples["users_without_log"] == ["u9", "u10", "u11"]
    assert examples["naming_columns"] == ["email"]
    assert examples["log_without_users"] == ["u2"]
    assert examples["unread_columns"] == ["rating"]
    assert "i1" in examples["duplicates"][0]
    assert "cleaning, duplicates (same user, item and time): 7 rows, 6 stay" in report.notes
    assert examples["cold_items"] == ["i4 'Four'"]


def test_item_columns_that_no_encoder_reads_are_named(tmp_path):
    items = pl.DataFrame(ITEMS | {"tags": [["a", "b"], ["c"], [], None], "year": [1, 2, 3, 4], "plot": ["w"] * 4})
    (write(tmp_path) / "items.csv").unlink()
    items.write_ndjson(tmp_path / "items.jsonl")
    for text, unread in ((None, ["tags", "year"]), (["title", "year"], ["tags", "plot"])):
        report = check(FolderSource(tmp_path, text=text))
        assert [f.examples for f in report.findings if f.check == "unread_item_columns"] == [unread]


def test_tokens_are_counted_by_the_tokenizer_that_is_given(tmp_path):
    items = {**ITEMS, "title": ["红色的电影", "Two words", "Three", ""]}
    (source, long) = FolderSource(write(tmp_path, items=items)), "long_text"
    for count_tokens, examples in ((None, 1), (lambda texts: None, 1), (lambda texts: [9] * len(texts), 3)):
        report = check(source, max_tokens=4, count_tokens=count_tokens)
        assert [f.count for f in report.findings if f.check == long] == [examples]
        assert any("estimates" in note for note in report.notes) == (examples == 1)
    asked = []
    check(source, max_tokens=4, count_tokens=lambda texts: asked.extend(texts) or [1] * len(texts))
    assert asked == ["红色的电影", "Two words", "Three"]


def test_the_small_encoder_learns_its_tokenizer_from_the_texts():
    text = composed("data.root=x").text
    assert token_counter(text)(["红色电影", *["a film"] * 3])[0] > 4
    assert token_counter(None) is None


def test_a_symlink_that_leaves_the_folder_is_called_one(tmp_path):
    root = write(tmp_path / "c", items=("image", 1, "b.png"))
    (root / "b.png").symlink_to(write(tmp_path / "other") / "a.png")
    with pytest.raises(UserError, match=r"'b\.png', a symlink to .*other/a\.png, outside .*copy the file into"):
        FolderSource(root).load()
    (finding,) = [f for f in check(FolderSource(root)).findings if f.check == "outside_paths"]
    assert finding.examples == ["i2: b.png (a symlink)"]


def test_tables_are_scanned_once(tmp_path):
    source = FolderSource(write(tmp_path))
    scans = []
    layout = source.layout
    source.layout = lambda root: scans.append(root) or layout(root)
    assert check(source).status == 0
    assert len(scans) == 1


def test_a_split_is_tried(tmp_path):
    report = check(FolderSource(write(tmp_path / "a")), Temporal(0.2, 0.2))
    assert report.status == 0
    assert "split=temporal: rows 3 train, 1 val, 2 test; without a row in train 2 items, 0 users" in report.notes
    timeless = FolderSource(write(tmp_path / "b", interactions=("timestamp", None)))
    assert found(check(timeless, Temporal())) == {"impossible_split": 1}


# ---------------------------------------------------------------------------------------------------------
# Media

REQUEST = DecodeRequest(image=True, video_frames=2, sample_rate=16_000, max_seconds=5)


def sound(path, seconds, loud=0.5):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        samples = np.sin(np.arange(int(16_000 * seconds)) / 20) * loud * 32_767
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_what_files_hold(tmp_path, demo_root):
    item = inspect(RawItem("ok", image=write(tmp_path) / "a.png", audio=sound(tmp_path / "a.wav", 1.5)), REQUEST)
    assert (item.failures, item.flat, item.silent, item.seconds) == ([], False, False, pytest.approx(1.5))
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "flat.png")
    odd = RawItem("odd", image=tmp_path / "flat.png", audio=sound(tmp_path / "s.wav", 0.1, loud=0))
    assert [inspect(odd, REQUEST).flat, inspect(odd, REQUEST).silent] == [True, True]
    (tmp_path / "no.jpg").write_text("not a picture")
    bad = inspect(RawItem("bad", image=tmp_path / "no.jpg", audio=tmp_path / "gone.wav"), REQUEST)
    assert [failure.path for failure in bad.failures] == [str(tmp_path / "no.jpg")], (
        "what is missing was counted before"
    )
    video = inspect(RawItem("v", video=next((demo_root / "videos").iterdir())), REQUEST)
    assert video.failures == []
    assert video.seconds > 1
    assert not video.flat
    assert [fact.sound for fact in (item, bad)] == [True, False]
    with open_media(next((demo_root / "videos").iterdir())) as container:
        assert video.sound == bool(container.streams.audio)
    assert inspect(RawItem("p", image=tmp_path / "a.png"), REQUEST).sound is None
    assert inspect(RawItem("v", video=tmp_path / "a.wav"), DecodeRequest(video_frames=2)).sound is None


@pytest.mark.parametrize(("opened", "audio"), [(2, 1), (1, 2)])
def test_a_video_without_sound_is_no_audio_once_all_were_opened(tmp_path, opened, audio):
    items = ITEMS | {"video": ["a.mp4", "b.mp4", "", ""]}
    facts = [MediaFacts("i1", sound=False), MediaFacts("i2", sound=True)][:opened]
    report = check(FolderSource(write(tmp_path, items=items)), look=lambda _: facts)
    assert report.present["audio"] == audio
    assert f"of the {opened} with an audio or video file opened, {opened - 1} have sound" in report.notes


def test_files_are_opened_in_processes(tmp_path):
    items = [RawItem(f"i{n}", audio=sound(tmp_path / f"{n}.wav", 0.1 * (n + 1))) for n in range(5)]
    facts = inspect_all(items, REQUEST, workers=2)
    assert [fact.item_id for fact in facts] == ["i0", "i1", "i2", "i3", "i4"]
    assert [fact.seconds for fact in facts] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_file_that_takes_too_long_costs_only_itself(tmp_path):
    seconds = {"long": 4000, "short": 0.1}
    items = [RawItem(name, audio=sound(tmp_path / f"{name}.wav", length)) for name, length in seconds.items()]
    request = DecodeRequest(sample_rate=44_100, max_seconds=4000)
    long, short = inspect_all(items, request, workers=1, limits=Limits(item_seconds=0.2))
    assert long.failures == [DecodeFailure("long", str(items[0].audio), "takes longer than 0.2 s")]
    assert (short.failures, short.sound) == ([], True)


def test_a_sample_is_the_same_each_time():
    items = [RawItem(f"i{n}", image=Path(f"{n}.png")) for n in range(9)] + [RawItem("bare", "text")]
    assert sampled(items, True) == items[:9]
    assert sampled(items, 100) == items[:9]
    assert sampled(items, False) == []
    assert len(sampled(items, 4)) == 4
    assert sampled(items, 4) == sampled(items, 4)


# ---------------------------------------------------------------------------------------------------------
# Entry


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("check", overrides=list(overrides))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_source_can_be_named(name):
    assert composed(f"data={name}", "data.root=x", "text=minilm", "vision=none").data.root == "x"


def test_the_entry_prints_and_writes(tmp_path, capsys):
    root, out = write(tmp_path / "c", interactions=("item_id", 0, "i9")), tmp_path / "new" / "report.json"
    with pytest.raises(SystemExit) as stop:
        report_on(composed(f"data.root={root}", f"cache_dir={tmp_path}", "media=false", f"out={out}", "audio=none"))
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "rows of the log whose item has no row in items" in printed
    told = json.loads(out.read_text("utf-8"))
    assert told["status"] == 1
    assert told["findings"][0]["check"] == "orphans"
    assert told["distributions"]["interactions of a user"]["most"] == 3


@pytest.mark.parametrize("wrong", ["media=some", "media=-1", "workers=0"])
def test_what_cannot_be_asked_for(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        report_on(composed(f"data.root={tmp_path}", wrong))
    assert stop.value.code == 2
    assert "Use media=true, false or a number of items" in capsys.readouterr().err


def test_the_command(demo_root, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "avrec", "check", f"cache_dir={tmp_path}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = run(f"data.root={demo_root}", "media=2", "workers=1")
    assert done.returncode == 0, done.stderr
    assert "24 users · 32 items · 240 interactions" in done.stdout
    assert "the files of 2 of the" in done.stdout
    assert done.stderr == ""
    missing = run(f"data.root={tmp_path / 'nowhere'}")
    assert missing.returncode == 2
    assert "is not a folder" in " ".join(missing.stdout.split())
    slip = run("data.rooot=x")
    assert slip.returncode == 2
    assert "Did you mean data.root? All keys: avrec check --cfg job" in slip.stderr
