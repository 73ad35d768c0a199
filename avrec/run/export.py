"""From a run to its exported towers: what train.py leaves behind, and what avrec export is asked for."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avrec.batch import Array
from avrec.errors import UserError

if TYPE_CHECKING:
    from avrec.export.user_tower import ExportedUserTower
    from avrec.run.build import Run
    from avrec.towers.item_tower import ItemTower

log = logging.getLogger(__name__)

CHOICES = {
    "target": ("item_tower", "user_tower", "both"),
    "format": ("safetensors", "onnx", "torch_export"),
    "users": ("none", "hashed"),
}


def check(target: str, form: str, int8: bool, users: str) -> None:
    """Refuse what cannot be exported, before a run is brought back for it.

    Raises:
        UserError: an unknown choice, int8 without ONNX, or a missing package.
    """
    for key, value in (("target", target), ("format", form), ("users", users)):
        if value not in CHOICES[key]:
            raise UserError(f"{key} must be one of {', '.join(CHOICES[key])}; got {value}.")
    if not isinstance(int8, bool):
        raise UserError(f"int8 must be true or false; got {int8}.")
    if int8 and form != "onnx":
        raise UserError(f"int8=true needs format=onnx; got format={form}.")
    if users == "hashed" and target == "item_tower":
        raise UserError("users=hashed needs a user tower: target=user_tower or target=both; got target=item_tower.")
    if form == "onnx":
        from avrec.export.graph import check_packages

        check_packages()


def export_run(
    run: "Run",
    out: Mapping[str, Path],
    form: str = "safetensors",
    int8: bool = False,
    users: str = "none",
    results: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write towers of a run, prepared and with its weights.

    Args:
        run: whose towers.
        out: folders by ``item_tower`` and ``user_tower``.
        form: ``safetensors``, which is always written, or ``onnx`` or ``torch_export`` besides.
        int8: write a quantised ONNX file too, and measure what it loses.
        users: ``none`` leaves out the vectors of single users, ``hashed`` writes them under hashed ids.
        results: of metrics.json, for the card.

    Raises:
        UserError: see ``export_item_tower``, ``export_user_tower`` and ``write_graph``.
    """
    from avrec.export.item_tower import export_item_tower
    from avrec.export.user_tower import export_user_tower

    module, data, catalogue = run.module, run.data, run.data.catalogue
    job = _Job(run, form, int8, results)
    if "item_tower" in out:
        ids = [item.item_id for item in catalogue.items]
        export_item_tower(module.item_tower, out["item_tower"], ids, data.trained_N, catalogue.text, job.finish_items)
    if "user_tower" in out:
        known = {catalogue.user_ids[user]: int(data.users.row[user]) for user in np.flatnonzero(data.users.row)}
        export_user_tower(
            module.user_tower,
            module.score,
            out["user_tower"],
            dim=module.item_tower.dim,
            history_length=data.history_length,
            user_columns=catalogue.user_coding,
            users=known if users == "hashed" else None,
            finish=job.finish_users,
        )


def results_of(run_dir: Path) -> list[dict[str, Any]]:
    """The results in a run's metrics.json; none where it has none.

    Raises:
        UserError: the file is damaged.
    """
    from avrec.evaluation.results import read_results

    path = run_dir / "metrics.json"
    return [result.as_dict() for result in read_results(path).results] if path.is_file() else []


