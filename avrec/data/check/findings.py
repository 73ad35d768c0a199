"""What a check looks for in a catalogue, and from facts to findings: each with a verdict, a number, examples, advice.

Pure functions: nothing here opens a file.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avrec.batch import Array
from avrec.content.items import DecodeFailure
from avrec.data.tables import Catalogue
from avrec.io import moment

ERROR, WARNING, FINE = VERDICTS = ("error", "warning", "fine")
TOKENS_PER_WORD = 1.3
"""Of subword tokenizers on English; other languages need more."""
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Chinese, Japanese."""
SHORT_SECONDS, LONG_SECONDS = 1.0, 3600.0
DAY = 86_400
YEAR_1990 = 631_152_000


class Check(NamedTuple):
    """What is looked for, and what it means where it is found.

    Attributes:
        verdict: ``error`` (loading or training refuses it) or ``warning`` (it costs quality).
        tolerated: share up to which an error is a warning only, and a warning is fine.
        what: a plural, to be counted; in it and in the advice, braces hold what is known only when it is found.
        advice: what to do.
    """

    verdict: str
    tolerated: float
    what: str
    advice: str


# Two lines each, so that the table can be read as one.
CHECKS = {
    # ---- tables: what loading refuses at the first row is counted whole
    "damage": Check(ERROR, 0, "reason why it cannot be loaded", "Do what it says, then check again."),
    "impossible_split": Check(ERROR, 0, "reason why it cannot be split", "Do what it says, then check again."),
    "empty_ids": Check(ERROR, 0, "rows of {table} without {column}", "Fill it in, or remove the rows."),
    "double_ids": Check(ERROR, 0, "rows of {table} whose {column} stood before", "Merge, rename or remove them."),
    "orphans": Check(ERROR, 0, "rows of the log whose item has no row in items ({ids} such items)",
        "Add the items, or remove the rows."),
    "unreadable_times": Check(ERROR, 0, "rows of the log whose time cannot be read",
        "Convert all of them to Unix seconds, or all to ISO 8601."),
    "unreadable_feedback": Check(ERROR, 0, "rows of the log whose {column} is not a number",
        "Correct them, or train without data.feedback."),
    "negative_feedback": Check(ERROR, 0, "rows of the log whose {column} is negative",
        "Shift it, or use data.feedback_map=threshold."),
    "unknown_splits": Check(ERROR, 0, "rows of the log whose split is not train, val or test",
        "Correct them, or remove the column."),
    "outside_paths": Check(ERROR, 0, "paths that leave the catalogue's folder",
        "Copy the files into it, and write paths relative to it."),
    "missing_files": Check(ERROR, 0.05, "named files that do not exist",
        "Add them, or leave the cell empty. Training stops where more than 5 % of the items fail."),
    "no_times": Check(WARNING, 0, "log without a column timestamp",
        "The order of its rows counts as time. Is it? Else name the column, data.columns.timestamp=NAME, or sort."),
    "users_without_log": Check(WARNING, 0, "users of the users table without interaction", "They are left out."),
    "log_without_users": Check(WARNING, 0, "users of the log without a row in users",
        "Their columns count as missing: add their rows."),
    "naming_columns": Check(WARNING, 0, "user columns with another text for nearly every user",
        "A name, no category: what is learned of one is of no use for others. Remove the column."),
    "duplicates": Check(WARNING, 0, "rows of the log with the user, item and time of another",
        "data.clean.duplicates={policy} decides what stays: keep, first, last or sum."),
    "unread_columns": Check(WARNING, 1, "columns of the log that nothing reads",
        "To weigh interactions by one: data.feedback=NAME data.feedback_map=scale."),
    "unread_item_columns": Check(WARNING, 1, "columns of the items that no encoder reads",
        "Text is read by itself, and numbers where data.text=[…] names them; join lists to one text first."),
    "paths_in_text": Check(WARNING, 0, "text columns that hold file names",
        "If they name media, say so: data.columns.image=NAME (video, audio). Else leave them out: data.text=[…]."),
    # ---- histories, items and texts, as cleaning leaves them
    "short_histories": Check(WARNING, 0.1, "users with fewer than 3 interactions",
        "leave_last_out takes no validation row from 2 interactions and no test row from 1; temporal asks them with a "
        "history of 1 or none, or not at all. data.clean.min_per_user=3 drops them."),
    "repeats": Check(WARNING, 0.01, "interactions of a user with an item met before",
        "Right for songs; else data.clean.repeats=first. Ranking skips items seen before (datamodule.seen_filter)."),
    "no_weight": Check(WARNING, 0.5, "interactions that weigh nothing (R_ui = 0)",
        "They are history but no target: is {column} the right column, is data.threshold too high?"),
    "unknowable_items": Check(WARNING, 0, "items with neither content nor interaction",
        "They can only be ranked by chance: describe or remove them."),
    "bare_items": Check(WARNING, 0, "items with neither text nor media",
        "Only identity speaks for them: describe them, or keep identity=learned."),
    "cold_items": Check(WARNING, 0.5, "items without interaction",
        "Only content can recommend them; split=cold_items measures how well it does."),
    "missing_text": Check(WARNING, 0, "items without text", "Add at least a title."),
    "same_text": Check(WARNING, 0, "items with the text of another",
        "One item twice: merge the two. A placeholder: leave the cell empty."),
    "long_text": Check(WARNING, 0.1, "texts of more than {tokens} tokens",
        "The rest is not read: put first what distinguishes items (data.text=[…]), or raise text.max_tokens."),
    # ---- times
    "ties": Check(WARNING, 0.2, "interactions at the same time as another of their user",
        "The file's order decides which was last. If that means nothing, use finer times, or split=temporal."),
    "future_times": Check(WARNING, 0, "interactions in the future", "Correct them. A wrong unit? Try data.time=ms."),
    "ancient_times": Check(WARNING, 0, "interactions before 1990",
        "Missing times written as 0, or a wrong unit: remove the rows, or set data.time."),
    "midnight": Check(WARNING, 0.5, "interactions at exactly 0:00 UTC",
        "Dates without a time of day: add it, or sort the file by it."),
    "unpublished": Check(WARNING, 0, "interactions before their item was published",
        "Is published the date of a later edition, or in another unit?"),
    # ---- media
    "broken_files": Check(ERROR, 0.05, "items with a file that cannot be used",
        "Replace or remove the files. Up to 5 % of the items may fail and go on without; above, training stops."),
    "flat_pictures": Check(WARNING, 0, "items whose pictures are of almost one colour", "Leave the cell empty."),
    "same_picture": Check(WARNING, 0, "items with the picture of another",
        "One item twice: merge the two. A placeholder: leave the cell empty."),
    "silence": Check(WARNING, 0, "items whose sound is silent", "Replace it, or leave the cell empty."),
    "short_media": Check(WARNING, 0, "sounds or videos shorter than 1 second", "A broken upload? Replace them."),
    "long_media": Check(WARNING, 0, "sounds or videos longer than 1 hour",
        "A few frames and the first seconds of sound stand for all of it: excerpts say more, and are read faster."),
}  # fmt: skip
"""Everything that is looked for, by the name that it has in a report."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check of ``CHECKS``: what was counted, how many there are of how many, and a few of them."""

    check: str
    verdict: str
    what: str
    count: int
    of: int
    examples: list[str]
    advice: str


