"""The headline of a report, and display names."""

from collections.abc import Sequence

from avrec.evaluation.results import MODEL, ORACLE, Result

POPULARITY = "popularity"
FEW_USERS = 30
"""Of a slice that the headline mentions, at least."""
_NAMES = {
    "item_knn": "item-kNN",
    "ease": "EASE",
    "content_knn": "content-kNN",
    "recent_popularity": "recent popularity",
}
_ALONE = "content_knn_"
SLICES = {
    "all": ("All items", "Every held-out item, ranked among the whole catalogue."),
    "cold_items": ("Cold items", "Items without interactions in training, ranked among the whole catalogue."),
    "cold_candidates": ("Cold items only", "Items without interactions in training, ranked among themselves."),
}

SLICE_KINDS = {
    "history_length": ("History length", "Items in the user's history."),
    "user": ("Users", "Known: with interactions in training."),
    "popularity": ("Item popularity", "Decile 1: the tenth of the warm items with the fewest interactions."),
    "present": ("Modalities of the item", "Those that the item has."),
    "days_since_split": ("Days since the split", "Time from the split to the held-out interaction."),
    "days_since_last": ("Days since the last interaction", "Time from the end of the history to the held-out one."),
}
HEALTH = {
    "alignment": ("alignment", "0 to 4: mean squared distance of users from their items. Lower is better."),
    "item_effective_rank": ("effective rank, items", "Dimensions in use. Few: collapse."),
    "user_effective_rank": ("effective rank, users", "Dimensions in use. Few: collapse."),
    "item_uniformity": ("uniformity, items", "0: all in one place; near −4: spread evenly."),
    "user_uniformity": ("uniformity, users", "0: all in one place; near −4: spread evenly."),
    "item_mean_norm": ("mean norm, items", "Length of their vectors."),
    "user_mean_norm": ("mean norm, users", "Length of their vectors, divided by the temperature."),
    "item_alikeness": (
        "mean cosine similarity, items",
        "To their mean direction, 0 to 1. Near 1: hard to distinguish.",
    ),
    "user_alikeness": (
        "mean cosine similarity, users",
        "To their mean direction, 0 to 1. Near 1: the same list for all.",
    ),
    "temperature": ("temperature", "Scores are divided by it. Low: sharp."),
    "recommended_popularity": ("popularity, recommended", "Mean percentile of the top ten; far above chosen: bias."),
    "chosen_popularity": ("popularity, chosen", "Mean percentile of the held-out items."),
    "calibration_ratio": ("calibration, ratio", "Choices predicted by σ(score) over those observed. Ideal: 1."),
    "calibration_error": (
        "calibration, error",
        "0 to 1: share of the predicted choices at the wrong scores. Ideal: 0.",
    ),
    "item_drift": ("drift, items", "1 minus the cosine with the embedding one validation before. Late: near 0."),
    "item_norm_drift": ("drift of the norm, items", "Relative change since the validation before."),
}


def slice_name(result: Result) -> tuple[str, str, str]:
    """The title and meaning of the slice's panel, and the slice's own name."""
    if not result.group:
        return "Overall", "Cold items: without interactions in training.", SLICES.get(result.slice, (result.slice,))[0]
    label = result.label.replace("+", " + ") if result.group == "present" else result.label
    if label[:-1].isdecimal() and label[-1] == "-":
        label = f"{label[:-1]} and more"
    table, _, column = result.group.rpartition(".")
    title = SLICE_KINDS.get(result.group, (column.replace("_", " "), f"Of the {table}." if table else ""))
    return *title, label


def model_name(name: str) -> str:
    """Its display name.

    >>> model_name("item_knn"), model_name("content_knn_text")
    ('item-kNN', 'content-kNN, text alone')
    """
    if name.startswith(_ALONE):
        return f"content-kNN, {name.removeprefix(_ALONE)} alone"
    return _NAMES.get(name, name.replace("_", " "))


def metric_name(name: str) -> str:
    """Its display name.

    >>> metric_name("ndcg@10"), metric_name("hit_rate@5")
    ('NDCG@10', 'hit rate@5')
    """
    kind, _, k = name.partition("@")
    return f"{kind.upper() if kind in ('ndcg', 'mrr', 'map') else kind.replace('_', ' ')}@{k}"


def main_metric(results: Sequence[Result]) -> str:
    """The metric of headline and bars: NDCG@10 where it was measured."""
    names = [result.metric for result in results]
    return "ndcg@10" if "ndcg@10" in names else next((n for n in names if n.startswith("ndcg")), names[0])


def of_slice(results: Sequence[Result], slice_name: str) -> dict[str, Result]:
    """The main metric in a slice, by model."""
    metric = main_metric(results)
    return {r.model: r for r in results if r.slice == slice_name and r.metric == metric}


def headline(results: Sequence[Result]) -> list[str]:
    """The results in sentences."""
    if not results or MODEL not in (whole := of_slice(results, "all")):
        return ["The model has no results."]
    own = whole[MODEL]
    metric = metric_name(own.metric)
    said = [
        f"For {own.users:,} {own.split} users the model reaches {metric} {_with_interval(own)}, "
        f"ranking {own.protocol.get('candidate_items', 0):,} items."
    ]
    if POPULARITY in whole and whole[POPULARITY].value > 0:
        popular = whole[POPULARITY].value
        said.append(
            f"The popularity baseline reaches {popular:.3f}: the model is {own.value / popular:.1f} times as good."
        )
    said += _against_best(whole)
    if "cold_items" in {r.slice for r in results}:
        said += _cold(of_slice(results, "cold_items"))
    if ORACLE in whole and whole[ORACLE].value > 0:
        share = own.value / whole[ORACLE].value
        best = f"An oracle that knows the true preferences reaches {whole[ORACLE].value:.3f}"
        said.append(f"{best}; the model reaches {100 * share:.0f} % of that.")
    return said


def best_baseline(found: dict[str, Result]) -> Result | None:
    """The strongest baseline, the oracle aside."""
    others = [r for name, r in found.items() if name not in (MODEL, ORACLE)]
    return max(others, key=lambda r: r.value, default=None)


def _against_best(whole: dict[str, Result]) -> list[str]:
    own, best = whole[MODEL], best_baseline(whole)
    if best is None or best.model == POPULARITY:
        return []
    apart = own.low > best.high or best.low > own.high
    above = "above" if own.value > best.value else "below" if own.value < best.value else "level with"
    return [
        f"The strongest baseline, {model_name(best.model)}, reaches {_with_interval(best)}: the model is {above} it, "
        f"and the intervals {'do not overlap' if apart else 'overlap'}."
    ]


def _cold(found: dict[str, Result]) -> list[str]:
    if MODEL not in found or found[MODEL].users < FEW_USERS:
        return []
    own, best = found[MODEL], best_baseline(found)
    against = f" The strongest baseline there, {model_name(best.model)}, reaches {best.value:.3f}." if best else ""
    return [f"On cold items the model reaches {own.value:.3f} ({own.users:,} users).{against}"]


def _with_interval(result: Result) -> str:
    return f"{result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
