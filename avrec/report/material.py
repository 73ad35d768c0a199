"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avrec.batch import Ragged, RankingTask, RawItem
from avrec.evaluation.protocol import Result

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Material:
    """A measured run.

    Attributes:
        name: of the run.
        task: what was asked.
        results: the model's and the baselines'.
        query_ED: the model's query for each evaluated user.
        item_ND: the model's item embeddings.
        history: items by evaluated user, oldest first, as the model read them.
        items: raw content, by item index.
        titles: by item index; an item without one goes by its id.
        user_ids: by evaluated user.
        labels: what the items are coloured by, by item index; empty: whether training knew them.
        label_name: what the labels are of.
        hidden: the model's results with modalities hidden.
        shares: of the scores' variance, a result per modality.
        health: numbers by name, and under "warnings" what is off, in sentences; empty: not measured.
        curve: what training logged, an entry per validation: ``epoch``, ``train/loss``, ``val/ndcg@10``, …
        about: facts in a word or two, by name.
    """

    name: str
    task: RankingTask
    results: Sequence[Result]
    query_ED: "Tensor"
    item_ND: "Tensor"
    history: Ragged
    items: Sequence[RawItem]
    titles: Sequence[str]
    user_ids: Sequence[str]
    labels: Sequence[str] = ()
    label_name: str = ""
    hidden: Sequence[Result] = ()
    shares: Sequence[Result] = ()
    health: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    def title(self, item: int) -> str:
        """What an item is called."""
        return self.titles[item] or self.items[item].item_id
