"""avrec.report.data, avrec.report.inputs, avrec.report.gallery, avrec.report.item_map, avrec.report.media,
avrec.report.page and avrec.report.text: one page of a measured run."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from avrec.content.items import RawItem
from avrec.evaluation.evaluator import evaluate
from avrec.evaluation.ranking import EmbeddingScorer, top_k
from avrec.evaluation.results import of_kind
from avrec.report.data import gather
from avrec.report.gallery import people
from avrec.report.item_map import item_map
from avrec.report.media import sound, thumbnail
from avrec.report.page import charts, health_rows, hidden_panels, render, slice_panels, tables, write
from avrec.report.text import headline

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'</style>"
ITEMS, USERS = 12, 9


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_somebody_elses_text_stays_text(page):
    assert "<script>alert" not in page
    assert "onerror=alert(2)>" not in page
    parsed = Page(page)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 2
    assert not [tag for tag, _ in parsed.tags if tag in ("u", "img")]
    assert EVIL in " ".join(parsed.texts)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert {point[2] for point in data["points"]} == {f"{EVIL} {n}" for n in range(ITEMS)}


def test_the_page_needs_nothing_else(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\((?!data:)", page)
    assert "default-src 'none'" in page


def test_every_section_is_there(page):
    sections = [attributes["id"] for tag, attributes in Page(page).tags if tag == "section"]
    assert sections == ["results", "curves", "slices", "modalities", "map", "gallery", "health", "about"]


def test_the_tables_numbers_are_the_results(material, page):
    for result in of_kind(material.results, "main"):
        table = next(t for t in tables(material.results) if t["key"] == result.slice)
        row = next(r for r in table["rows"] if r["name"] == result.model)
        place = [name.lower() for name in table["metrics"]].index(result.metric)
        assert row["cells"][place].value == f"{result.value:.4f}"
        assert row["cells"][place].interval == f"{result.low:.3f} – {result.high:.3f}"
        assert f">{result.value:.4f}<" in page
        assert (row["kind"] == "model") == (result.model == "avrec")
    assert [t["key"] for t in tables(material.results)] == ["all", "cold_items", "cold_candidates"]
    assert all(table["metrics"][0] == "NDCG@10" for table in tables(material.results))


def test_more_is_not_better_of_lists_and_what_has_no_interval_shows_none(material):
    scorer = EmbeddingScorer(material.query_ED, material.item_ND)
    results = [
        r for m in ("avrec", "popularity") for r in evaluate(m, scorer, material.task, (3,), ("map", "coverage"))
    ]
    table = tables(results)[0]
    assert table["metrics"] == ["MAP@3", "coverage@3"]
    maps, coverages = zip(*(row["cells"] for row in table["rows"]), strict=True)
    assert any(cell.best for cell in maps)
    assert all(cell.interval for cell in maps)
    assert not any(cell.best or cell.interval for cell in coverages)


def test_slices_stand_by_kind(material):
    panels = slice_panels(material.results)
    # All users have one history length: that repeats "All items".
    assert [panel.title for panel in panels] == ["Overall", "<b>kind"]
    assert [[bar.name for bar in panel.bars] for panel in panels] == [
        ["All items", "Cold items", "Cold items only"],
        ["<i>a", "<u>b"],
    ]
    by_key = {(r.slice, r.model): r for r in of_kind(material.results, "main", "slice") if r.metric == "ndcg@10"}
    assert panels[1].bars[0].own == by_key["<b>kind: <i>a", "avrec"]
    assert panels[1].bars[0].mark == by_key["<b>kind: <i>a", "popularity"]
    assert slice_panels([]) == []


def test_bars_are_as_long_as_their_numbers_and_stay_in_their_panel(material, page):
    panels = slice_panels(material.results)
    panels += [panel for *_, found in hidden_panels(material.results) for panel in found]
    for panel in panels:
        assert panel.users == (panel.bars[0].own.users if len({bar.own.users for bar in panel.bars}) == 1 else 0)
        for bar in panel.bars:
            assert f'class="bar" style="width:{bar.own.value * panel.unit:.2f}%"' in page
            assert f'class="mark" style="left:{bar.mark.value * panel.unit:.2f}%"' in page
            assert f"{bar.own.low:.3f} – {bar.own.high:.3f}" in page
            assert max(bar.own.high, bar.mark.value) * panel.unit < 100.01


def test_many_slices_of_a_kind_are_folded(material):
    (one, *_) = [r for r in material.results if (r.slice, r.model, r.metric) == ("all", "avrec", "ndcg@10")]
    many = [
        replace(one, slice=f"genre: {n}", value=n / 20, kind="slice", group="genre", label=str(n)) for n in range(15)
    ]
    parsed = Page(render(gather(replace(material, results=[*material.results, *many]))))
    assert [tag for tag, _ in parsed.tags].count("details") == 1
    assert "3 more" in parsed.texts


def test_the_model_with_modalities_hidden_is_beside_the_whole_model(material, page):
    tabs = hidden_panels(material.results)
    assert [title for title, *_ in tabs] == ["All items", "Cold items", "Cold items only"]
    for (_, _, (hidden, alone)), name in zip(tabs, ("all", "cold_items", "cold_candidates"), strict=True):
        assert [bar.name for bar in hidden.bars] == ["all modalities", "without text", "without <b>audio"]
        assert [bar.name for bar in alone.bars] == ["all modalities", "text alone", "<b>audio alone"]
        assert hidden.unit == alone.unit
        assert {(bar.own.slice, bar.own.metric) for bar in (*hidden.bars, *alone.bars)} == {(name, "ndcg@10")}
    shares = [f"{100 * r.value:.0f} %" for r in of_kind(material.results, "variance_share")]
    assert len(shares) == 2
    assert all(f"<b>{share}</b>" in page for share in shares)


def test_a_model_of_one_modality_has_no_ablation(material):
    assert "Not measured: the model has one modality" in render(
        gather(replace(material, results=of_kind(material.results, "main", "slice")))
    )


def test_what_is_off_stands_first_and_else_one_calm_line(material, page):
    texts = Page(page).texts
    assert texts.index(f"Items: {EVIL}") < next(n for n, text in enumerate(texts) if text.startswith("For "))
    assert "no warnings" not in page
    well = render(gather(replace(material, health={"alignment": 1.0, "warnings": []})))
    assert "no warnings" in well
    assert '<ul class="warnings"' not in well
    unmeasured = render(gather(replace(material, health={})))
    assert "no warnings" not in unmeasured
    assert "Not measured." in unmeasured


def test_every_number_of_health_is_shown():
    health = {"alignment": 1.25, "new_number": 3, "item_uniformity": -2.0, "big": 12345.6, "warnings": ["x"]}
    rows = {name: (value, bool(meaning)) for name, meaning, value in health_rows(health)}
    assert rows == {
        "alignment": ("1.25", True),
        "new number": ("3", False),
        "uniformity, items": ("−2.00", True),
        "big": ("12,346", False),
    }


def test_the_headline_says_the_models_number_and_popularitys(material):
    said = headline(material.results)
    by_model = {r.model: r for r in material.results if (r.slice, r.metric) == ("all", "ndcg@10")}
    assert f"NDCG@10 {by_model['avrec'].value:.3f}" in said[0]
    assert f"{by_model['popularity'].value:.3f}" in said[1]
    assert headline([])


def test_people_are_who_they_are_said_to_be(material):
    found = people(material)
    assert [p.kind for p in found] == ["typical"] * 2 + ["new"] * 2 + ["best served"] * 2 + ["worst served"] * 2
    assert len({p.user_id for p in found}) == 8
    lengths = np.diff(material.history.starts)
    assert [p.history_items for p in found if p.kind == "typical"] == [int(np.median(lengths))] * 2
    assert [p.history_items for p in found if p.kind == "new"] == [1, 1]
    best = {p.user_id: p.chosen[0].rank for p in found}
    assert best[found[6].user_id] >= best[found[7].user_id]


def test_recommendations_and_ranks_are_those_of_the_evaluation(material):
    top_EK = top_k(EmbeddingScorer(material.query_ED, material.item_ND), material.task, ITEMS)
    for person in people(material):
        row = list(material.user_ids).index(person.user_id)
        ranking = [item for item in top_EK[row].tolist() if item >= 0]
        assert [tile.item for tile in person.recommended] == ranking[:8]
        assert [tile.item for tile in person.history] == material.history[row][::-1][:8].tolist()
        assert all(ranking[tile.rank - 1] == tile.item for tile in person.chosen)
        assert {tile.item for tile in person.chosen} == set(material.task.relevant[row].tolist())
        hits = {tile.item for tile in person.recommended if tile.hit}
        assert hits == {tile.item for tile in person.chosen if tile.hit}
        assert hits == set(ranking[:8]) & set(material.task.relevant[row].tolist())


def test_broken_and_missing_pictures_are_left_out(material):
    assert thumbnail(material.items[3]) is None
    assert thumbnail(material.items[4]) is None
    uri, shape = thumbnail(material.items[0])
    assert uri.startswith("data:image/jpeg;base64,")
    assert shape == 1.5
    assert sound(material.items[0]).startswith("data:audio/mpeg;base64,")
    assert sound(material.items[1]) is None
    drawn = item_map(material)
    assert [n for n, point in enumerate(drawn.points) if point.cell is None] == [3, 4]


def test_each_picture_stands_in_the_page_once(page):
    uris = re.findall(r"data:image/jpeg;base64,[^)]+", page)
    assert len(uris) == len(set(uris)) > 4


def test_the_map_is_the_same_each_time_and_draws_nothing_from_the_runs_generator(material):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = item_map(material)
    assert torch.equal(torch.rand(1), expected)
    assert first == item_map(material)
    assert {name for name, _ in first.groups} == {"<i>funny", "sad", "other"}
    assert 0 < first.share <= 1
    assert all(0 <= p.x <= 1 and 0 <= p.y <= 1 for p in first.points)


def test_items_without_labels_are_cold_or_warm(material):
    drawn = item_map(replace(material, labels=[], label_name=""))
    assert dict(drawn.groups) == {"warm: in training": 10, "cold: not in training": 2}


@pytest.mark.parametrize("vectors", [torch.zeros(ITEMS, 4), torch.full((ITEMS, 4), torch.nan), torch.ones(ITEMS, 1)])
def test_items_that_cannot_be_told_apart_have_no_map(material, vectors):
    assert item_map(replace(material, item_ND=vectors)) is None


def test_a_run_without_curves_and_pictures_has_a_page(material):
    bare = replace(material, curve=[], items=[RawItem(f"i{n}") for n in range(ITEMS)], titles=[""] * ITEMS)
    text = render(gather(bare))
    assert "No curves were logged" in text
    assert "data:image" not in text
    assert "<audio" not in text
    assert ">i7<" in text.replace("\n", "")


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [5.0, float("nan"), 4.0], [1e-7, 3e-7], [1e6, 2e6]])
def test_any_curve_is_drawn_inside_its_chart(values):
    (chart,) = charts([{"epoch": n + 1, "val/ndcg@10": value} for n, value in enumerate(values)])
    assert all(0 <= x <= 340 and 0 <= y <= 190 for x, y, _ in chart.dots)
    assert 2 <= len(chart.y_ticks) <= 7


def test_drift_and_rank_stand_beside_the_curves():
    entry = {"epoch": 1, "train/loss": 2.0, "val/ndcg@10": 0.1, "health/item_drift": 0.3, "health/alignment": 1.0}
    assert [chart.name for chart in charts([entry])] == ["training loss", "validation NDCG@10", "drift, items"]


def test_titles_of_any_characters_can_be_written(material, tmp_path):
    write(
        gather(replace(material, titles=["\ud800", "\x00", "é", *[""] * (ITEMS - 3)])), tmp_path / "a" / "report.html"
    )
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(list((tmp_path / "a").iterdir())) == 1


# ---------------------------------------------------------------------------------------------------------
# At the end of a run


def test_a_run_writes_its_report_and_never_ends_of_it(compose_cfg, tmp_path: Path, caplog):
    from avrec.run import build, evaluation, outputs

    run = build.build_run(compose_cfg())
    run.data.prepare(run.module.item_tower)
    rng = torch.Generator().manual_seed(0)
    task = run.data.tasks["test"]
    run.module.item_ND = torch.randn(len(run.data.catalogue.items), 16, generator=rng)
    run.module.query_ED = torch.randn(len(task), 16, generator=rng)
    results = evaluate("avrec", EmbeddingScorer(run.module.query_ED, run.module.item_ND), task)
    (tmp_path / "curves.json").write_text('[{"epoch": 1, "val/ndcg@10": 0.5}]')
    out = tmp_path / "report.html"
    summary = outputs.data_summary(run.data) | evaluation.check_health(run.module, run.data)
    outputs.write_report(run, results, tmp_path, out, outputs.Timing(), summary)
    text = out.read_text(encoding="utf-8")
    assert "coloured by planted theme" in text
    assert "epoch 1: 0.5000" in text
    assert "data:audio/mpeg" in text
    assert "effective rank, items" in text
    about = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text.partition('id="about"')[2]))
    assert {"date", "command", "objective", "dimensions", "seed"} <= set(about)
    assert about["learning rate"].startswith(f"lr {run.cfg.optimizer.lr:g}")
    out.unlink()
    run.module.query_ED = run.module.query_ED * torch.nan
    outputs.write_report(run, results, tmp_path, out, outputs.Timing(), summary)
    assert "report.html was not written: UserError" in caplog.text
    assert list(tmp_path.iterdir()) == [tmp_path / "curves.json"]
