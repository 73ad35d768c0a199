"""The report of a check: facts to findings, findings to JSON and to lines for people."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from avrec.content.items import DecodeFailure, RawItem
from avrec.data.check.findings import (
    CHECKS,
    ERROR,
    FINE,
    WARNING,
    MediaFacts,
    item_findings,
    judged,
    log_findings,
    media_findings,
    time_findings,
)
from avrec.data.check.report import Report, bars, night, quantiles, show
from avrec.data.tables import Catalogue, Interactions
from avrec.io import moment

NOON = 1_704_196_800.0  # 2024-01-02 12:00 UTC


def catalogue(items=("one", "two"), rows=((0, 0, NOON),), weights=None, published=(), paths=()):
    """Items by text (None: none) and rows of (user, item, time), in order."""
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    raw = [RawItem(f"i{n}", text, image=Path("x.png") if n in paths else None) for n, text in enumerate(items)]
    log = Interactions(user, item, time.astype(float), np.ones(len(rows)) if weights is None else np.array(weights))
    users = [f"u{n}" for n in range(user.max() + 1)]
    titles = ["" for _ in items]
    no_columns = np.zeros((len(users), 0), np.int64)
    return Catalogue(Path("/c"), raw, titles, users, log, no_columns, published_N=np.array(published, float))


def found(findings):
    """Counts and verdicts of what was found."""
    return {finding.check: (finding.count, finding.verdict) for finding in findings if finding.count}


def test_every_check_says_what_it_counts_and_what_to_do():
    for name, check in CHECKS.items():
        assert check.verdict in (ERROR, WARNING), name
        assert check.advice[-1] in ".?", name
        assert not check.what.endswith("."), name


def test_a_finding_has_a_number_examples_and_a_tolerated_share():
    finding = judged("long_text", ["a", "b", "c", "d"], 8, tokens=64)
    assert (finding.verdict, finding.count, finding.examples) == (WARNING, 4, ["a", "b", "c"])
    assert finding.what == "texts of more than 64 tokens"
    assert judged("long_text", ["a"], 10, tokens=64).verdict == FINE
    assert judged("missing_files", ["a"], 10).verdict == ERROR
    assert judged("missing_files", ["a"], 100).verdict == WARNING
    assert judged("missing_files", [], 100).verdict == FINE


def test_items():
    few = catalogue(["same", "same", None, None, "a long text " * 30], paths=[3])
    findings = item_findings(few, max_tokens=100)
    assert found(findings) == {
        "unknowable_items": (1, WARNING),
        "bare_items": (1, WARNING),
        "cold_items": (4, WARNING),
        "missing_text": (2, WARNING),
        "same_text": (1, WARNING),
        "long_text": (1, WARNING),
    }
    examples = {finding.check: finding.examples for finding in findings}
    assert examples["same_text"] == ["i1 = i0"]
    assert examples["bare_items"] == ["i2"]
    assert "long_text" not in found(item_findings(few, max_tokens=None))


def test_items_without_any_text_are_not_told_that_each_lacks_it():
    assert "missing_text" not in found(item_findings(catalogue([None, None], paths=[0, 1]), 64))


def test_histories_and_weights():
    rows = [(0, 0, 1), (0, 0, 2), (0, 1, 3), (1, 0, 1)]
    findings = log_findings(catalogue(rows=rows, weights=[0, 0, 0, 1]), repeats_kept=True, feedback="rating")
    assert found(findings) == {"short_histories": (1, WARNING), "repeats": (1, WARNING), "no_weight": (3, WARNING)}
    assert [f.examples for f in findings] == [
        ["u1"],
        ["user u0, item i0, 2"],
        ["user u0, item i0, 1", "user u0, item i0, 2", "user u0, item i1, 3"],
    ]
    assert set(found(log_findings(catalogue(rows=rows), repeats_kept=False, feedback=None))) == {"short_histories"}


def test_times():
    midnight = NOON - 12 * 3600
    rows = [(0, 0, 0), (0, 1, midnight), (0, 1, NOON), (1, 0, NOON), (1, 1, NOON), (1, 1, 2 * NOON + 1)]
    now = NOON + 3600
    assert found(time_findings(catalogue(rows=rows, published=[NOON, np.nan]), True, now)) == {
        "ties": (2, WARNING),
        "future_times": (1, WARNING),
        "ancient_times": (1, WARNING),
        "midnight": (2, FINE),
        "unpublished": (1, WARNING),  # the first row; the day of publication itself is fine
    }
    assert found(time_findings(catalogue(rows=rows), is_clock=False, now=now)) == {"ties": (2, WARNING)}


def test_media():
    broken = DecodeFailure("i0", "/c/posters/0.jpg", "is empty")
    facts = [
        MediaFacts("i0", failures=[broken], seconds=0.2),
        MediaFacts("i1", picture=7, flat=True, seconds=7200.0),
        MediaFacts("i2", picture=7, silent=True),
        MediaFacts("i3", picture=8),
    ]
    findings = {finding.check: finding for finding in media_findings(facts, Path("/c"))}
    assert found(findings.values()) == {
        "broken_files": (1, ERROR),
        "flat_pictures": (1, WARNING),
        "same_picture": (1, WARNING),
        "silence": (1, WARNING),
        "short_media": (1, WARNING),
        "long_media": (1, WARNING),
    }
    assert findings["broken_files"].examples == ["i0: posters/0.jpg is empty"]
    assert findings["same_picture"].examples == ["i2 = i1"]
    assert found(media_findings([replace(fact, item_id=f"{fact.item_id}{n}") for n in range(30) for fact in facts[3:]]
                                + facts[:1], Path("/c")))["broken_files"] == (1, WARNING)  # fmt: skip


def test_numbers_in_a_line():
    assert quantiles([]) == {}
    assert quantiles(np.arange(101)) == {
        "least": 0, "10 %": 10, "median": 50, "90 %": 90, "99 %": 99, "most": 100, "mean": 50
    }  # fmt: skip
    assert bars([0, 0]) == "▁▁"
    assert moment(NOON) == "2024-01-02 12:00 UTC"
    assert moment(12) == "12"
    assert moment(1e20) == "1e+20"


@pytest.mark.parametrize(("zone", "said"), [(0, "UTC+0"), (-6, "UTC-6"), (9, "UTC+9"), (12, "UTC+12"), (-11, "UTC-11")])
def test_the_hours_of_sleep_tell_the_time_zone(zone, said):
    hours = [0 if 1 <= (hour + zone) % 24 < 7 else 5 for hour in range(24)]
    assert night(hours).endswith(said)


def report():
    one = judged("same_text", ["i2 = i1"], 10)
    return Report(
        "/c",
        {"users": 2, "items": 3},
        {"text": 1, "nothing": 2},
        {"image": 1},
        findings=[one, judged("silence", [], 3)],
    )


def test_status():
    assert report().status == 0
    assert replace(report(), findings=[judged("orphans", ["i9"], 5, ids="1")]).status == 1
    assert replace(report(), readable=False).status == 2


def test_json_has_errors_first():
    mixed = report()
    mixed.findings.append(judged("orphans", ["i9"], 5, ids="1"))
    told = json.loads(json.dumps(mixed.as_json()))
    assert told["status"] == 1
    assert [finding["check"] for finding in told["findings"]] == ["orphans", "same_text", "silence"]
    assert told["counts"] == {"users": 2, "items": 3}


def test_printed_for_people_within_the_width_and_without_colour():
    mixed = report()
    mixed.findings.append(judged("orphans", [f"[b]i{n}[/b]" for n in range(9)], 50_000, ids="9"))
    mixed.hours = list(range(24))
    mixed.distributions = {"weight": quantiles([1, 2000]), "nothing": {}}
    out = io.StringIO()
    show(mixed, Console(file=out, width=100, highlight=False))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in out.getvalue()
    text = " ".join(out.getvalue().split())
    assert "2 users · 3 items items with text 33 % · nothing 67 % items that name a file: image 33 %" in text
    assert "error 9 (0.018 %) rows of the log whose item has no row in items (9 such items)" in text
    assert "[b]i0[/b]; [b]i1[/b]; [b]i2[/b]; …" in text, "what a file holds is no markup"
    assert "→ Add the items, or remove the rows." in text
    assert text.index("error 9") < text.index("warning 1 (10 %) items with the text of another")
    assert "fine looked for and not found: silence" in text
    assert text.endswith("1 error, 1 warning (exit status 1)")
