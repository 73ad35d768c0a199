"""The checks of a catalogue: what is read, what is found wrong, and what to do about it."""

import copy
import multiprocessing
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import polars as pl
from pebble import ProcessExpired, ProcessPool

from avrec.content.containers import open_media
from avrec.content.decode import decode
from avrec.content.items import DecodeFailure, DecodeRequest, RawItem
from avrec.content.limits import Limits, UnusableError
from avrec.content.progress import progress
from avrec.data.check.findings import (
    Finding,
    MediaFacts,
    flagged,
    item_findings,
    judged,
    log_findings,
    media_findings,
    time_findings,
    tokens_of,
)
from avrec.data.check.report import Report, quantiles
from avrec.data.interactions import Times, dates_of, roles_of, seconds_of
from avrec.data.sources.folder import FolderSource
from avrec.data.splits import ROLES, Splitter
from avrec.data.tables import CONTENT, FILE_COLUMNS, Catalogue, Table, Tables, as_text, inside
from avrec.errors import UserError
from avrec.io import moment

if TYPE_CHECKING:
    pass

MEDIA_NAME = r"(?i)\.(jpe?g|png|webp|gif|avif|mp4|m4v|mov|mkv|webm|mp3|m4a|ogg|opus|flac|wav)$"
ITEM_SECONDS = Limits.item_seconds
"""To decode one item's files; what takes longer counts as broken."""