def judged(check: str, bad: Sequence[Any], of: int, count: int | None = None, **known: Any) -> Finding:
    """The outcome of a check that found ``bad``, or ``count`` of which these are examples.

    >>> judged("missing_text", ["i7"], 10).verdict, judged("missing_text", [], 10).verdict
    ('warning', 'fine')
    """
    verdict, tolerated, what, advice = CHECKS[check]
    count = len(bad) if count is None else count
    if count <= tolerated * of:
        verdict = WARNING if verdict == ERROR and count else FINE
    return Finding(check, verdict, what.format(**known), count, of, [*map(str, bad[:3])], advice.format(**known))


def flagged(check: str, bad: Array, name: Callable[[int], Any], **known: Any) -> Finding:
    """The outcome of a check that found what is True in ``bad``; only the examples are ever given a name."""
    rows = np.flatnonzero(bad)
    return judged(check, [name(int(row)) for row in rows[:3]], len(bad), len(rows), **known)


# ---------------------------------------------------------------------------------------------------------
# Facts to findings


def log_findings(catalogue: Catalogue, repeats_kept: bool, feedback: str | None) -> list[Finding]:
    """Of histories and weights, as cleaning leaves them; ``feedback`` is the column that weights come from."""
    log = catalogue.log
    length_B = np.bincount(log.user, minlength=len(catalogue.user_ids))
    findings = [flagged("short_histories", length_B < 3, catalogue.user_ids.__getitem__)]
    if repeats_kept:
        again_W = np.ones(len(log), bool)
        again_W[np.unique(log.user * len(catalogue.items) + log.item, return_index=True)[1]] = False
        findings.append(flagged("repeats", again_W, _row_of(catalogue)))
    if feedback:
        findings.append(flagged("no_weight", log.weight == 0, _row_of(catalogue), column=feedback))
    return findings


