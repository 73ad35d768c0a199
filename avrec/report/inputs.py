"""The inputs of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from avrec.content.items import RawItem
from avrec.evaluation.results import Result
from avrec.ranking_task import Ragged, RankingTask


@dataclass(frozen=True)
class ReportInputs:
    """An evaluated run; users in the order of the task, items in that of the catalogue."""

    name: str
    task: RankingTask
    results: Sequence[Result]
    """Of every kind: the model's, the baselines', and the ablation's."""
    query_ED: Tensor
    item_ND: Tensor
    history: Ragged
    """Items by user, oldest first, as the model reads them."""
    items: Sequence[RawItem]
    titles: Sequence[str]
    """Empty: the item's id is shown."""
    user_ids: Sequence[str]
    labels: Sequence[str] = ()
    """Colours of the item map; empty: warm or cold."""
    label_name: str = ""
    health: Mapping[str, Any] = field(default_factory=dict)
    """Numbers by name, and sentences under "warnings"; empty: not measured."""
    curve: Sequence[Mapping[str, float]] = ()
    """Logged metrics, an entry per validation: ``epoch``, ``train/loss``, ``val/ndcg@10``, …"""
    about: Mapping[str, str] = field(default_factory=dict)
    """ReportData in a word or two, by name."""

    def title(self, item: int) -> str:
        """An item's title, or its id."""
        return self.titles[item] or self.items[item].item_id