def check(
    source: FolderSource,
    splitter: Splitter | None = None,
    max_tokens: int | None = None,
    look: Callable[[list[RawItem]], list[MediaFacts]] | None = None,
) -> Report:
    """Read a catalogue and judge it.

    What is impossible (a row without an id, say) is counted, and the rest judged without it. A catalogue whose report
    has no error can be loaded. ``max_tokens`` is what the text encoder reads of a text; ``look`` looks into the items'
    files.
    """
    report = Report(str(source.root))
    try:
        raw = RawTables(source)
        report.findings += raw.findings
        catalogue = (raw.mended() if report.status else source).load()
    except (UserError, pl.exceptions.PolarsError) as error:
        report.readable = bool(report.findings)
        report.findings.append(judged("damage", [str(error).split("\n")[0]], 1))
        return report
    report.notes += raw.notes
    _describe(report, catalogue, raw.is_clock)
    report.findings += item_findings(catalogue, max_tokens)
    report.findings += log_findings(catalogue, source.clean.repeats == "keep", source.feedback.column)
    if catalogue.log.has_time:
        report.findings += time_findings(catalogue, raw.is_clock, time.time())
    if splitter is not None:
        _try(splitter, catalogue, report)
    if look is not None and (facts := look(catalogue.items)):
        report.findings += media_findings(facts, source.root.resolve())
        seconds = [fact.seconds for fact in facts if fact.seconds is not None]
        report.distributions["seconds of sound or video"] = quantiles(seconds)
        having = sum(bool(item.files) for item in catalogue.items)
        report.notes.append(f"the files of {len(facts):,} of the {having:,} items that have some were opened")
        if heard := [fact.sound for fact in facts if fact.sound is not None]:
            report.notes.append(f"of the {len(heard):,} with an audio or video file opened, {sum(heard):,} have sound")
            # Until all were opened, every video may have a sound track.
            if len(heard) == report.present["audio"]:
                report.present["audio"] = sum(heard)
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
        "tokens of a text (about)": quantiles([tokens_of(item.text) for item in items if item.text]),
    }
    for step in catalogue.steps:
        report.notes.append(f"cleaning, {step['name']}: {step['before']:,} rows, {step['after']:,} stay")
    if is_clock and (log.time % 86_400 != 0).mean() > 0.5:
        report.hours = np.bincount((log.time // 3600 % 24).astype(int), minlength=24).tolist()


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


# ---------------------------------------------------------------------------------------------------------
# Tables: every impossible row, not only the first


class RawTables:
    """A catalogue's tables as they are: what is wrong with their rows, and those that can stay.

    Raises:
        UserError: a table cannot be read, or lacks its ids' columns.
    """

    def __init__(self, source: FolderSource) -> None:
        self.source = source
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.is_clock = False
        found, known, users = source.tables(), None, None
        if found.items is not None:
            items = self._named(self._paths(found.items.need(["item_id"]).collect()), "items", "item_id")
            known, found = as_text(items["item_id"]), replace(found, items=replace(found.items, frame=items.lazy()))
        rows = self._checked_log(found.interactions.need(["user_id", "item_id"]), known)
        if found.users is not None:
            users = self._checked_users(found.users.need(["user_id"]), as_text(rows["user_id"]))
        self.left = Tables(found.items, replace(found.interactions, frame=rows.lazy()), users)

    def mended(self) -> FolderSource:
        """The source, without what is impossible."""
        source = copy.copy(self.source)
        source.layout, source.columns, source.cache_dir = lambda root: self.left, {}, None
        return source

    def _flag(self, check: str, bad: pl.Series, named: pl.Series | None = None, **known: Any) -> None:
        """Note the rows where ``bad``, by their value in ``named`` or else their number in the file, from 1."""
        name = (lambda row: f"row {row + 1}") if named is None else (lambda row: named[row])
        self.findings.append(flagged(check, bad.to_numpy(), name, **known))

    def _flag_rows(self, check: str, bad: pl.Series, values: pl.Series, **known: Any) -> pl.Series:
        """Note the rows where ``bad``, with what stands in them; those that can stay."""
        self.findings.append(flagged(check, bad.to_numpy(), lambda row: f"row {row + 1}: {values[row]!r}", **known))
        return ~bad

    def _named(self, rows: pl.DataFrame, name: str, column: str) -> pl.DataFrame:
        """The rows with an id of their own."""
        ids = as_text(rows[column])
        double = ids.is_not_null() & ~ids.is_first_distinct()
        self._flag("empty_ids", ids.is_null(), table=name, column=column)
        self._flag("double_ids", double, ids, table=name, column=column)
        return rows.filter(ids.is_not_null() & ~double)

    def _paths(self, items: pl.DataFrame) -> pl.DataFrame:
        """The items without paths that leave the folder."""
        root = self.source.root.resolve()
        outside: list[str] = []
        missing: list[str] = []
        named = 0
        for column in (name for name in FILE_COLUMNS if name in items.columns):
            names = as_text(items[column]).to_list()
            for row, (item, name) in enumerate(zip(items["item_id"], names, strict=True)):
                try:
                    path = inside(root, name, column)
                except UserError:
                    outside.append(f"{item}: {name}")
                    names[row] = path = None
                named += path is not None
                if path is not None and not path.is_file():
                    missing.append(f"{item}: {name}")
            items = items.with_columns(pl.Series(column, names, pl.String))
        self.findings += [judged("outside_paths", outside, len(items)), judged("missing_files", missing, named)]
        texts = [name for name in items.columns if items[name].dtype == pl.String and name not in FILE_COLUMNS]
        texts = [name for name in texts if name != "item_id" and (self.source.text is None or name in self.source.text)]
        filled = {name: as_text(items[name]).drop_nulls() for name in texts}
        paths = [name for name, values in filled.items() if 2 * values.str.contains(MEDIA_NAME).sum() > len(values)]
        self.findings.append(judged("paths_in_text", paths, len(texts)))
        return items

    def _checked_users(self, table: Table, active: pl.Series) -> Table:
        """The users with an id of their own; ``active`` are those of the log."""
        users, active = self._named(table.collect(), "users", "user_id"), active.unique(maintain_order=True)
        known = as_text(users["user_id"])
        self._flag("users_without_log", ~known.is_in(active.implode()), known)
        self._flag("log_without_users", ~active.is_in(known.implode()), active)
        texts = [name for name, kind in users.schema.items() if kind == pl.String and name != "user_id"]
        names = [name for name in texts if users[name].n_unique() > max(20, len(users) / 2)]
        self.findings.append(judged("naming_columns", names, len(texts)))
        return replace(table, frame=users.lazy())

    def _checked_log(self, table: Table, known_items: pl.Series | None) -> pl.DataFrame:
        """The rows of the log that can be read."""
        feedback = self.source.feedback.column
        judges = {"timestamp": self._times, "split": self._roles, feedback: self._feedback}
        known = {"user_id", "item_id", *judges}
        rows = table.collect(table.frame.select([name for name in table.columns if name in known]))
        good = pl.Series(np.ones(len(rows), bool))
        for column in ("user_id", "item_id"):
            empty = as_text(rows[column]).is_null()
            self._flag("empty_ids", empty, table="the log", column=column)
            good &= ~empty
        if known_items is not None:
            items = as_text(rows["item_id"])
            orphan = ~items.is_in(known_items.implode()).fill_null(True)
            self._flag("orphans", orphan, items, ids=f"{items.filter(orphan).n_unique():,}")
            good &= ~orphan
        for name, judge in judges.items():
            if name in rows.columns:
                good &= judge(rows[name])
        self.findings.append(judged("no_times", [] if "timestamp" in rows.columns else [table.path.name], 1))
        unread = [name for name in table.columns if name not in known]
        self.findings.append(judged("unread_columns", unread, len(table.columns)))
        rows = rows.filter(good)
        if "timestamp" in rows.columns:
            keys = rows.select(pl.struct("user_id", "item_id", "timestamp")).to_series()
            named = rows.select(pl.format("user {}, item {}, {}", "user_id", "item_id", "timestamp")).to_series()
            self._flag("duplicates", ~keys.is_first_distinct(), named, policy=self.source.clean.duplicates)
        return rows

    def _times(self, column: pl.Series) -> pl.Series:
        unit, good = self.source.time, column.is_not_null()
        try:
            times = seconds_of(column, unit, "timestamp")
        except UserError:
            number = column.cast(pl.Float64, strict=False).is_finite().fill_null(False)
            date = dates_of(column).is_not_null()
            good = date if unit == "iso" or (unit == "auto" and date.sum() > number.sum()) else number
            try:
                times = seconds_of(column.filter(good), unit, "timestamp")
            except UserError:  # of the unit; loading says so
                times = Times(np.zeros(0), "")
        if len(times.seconds):
            self.is_clock = times.is_clock
            span = "" if times.is_clock else f", {moment(times.seconds.min())} to {moment(times.seconds.max())}"
            self.notes.append(f"timestamps are read as {times.how}{span}")
        return self._flag_rows("unreadable_times", ~good, column)

    def _roles(self, column: pl.Series) -> pl.Series:
        return self._flag_rows("unknown_splits", roles_of(column).is_null(), column)

    def _feedback(self, column: pl.Series) -> pl.Series:
        value = column.cast(pl.Float64, strict=False)
        good = self._flag_rows("unreadable_feedback", ~value.is_finite().fill_null(False), column, column=column.name)
        if self.source.feedback.map == "threshold":
            return good
        least = self.source.clean.min_feedback
        negative = good & (value < 0).fill_null(False) & (True if least is None else (value >= least).fill_null(False))
        return good & self._flag_rows("negative_feedback", negative, column, column=column.name)


# ---------------------------------------------------------------------------------------------------------
# Media


def inspect(item: RawItem, request: DecodeRequest) -> MediaFacts:
    """What an item's files hold. One that does not exist is no failure here: it was counted before."""
    decoded = decode(item, request)
    pictures = [] if decoded.image is None else [decoded.image]
    pictures += [] if decoded.frames is None else list(decoded.frames)
    opened = {"audio": request.sample_rate > 0, "video": request.video_frames > 0}
    broken = {failure.path for failure in decoded.failures}
    lengths = [_seconds(p) for kind, p in item.files.items() if opened.get(kind) and str(p) not in broken]
    return MediaFacts(
        item.item_id,
        [failure for failure in decoded.failures if Path(failure.path).exists()],
        None if decoded.image is None else zlib.crc32(decoded.image.tobytes()),
        bool(pictures) and all(picture.std(axis=(0, 1)).max() < 2 for picture in pictures),
        decoded.sound is not None and np.abs(decoded.sound).max(initial=0) < 1e-3,
        max((length for length in lengths if length), default=None),
        decoded.sound is not None if opened["audio"] and not item.files.keys().isdisjoint(CONTENT["audio"]) else None,
    )


def _seconds(path: Path) -> float | None:
    try:
        with open_media(path) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.error.FFmpegError, UnusableError):  # an animated picture, say
        return None


def inspect_all(items: list[RawItem], request: DecodeRequest, workers: int) -> list[MediaFacts]:
    """Items' files, opened in processes: one that kills or holds up its process costs only itself."""
    facts = []
    pool = ProcessPool(workers, context=multiprocessing.get_context("spawn"))
    try:
        results = pool.map(inspect, items, [request] * len(items), timeout=ITEM_SECONDS).result()
        with progress("opening files", len(items)) as advance:
            for item in items:
                try:
                    facts.append(next(results))
                except TimeoutError:
                    facts.append(_lost(item, f"takes longer than {ITEM_SECONDS} s"))
                except ProcessExpired:
                    facts.append(_lost(item, "ends the process that reads it"))
                except MemoryError:
                    facts.append(_lost(item, "needs too much memory"))
                advance(1)
    finally:
        pool.stop()
        pool.join()
    return facts


def _lost(item: RawItem, reason: str) -> MediaFacts:
    paths = " or ".join(map(str, item.files.values()))
    return MediaFacts(item.item_id, [DecodeFailure(item.item_id, paths, reason)])


def sampled(items: list[RawItem], media: bool | int) -> list[RawItem]:
    """The items with files; of more than ``media``, so many by chance, the same each time; none for False."""
    items = [item for item in items if item.files and media]
    if media is True or len(items) <= media:
        return items
    return [items[n] for n in sorted(np.random.default_rng(0).choice(len(items), media, replace=False))]