@dataclass
class _Job:
    """What is written beside a tower's own files: programs, what they lose, and the card."""

    run: "Run"
    form: str
    int8: bool
    results: Sequence[Mapping[str, Any]]
    item_ND: Array | None = None
    """By the quantised item tower, where it was exported."""

    def finish_items(self, folder: Path) -> None:
        """Programs and card of an item tower."""
        data, module = self.run.data, self.run.module
        measured = {}
        differences: dict[str, float] = {}
        if self.form != "safetensors":
            from avrec.export.graph import INT8, load_onnx, write_graph
            from avrec.export.item_graph import ItemGraph, dense
            from avrec.export.item_tower import load_item_tower

            tower = load_item_tower(folder, classes=[type(part) for part in module.item_tower.modules()]).tower
            differences = write_graph(ItemGraph(tower), folder, self.form, self.int8)
            if self.int8:
                program = load_onnx(folder / INT8)
                batches = (dense(tower, batch) for batch in data.unfrozen_item_batches())
                vectors = [program({name: tensor.numpy() for name, tensor in inputs.items()}) for inputs in batches]
                self.item_ND = np.concatenate(vectors)
                measured = {"the run": self._recall(*self._own()), "int8": self._recall(*self._own(self.item_ND))}
        limits = ["What is read of an item: " + ", ".join(_reads(module.item_tower)) + "."]
        self._card(folder, measured, differences, limits)

    def finish_users(self, folder: Path) -> None:
        """Programs and card of a user tower."""
        from avrec.export.user_tower import load_user_tower

        exported = load_user_tower(folder, classes=[type(part) for part in self.run.module.user_tower.modules()])
        measured, differences = {}, {}
        if self.form != "safetensors":
            from avrec.export.graph import INT8, load_onnx, write_graph

            differences = write_graph(exported.graph, folder, self.form, self.int8)
        left_out = exported.graph.num_users == 0 and self.run.module.user_tower.user_table is not None
        if left_out or self.int8:
            item_ND, query_ED = self._own()
            measured["the run"] = self._recall(item_ND, query_ED)
            measured["float32"] = self._recall(item_ND, self._queries(exported, exported.run, item_ND))
            if self.int8:
                items = item_ND if self.item_ND is None else self.item_ND
                measured["int8"] = self._recall(items, self._queries(exported, load_onnx(folder / INT8), items))
        limits = [f"A query reads the youngest {exported.config['history_length']} items of a history."]
        if left_out:
            limits.append("The vectors of single users are left out: people are known by their histories alone.")
        self._card(folder, measured, differences, limits)

    def _own(self, items: Array | None = None) -> tuple[Array, Array]:
        """Item embeddings of the run, or those given, and its queries over them."""
        import torch

        module, data = self.run.module.cpu().eval(), self.run.data
        with torch.inference_mode():
            batches = data.item_batches()
            item_ND = torch.cat([module.item_tower(b) for b in batches]) if items is None else torch.from_numpy(items)
            last = [module.user_tower.last(batch, item_ND) for batch in data.user_batches("test")]
            return item_ND.numpy(), module.score.scale(torch.cat(last)).numpy()

    def _queries(self, exported: "ExportedUserTower", program: Callable[..., Array], item_ND: Array) -> Array:
        data = self.run.data
        ids = [data.catalogue.user_ids[user] for user in data.tasks["test"].user_index_E]
        parts, start = [], 0
        for batch in data.user_batches("test"):
            inputs = {
                "history": item_ND[batch.history_BL],
                "history_present": batch.history_present_BL.numpy(),
                "history_time": batch.history_time_BL.numpy(),
                "user": exported.rows(ids[start : start + len(batch)]),
                "categories": batch.categories_BC.numpy(),
                "numbers": batch.numbers_BR.numpy(),
            }
            parts.append(program({name: inputs[name] for name in exported.graph.reads}))
            start += len(batch)
        return np.concatenate(parts)

    def _recall(self, item_ND: Array, query_ED: Array) -> dict[str, float]:
        import torch

        from avrec.evaluation.evaluator import fast_metrics
        from avrec.evaluation.ranking import EmbeddingScorer

        names = [f"{metric}@{k}" for k in self.run.cfg.evaluation.ks for metric in ("recall", "ndcg")]
        scorer = EmbeddingScorer(torch.from_numpy(query_ED), torch.from_numpy(item_ND))
        return fast_metrics(scorer, self.run.data.tasks["test"], names)

    def _card(
        self, folder: Path, measured: dict[str, dict[str, float]], differences: dict[str, float], limits: list[str]
    ) -> None:
        from avrec.export.card import About, write_card
        from avrec.io import write_json
        from avrec.run.outputs import data_summary

        counts = data_summary(self.run.data)
        limits = [
            f"{counts['cold_items']:,} of {counts['items']:,} items had no interaction in training; what is known of "
            "such items is their content.",
            *limits,
            "Measured on held-out interactions of one catalogue; for other catalogues and people nothing is known.",
        ]
        if differences or measured:
            write_json(folder / "export.json", {"measured": measured, "differences": differences}, readable=True)
        for variant, values in measured.items():
            log.info("%s: %s", variant, ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        write_card(folder, About(counts, self.results, measured, differences, limits))


def _reads(tower: "ItemTower") -> list[str]:
    """What is read of an item, and how much of it."""
    encoders: Any = tower.encoders.items()
    return [f"{name} ({limit})" if (limit := encoder.limit()) else name for name, encoder in encoders]
