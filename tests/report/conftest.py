"""A small measured run whose every text is markup."""

import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from avrec.content.items import RawItem
from avrec.evaluation.ablation import ablation
from avrec.evaluation.baselines import PopularityScorer
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.ranking import EmbeddingScorer
from avrec.evaluation.slices import item_slices, user_slices
from avrec.ranking_task import Ragged, RankingTask
from avrec.report.data import gather
from avrec.report.inputs import ReportInputs
from avrec.report.page import render

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'</style>"
ITEMS, USERS = 12, 9


@pytest.fixture(scope="session")
def material(tmp_path_factory) -> ReportInputs:
    root = tmp_path_factory.mktemp("catalogue")
    rng = np.random.default_rng(0)
    items = []
    for n in range(ITEMS):
        image = root / f"{n}.png"
        if n == 3:
            image.write_bytes(b"no picture")
        else:
            Image.fromarray(rng.integers(0, 255, (90, 60, 3), dtype=np.uint8)).save(image)
        items.append(RawItem(f"item-{n}", image=None if n == 4 else image))
    with wave.open(str(root / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((rng.standard_normal(16000) * 3000).astype(np.int16).tobytes())
    items[0] = replace(items[0], audio=root / "a.wav")
    history = [rng.permutation(6)[: 1 + user % 4] for user in range(USERS)]
    cold_N = np.arange(ITEMS) >= 10
    task = RankingTask(
        split="test",
        user_index_E=np.arange(USERS),
        relevant=Ragged.of([[6 + user % 6, 6 + (user + 1) % 6] for user in range(USERS)]),
        seen=Ragged.of(history),
        seen_filter=True,
        candidates_N=np.ones(ITEMS, bool),
        cold_N=cold_N,
        popularity_N=np.where(cold_N, 0.0, np.arange(ITEMS)),
        protocol={"split": "temporal", "test_from": 1730656004.0},
    )
    query_ED, item_ND = (torch.from_numpy(rng.standard_normal((n, 4))).float() for n in (USERS, ITEMS))
    scorers = {"avrec": EmbeddingScorer(query_ED, item_ND), "popularity": PopularityScorer(task.popularity_N)}
    parts = [*user_slices(task, "history_length", ["6-"] * 9), *item_slices(task, "<b>kind", ["<i>a", "<u>b"] * 6)]
    keep = {"text": [1.0, 1, 0, 0], "<b>audio": [0, 0, 1.0, 1]}

    def embed(keep_M):
        kept = sum((torch.tensor(keep[name]) for name, yes in zip(keep, keep_M, strict=True) if yes), torch.zeros(4))
        return query_ED * kept, item_ND

    measured = [r for name, scorer in scorers.items() for r in evaluate(name, scorer, task, slices=parts)]
    return ReportInputs(
        name=EVIL,
        task=task,
        results=[*measured, *ablation(embed, list(keep), task)],
        query_ED=query_ED,
        item_ND=item_ND,
        history=Ragged.of(history),
        items=items,
        titles=[f"{EVIL} {n}" for n in range(ITEMS)],
        user_ids=[f"<b>user{n}" for n in range(USERS)],
        labels=["<i>funny", "sad", ""] * 4,
        label_name="<u>mood",
        health={"alignment": 1.25, "item_effective_rank": 2.0, "new_number": 3, "warnings": [f"items: {EVIL}"]},
        curve=[{"epoch": e, "step": e, "train/loss": 3.0 - e, "val/ndcg@10": 0.1 * e} for e in (1, 2, 3)],
        about={"<b>objective": EVIL},
    )


@pytest.fixture(scope="session")
def page(material) -> str:
    return render(gather(material))
