"""What commands print: one console, and the tables of results and comparisons."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from avrec.evaluation.comparison import Comparison, comparison_table
from avrec.evaluation.results import Result, of_kind, results_table
from avrec.evaluation.significance import LEVEL

MOST_ROWS = 25
"""Of a printed comparison; the file has all."""


def console(width: int = 120) -> Console:
    """As wide as the terminal, or ``width`` where the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def show_results(results: Sequence[Result]) -> None:
    """Print the main tables of all models, then the first ranking metric by slice and by modality."""
    out, main = console(), of_kind(results, "main")
    out.print(results_table(main))
    metric = next((r.metric for r in main if r.metric.startswith("ndcg")), main[0].metric)
    by_slice = [r for r in of_kind(results, "main", "slice") if r.model in ("avrec", "popularity")]
    by_modality = of_kind(results, "without", "alone")
    for title, cells in (
        ("by slice", {(r.slice, r.model): f"{r.value:.4f}" for r in by_slice if r.metric == metric}),
        ("with modalities hidden", {(r.model, r.slice): f"{r.value:.4f}" for r in by_modality if r.metric == metric}),
    ):
        rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
        if cells:
            table = Table("", *columns, title=f"{metric}, {title}", title_justify="left")
            for row in rows:
                table.add_row(row, *(cells.get((row, column), "") for column in columns))
            out.print(table)
    if shares := of_kind(results, "variance_share"):
        out.print(f"share of the scores' variance: {', '.join(f'{r.modality} {r.value:.0%}' for r in shares)}")


def show_comparison(compared: Sequence[Comparison], file: Path) -> None:
    """Print the significant differences and the overall ones as sentences, then a table of at most ``MOST_ROWS`` rows.

    Args:
        compared: all comparisons; nothing is printed where there are none.
        file: which has them all.
    """
    if not compared:
        return
    told = [one for one in compared if one.p_holm < 1 - LEVEL or one.slice == "all"]
    print("\n".join(one.sentence for one in told))
    if len(told) < len(compared):
        print(f"On {len(compared) - len(told)} more slices and metrics the difference is not significant.")
    shown = [*told, *(one for one in compared if one not in told)][:MOST_ROWS]
    console().print(comparison_table([one for one in compared if one in shown]))
    if len(shown) < len(compared):
        print(f"{len(compared) - len(shown)} more rows: {file}")
