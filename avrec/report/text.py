"""Numbers in sentences, and names that people read."""

from collections.abc import Sequence

from avrec.evaluation.results import ORACLE, Result

MODEL = "avrec"
POPULARITY = "popularity"
FEW_USERS = 30
"""Fewer than this are not worth a sentence."""
_NAMES = {
    "item_knn": "item-kNN",
    "ease": "EASE",
    "content_knn": "content-kNN",
    "recent_popularity": "recent popularity",
}
_ALONE = "content_knn_"
SLICES = {
    "all": ("Everything", "All items that the users chose, found in the whole catalogue."),
    "cold_items": ("New items", "Items that training never saw, found between all the others."),
    "cold_candidates": ("New items, apart", "Items that training never saw, told apart from each other alone."),
}

SLICE_KINDS = {
    "history_length": ("History length", "What the user had before."),
    "user": ("Users", "Known: training saw them."),
    "popularity": ("Popularity of the item", "Decile 1: the tenth of the items that are chosen least."),
    "present": ("What the item has", "Its modalities."),
    "days_since_split": ("Days since the split", "How long after it the item was chosen."),
    "days_since_last": ("Days since the last one", "How long after the last of the history the item was chosen."),
}
HEALTH = {
    "alignment": ("alignment", "0 to 4: how far users stand from what they chose. Less is better."),
    "item_effective_rank": ("effective rank, items", "Dimensions that the items really use. A few: collapse."),
    "user_effective_rank": ("effective rank, users", "Dimensions that the users really use. A few: collapse."),
    "item_uniformity": ("uniformity, items", "0: all in one place; towards −4: spread evenly."),
    "user_uniformity": ("uniformity, users", "0: all in one place; towards −4: spread evenly."),
    "item_mean_norm": ("mean norm, items", "Length of their vectors."),
    "user_mean_norm": ("mean norm, users", "Length of their vectors, with what the scores are scaled by."),
    "item_alikeness": ("alikeness, items", "0 to 1. Near 1 all point the same way and are hardly told apart."),
    "user_alikeness": ("alikeness, users", "0 to 1. Near 1 all point the same way and get the same list."),
    "temperature": ("temperature", "Scores are divided by it. Small: sharp."),
    "recommended_popularity": (
        "popularity, recommended",
        "Mean percentile of the first ten; bias where far above chosen.",
    ),
    "chosen_popularity": ("popularity, chosen", "Mean percentile of what the users really chose."),
    "calibration_ratio": ("calibration, ratio", "Choices that σ(score) promises, by those observed. 1 is right."),
    "calibration_error": (
        "calibration, error",
        "0 (right) to 1: how much of σ(score) is promised at the wrong scores.",
    ),
    "item_drift": ("drift, items", "1 minus the cosine of each with itself one validation before. Late: towards 0."),
    "item_norm_drift": ("drift of the norm, items", "Change since one validation before, as a share."),
}


def slice_name(name: str) -> tuple[str, str, str]:
    """Its kind, what that means, and its own name.

    >>> slice_name("history_length: 51-")[::2], slice_name("items.genre: rock"), slice_name("all")[::2]
    (('History length', '51 and more'), ('genre', 'Of the items.', 'rock'), ('Overall', 'Everything'))
    """
    kind, _, label = name.partition(": ")
    if not label:
        return "Overall", "New items: training never saw them; apart: among themselves.", SLICES.get(name, (name,))[0]
    if label[:-1].isdecimal() and label[-1] == "-":
        label = f"{label[:-1]} and more"
    table, _, column = kind.rpartition(".")
    title = SLICE_KINDS.get(kind, (column.replace("_", " "), f"Of the {table}." if table else ""))
    return *title, label.replace("+", " + ") if kind == "present" else label


def model_name(name: str) -> str:
    """As people write it.

    >>> model_name("item_knn"), model_name("content_knn_text")
    ('item-kNN', 'content-kNN, text alone')
    """
    if name.startswith(_ALONE):
        return f"content-kNN, {name.removeprefix(_ALONE)} alone"
    return _NAMES.get(name, name.replace("_", " "))


def metric_name(name: str) -> str:
    """As people write it.

    >>> metric_name("ndcg@10"), metric_name("hit_rate@5")
    ('NDCG@10', 'hit rate@5')
    """
    kind, _, k = name.partition("@")
    return f"{kind.upper() if kind in ('ndcg', 'mrr', 'map') else kind.replace('_', ' ')}@{k}"


def main_metric(results: Sequence[Result]) -> str:
    """The one that headline and bars are about: NDCG@10 where it was measured."""
    names = [result.metric for result in results]
    return "ndcg@10" if "ndcg@10" in names else next((n for n in names if n.startswith("ndcg")), names[0])


def of_slice(results: Sequence[Result], slice_name: str) -> dict[str, Result]:
    """The main metric in a slice, by model."""
    metric = main_metric(results)
    return {r.model: r for r in results if r.slice == slice_name and r.metric == metric}


def headline(results: Sequence[Result]) -> list[str]:
    """What the numbers say, in sentences."""
    if not results or MODEL not in (whole := of_slice(results, "all")):
        return ["There are no results of the model."]
    own = whole[MODEL]
    metric = metric_name(own.metric)
    said = [
        f"For {own.users:,} {own.split} users the model reaches {metric} {_with_interval(own)}, "
        f"ranking {own.protocol.get('candidate_items', 0):,} items."
    ]
    if POPULARITY in whole and whole[POPULARITY].value > 0:
        popular = whole[POPULARITY].value
        said.append(
            f"Showing everybody what is popular gives {popular:.3f}; this is {own.value / popular:.1f} times that."
        )
    said += _against_best(whole)
    if "cold_items" in {r.slice for r in results}:
        said += _cold(of_slice(results, "cold_items"))
    if ORACLE in whole and whole[ORACLE].value > 0:
        share = own.value / whole[ORACLE].value
        best = f"An oracle that knows the true tastes reaches {whole[ORACLE].value:.3f}"
        said.append(f"{best}; the model {100 * share:.0f} % of it.")
    return said


def best_baseline(found: dict[str, Result]) -> Result | None:
    """The strongest that is no oracle."""
    others = [r for name, r in found.items() if name not in (MODEL, ORACLE)]
    return max(others, key=lambda r: r.value, default=None)


def _against_best(whole: dict[str, Result]) -> list[str]:
    own, best = whole[MODEL], best_baseline(whole)
    if best is None or best.model == POPULARITY:
        return []
    apart = own.low > best.high or best.low > own.high
    above = "above" if own.value > best.value else "below" if own.value < best.value else "level with"
    return [
        f"The strongest baseline, {model_name(best.model)}, gives {_with_interval(best)}: the model is {above} it, "
        f"and the intervals {'lie apart' if apart else 'overlap'}."
    ]


def _cold(found: dict[str, Result]) -> list[str]:
    if MODEL not in found or found[MODEL].users < FEW_USERS:
        return []
    own, best = found[MODEL], best_baseline(found)
    against = f" The strongest baseline there, {model_name(best.model)}, gives {best.value:.3f}." if best else ""
    return [f"Items that training never saw are found at {own.value:.3f} ({own.users:,} users).{against}"]


def _with_interval(result: Result) -> str:
    return f"{result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
