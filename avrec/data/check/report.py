"""The report of a check: all facts and findings of a catalogue, as JSON and for people."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from avrec.data.check.findings import ERROR, FINE, VERDICTS, WARNING, Finding

COLOURS = {ERROR: "bold red", WARNING: "yellow", FINE: "green"}
QUANTILES = {"least": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}


def quantiles(values: Any) -> dict[str, float]:
    """A distribution in a line; empty where there is nothing.

    >>> quantiles([1, 2, 3])["mean"]
    2.0
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return {}
    found = np.round([*np.quantile(values, [*QUANTILES.values()]), values.mean()], 4)
    return dict(zip([*QUANTILES, "mean"], found.tolist(), strict=True))


@dataclass
class Report:
    """What a check found, each thing by its name.

    Attributes:
        counts: of users, items and interactions, after cleaning.
        present: items by modality, as the encoders would read them; ``nothing``: no content at all.
        files: items by kind of file.
        distributions: quantiles, by what they are of.
        notes: facts in a sentence each.
        hours: interactions by hour of the day, UTC; empty where times are no clock's.
        readable: False where the tables could not be read at all.
    """

    root: str
    counts: dict[str, int] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    distributions: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hours: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    readable: bool = True

    @property
    def status(self) -> int:
        """0: fine, maybe with warnings; 1: errors; 2: could not be read at all."""
        return 2 if not self.readable else int(self.number_of(ERROR) > 0)

    def number_of(self, verdict: str) -> int:
        """Findings with this verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """All of it, errors first."""
        return {"status": self.status, **asdict(self), "findings": [asdict(finding) for finding in self.sorted()]}

    def sorted(self) -> list[Finding]:
        """The findings: errors, warnings, what is fine."""
        return sorted(self.findings, key=lambda finding: VERDICTS.index(finding.verdict))


def show(report: Report, console: Console) -> None:
    """Print a report for people: what is there, then what is wrong with it, errors first."""
    console.print(Text(report.root, "bold"), soft_wrap=True)
    if report.counts:
        console.print(" · ".join(f"{count:,} {name}" for name, count in report.counts.items()))
        for what, counts in (("items with", report.present), ("items that name a file:", report.files)):
            shares = (f"{name} {_share(count, report.counts['items'])}" for name, count in counts.items())
            console.print(f"{what} {' · '.join(shares)}")
    for note in report.notes:
        console.print(Text(note))
    if report.hours:
        console.print(f"hours 0-23 UTC {bars(report.hours)} {night(report.hours)}")
    if report.distributions:
        console.print(_table(report.distributions))
    console.print(_judgements(report))
    errors, warnings = report.number_of(ERROR), report.number_of(WARNING)
    verdict = ERROR if errors else WARNING if warnings else FINE
    told = ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in ((errors, "error"), (warnings, "warning")))
    console.print(f"\n{told} (exit status {report.status})", style=COLOURS[verdict])


def _table(distributions: dict[str, dict[str, float]]) -> Table:
    table = Table("", *QUANTILES, "mean", box=box.SIMPLE_HEAD, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in distributions.items():
        if values:
            table.add_row(name, *(f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values.values()))
    return table


def _judgements(report: Report) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=7)
    for finding in report.sorted():
        if finding.count:
            share = f"({_share(finding.count, finding.of)}) " if finding.of > 1 else ""
            told = Text.assemble(f"{finding.count:,} ", (share, "dim"), (finding.what, "bold"))
            more = "; …" if finding.count > len(finding.examples) else ""
            grid.add_row(Text(finding.verdict, COLOURS[finding.verdict]), told)
            grid.add_row("", Padding(Text("; ".join(finding.examples) + more, "dim"), (0, 0, 0, 2)))
            grid.add_row("", Text(f"→ {finding.advice}"))
    found = {finding.check for finding in report.findings if finding.count}
    clean = [finding.check.replace("_", " ") for finding in report.findings if finding.check not in found]
    if clean:
        told = Text(f"looked for and not found: {', '.join(dict.fromkeys(clean))}", "dim")
        grid.add_row(Text(FINE, COLOURS[FINE]), told)
    return grid


def _share(count: int, of: int) -> str:
    share = 100 * count / max(of, 1)
    return f"{share:.0f} %" if share in (0, 100) or 1 <= share <= 99 else f"{share:.3g} %"


def bars(counts: Sequence[int]) -> str:
    """A histogram of one line.

    >>> bars([0, 4, 8])
    '▁▅█'
    """
    marks = "▁▂▃▄▅▆▇█"
    return "".join(marks[round(7 * count / max(max(counts), 1))] for count in counts)


def night(hours: Sequence[int]) -> str:
    """The quietest six hours in UTC, and the time zone that they suggest: people sleep from 1 to 7.

    Nothing is inferred where those hours are not clearly quieter than others: below 60 % of the mean, and four standard
    deviations below it.

    >>> night([0] * 6 + [9] * 18)
    'quietest 0-6, as where clocks are near UTC+1'
    >>> night([9] * 24)
    'no hours are clearly quieter than others'
    """
    start = min(range(24), key=lambda begin: sum(hours[(begin + hour) % 24] for hour in range(6)))
    quiet, mean = sum(hours[(start + hour) % 24] for hour in range(6)), sum(hours) / 4
    if quiet > min(0.6 * mean, mean - 4 * (0.75 * mean) ** 0.5):
        return "no hours are clearly quieter than others"
    zone = (1 - start + 11) % 24 - 11
    return f"quietest {start}-{(start + 6) % 24}, as where clocks are near UTC{zone:+d}"
