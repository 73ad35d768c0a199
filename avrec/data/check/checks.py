"""The checks of a catalogue: what is read, what is found wrong, and what to do about it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from avrec.content.items import RawItem
from avrec.data.check.findings import (
    MediaFacts,
    estimated_tokens,
    item_findings,
    judged,
    log_findings,
    media_findings,
    time_findings,
)
from avrec.data.check.raw_tables import RawTables
from avrec.data.check.report import Report, quantiles
from avrec.data.sources.folder import FolderSource
from avrec.data.splits import ROLES, Splitter
from avrec.data.tables import CONTENT, FILE_COLUMNS, Catalogue
from avrec.errors import UserError


def check(
    source: FolderSource,
    splitter: Splitter | None = None,
    max_tokens: int | None = None,
    look: Callable[[list[RawItem]], list[MediaFacts]] | None = None,
    count_tokens: Callable[[list[str]], Sequence[int] | None] | None = None,
) -> Report:
    """Read a catalogue, each of its tables once, and judge it.

    What is impossible (a row without an id, say) is counted, and the rest is judged without it. A catalogue whose
    report has no error can be loaded.

    Args:
        source: the catalogue.
        splitter: is tried on the log.
        max_tokens: what the text encoder reads of a text.
        look: looks into the items' files.
        count_tokens: counts the tokens of texts with the run's tokenizer; where it is None, or returns None, the
            counts are estimates.
    """
    report = Report(str(source.root))
    try:
        raw = RawTables(source)
        report.findings += raw.findings
        catalogue = raw.mended().load()
    except (UserError, pl.exceptions.PolarsError) as error:
        report.readable = bool(report.findings)
        report.findings.append(judged("damage", [str(error).split("\n")[0]], 1))
        return report
    report.notes += raw.notes
    texts = [item.text for item in catalogue.items if item.text]
    tokens: Sequence[float] | None = count_tokens(texts) if count_tokens is not None and texts else None
    if tokens is None and texts:
        tokens = [estimated_tokens(text) for text in texts]
        report.notes.append("tokens are estimates: 1.3 a word, and 1 a letter of scripts without spaces")
    _describe(report, catalogue, raw.is_clock)
    report.distributions["tokens of a text"] = quantiles(tokens or [])
    report.findings += item_findings(catalogue, max_tokens, tokens)
    report.findings += log_findings(catalogue, source.clean.repeats == "keep", source.feedback.column)
    if catalogue.log.has_time:
        report.findings += time_findings(catalogue, raw.is_clock, time.time())
    if splitter is not None:
        _try(splitter, catalogue, report)
    if look is not None and (facts := look(catalogue.items)):
        _describe_files(report, catalogue, facts, source.root.resolve())
    return report


def _describe(report: Report, catalogue: Catalogue, is_clock: bool) -> None:
    """Counts and distributions, as cleaning leaves the log."""
    log, items = catalogue.log, catalogue.items
    report.counts = {"users": len(catalogue.user_ids), "items": len(items), "interactions": len(log)}
    kinds = [{*item.files, *(["text"] if item.text else [])} for item in items]
    report.present = {name: sum(not having.isdisjoint(of) for having in kinds) for name, of in CONTENT.items()}
    report.present["nothing"] = sum(not having for having in kinds)
    report.files = {kind: sum(kind in having for having in kinds) for kind in FILE_COLUMNS}
    report.distributions = {
        "interactions of a user": quantiles(np.bincount(log.user)),
        "interactions of an item": quantiles(np.bincount(log.item, minlength=len(items))),
        "weight R_ui": quantiles(log.weight),
    }
    for step in catalogue.steps:
        report.notes.append(f"cleaning, {step['name']}: {step['before']:,} rows, {step['after']:,} stay")
    if is_clock and (log.time % 86_400 != 0).mean() > 0.5:
        report.hours = np.bincount((log.time // 3600 % 24).astype(int), minlength=24).tolist()


def _describe_files(report: Report, catalogue: Catalogue, facts: list[MediaFacts], root: Path) -> None:
    """What the files hold that were opened."""
    report.findings += media_findings(facts, root)
    seconds = [fact.seconds for fact in facts if fact.seconds is not None]
    report.distributions["seconds of sound or video"] = quantiles(seconds)
    having = sum(bool(item.files) for item in catalogue.items)
    report.notes.append(f"the files of {len(facts):,} of the {having:,} items that have some were opened")
    if heard := [fact.sound for fact in facts if fact.sound is not None]:
        report.notes.append(f"of the {len(heard):,} with an audio or video file opened, {sum(heard):,} have sound")
        # Until all were opened, every video may have a sound track.
        if len(heard) == report.present["audio"]:
            report.present["audio"] = sum(heard)


def _try(splitter: Splitter, catalogue: Catalogue, report: Report) -> None:
    try:
        split = splitter(catalogue)
    except UserError as error:
        report.findings.append(judged("impossible_split", [error], 1))
        return
    rows = ", ".join(f"{(split.role == number).sum():,} {name}" for name, number in ROLES.items())
    trained = split.role == ROLES["train"]
    items, users = (len(np.unique(column[trained])) for column in (catalogue.log.item, catalogue.log.user))
    untrained = f"{len(catalogue.items) - items:,} items, {len(catalogue.user_ids) - users:,} users"
    report.notes.append(f"split={split.protocol.get('split')}: rows {rows}; without a row in train {untrained}")