def item_findings(catalogue: Catalogue, max_tokens: int | None, tokens: Sequence[float] | None = None) -> list[Finding]:
    """Of what items have, and of their texts.

    ``max_tokens`` is what an encoder reads of a text; ``tokens`` are counts of the items that have one, by default
    estimates.
    """
    items = catalogue.items

    def named(n: int) -> str:
        title = catalogue.titles[n]
        return items[n].item_id if title in ("", items[n].item_id) else f"{items[n].item_id} {title[:40]!r}"

    cold_N = np.bincount(catalogue.log.item, minlength=len(items)) == 0
    bare_N = np.array([not item.text and not item.files for item in items])
    checks = {"unknowable_items": cold_N & bare_N, "bare_items": bare_N, "cold_items": cold_N}
    findings = [flagged(check, bad_N, named) for check, bad_N in checks.items()]
    columns = catalogue.item_columns.columns
    unread = [name for name in columns if name not in {"published", *catalogue.text.columns}]
    findings.append(judged("unread_item_columns", unread, len(columns)))
    texts = [item.text or "" for item in items]
    if any(texts):
        first = {text: n for n, text in reversed([*enumerate(texts)])}
        same_N = np.array([text != "" and first[text] < n for n, text in enumerate(texts)])
        findings.append(flagged("missing_text", np.array([not text for text in texts]), named))
        findings.append(flagged("same_text", same_N, lambda n: f"{named(n)} = {items[first[texts[n]]].item_id}"))
        if max_tokens:
            counts = iter(tokens or [estimated_tokens(text) for text in texts if text])
            long_N = np.array([text != "" and next(counts) > max_tokens for text in texts])
            findings.append(flagged("long_text", long_N, named, tokens=max_tokens))
    return findings


def estimated_tokens(text: str) -> float:
    """About how many tokens a text has: ``TOKENS_PER_WORD`` a word, and one a letter of scripts without spaces.

    >>> estimated_tokens("a red film"), estimated_tokens("红色电影")
    (3.9000000000000004, 4.0)
    """
    words, letters = UNSPACED.subn(" ", text)
    return TOKENS_PER_WORD * len(words.split()) + letters


def time_findings(catalogue: Catalogue, is_clock: bool, now: float) -> list[Finding]:
    """Of times that cannot be, or that say less than they seem to; ``now`` is in Unix seconds."""
    log = catalogue.log
    tie_W = np.zeros(len(log), bool)
    tie_W[1:] = (np.diff(log.user) == 0) & (np.diff(log.time) == 0)
    tie_W[:-1] |= tie_W[1:]
    bad = {"ties": tie_W}
    if is_clock:
        bad |= {"future_times": log.time > now + DAY, "ancient_times": log.time < YEAR_1990}
        bad["midnight"] = log.time % DAY == 0
        if len(catalogue.published_N):
            # To the day: dates of publication seldom have a time.
            bad["unpublished"] = log.time < catalogue.published_N[log.item] // DAY * DAY
    return [flagged(check, bad_W, _row_of(catalogue)) for check, bad_W in bad.items()]


def _row_of(catalogue: Catalogue) -> Callable[[int], str]:
    """Names a row of the log for people."""
    log = catalogue.log

    def name(row: int) -> str:
        when = f", {moment(log.time[row])}" if log.has_time else ""
        return f"user {catalogue.user_ids[log.user[row]]}, item {catalogue.items[log.item[row]].item_id}{when}"

    return name


@dataclass(frozen=True)
class MediaFacts:
    """What the files of one item hold.

    Attributes:
        item_id: whose they are.
        failures: files that cannot be used.
        picture: a checksum of the decoded picture; None without one.
        flat: all its pictures and frames have almost one colour.
        silent: its sound is.
        seconds: length of its sound or video; None without.
        sound: it has some; None without a file that may, or where none was asked for.
    """

    item_id: str
    failures: list[DecodeFailure] = field(default_factory=list)
    picture: int | None = None
    flat: bool = False
    silent: bool = False
    seconds: float | None = None
    sound: bool | None = None


def media_findings(facts: list[MediaFacts], root: Path) -> list[Finding]:
    """Of the files that were opened; paths are shown from ``root`` on."""

    def why(n: int) -> str:
        reasons = (f"{failure.path.removeprefix(f'{root}/')} {failure.reason}" for failure in facts[n].failures)
        return f"{facts[n].item_id}: {'; '.join(reasons)}"

    pictured = [fact for fact in facts if fact.picture is not None]
    first = {fact.picture: fact.item_id for fact in reversed(pictured)}
    same = [f"{fact.item_id} = {first[fact.picture]}" for fact in pictured if first[fact.picture] != fact.item_id]
    timed = [(fact.item_id, fact.seconds) for fact in facts if fact.seconds is not None]
    short = [f"{item} ({seconds:.2f} s)" for item, seconds in timed if seconds < SHORT_SECONDS]
    long = [f"{item} ({seconds / 60:.0f} min)" for item, seconds in timed if seconds > LONG_SECONDS]
    return [
        flagged("broken_files", np.array([bool(fact.failures) for fact in facts]), why),
        judged("flat_pictures", [fact.item_id for fact in facts if fact.flat], len(facts)),
        judged("same_picture", same, len(pictured)),
        judged("silence", [fact.item_id for fact in facts if fact.silent], len(facts)),
        judged("short_media", short, len(timed)),
        judged("long_media", long, len(timed)),
    ]
