"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avrec.content.items import RawItem
from avrec.evaluation.results import Result
from avrec.ranking_task import Ragged, RankingTask

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Material:
    """A measured run.

    Users stand in the order of the task, items in that of the catalogue.
    """

    name: str
    task: RankingTask
    results: Sequence[Result]
    """The model's and the baselines'."""
    query_ED: "Tensor"
    item_ND: "Tensor"
    history: Ragged
    """Items by user, oldest first, as the model read them."""
    items: Sequence[RawItem]
    titles: Sequence[str]
    """An item without one goes by its id."""
    user_ids: Sequence[str]
    labels: Sequence[str] = ()
    """What the items are coloured by; empty: whether training knew them."""
    label_name: str = ""
    hidden: Sequence[Result] = ()
    """The model's with modalities hidden."""
    shares: Sequence[Result] = ()
    """Of the scores' variance, one per modality."""
    health: Mapping[str, Any] = field(default_factory=dict)
    """Numbers by name, and under "warnings" what is off, in sentences; empty: not measured."""
    curve: Sequence[Mapping[str, float]] = ()
    """What training logged, an entry per validation: ``epoch``, ``train/loss``, ``val/ndcg@10``, …"""
    about: Mapping[str, str] = field(default_factory=dict)
    """Facts in a word or two, by name."""

    def title(self, item: int) -> str:
        """What an item is called."""
        return self.titles[item] or self.items[item].item_id
