"""avrec.report.facts, avrec.report.material, avrec.report.people, avrec.report.item_map, avrec.report.clips,
avrec.report.page and avrec.report.words: one page of a measured run."""

import json
import re
import shutil
import subprocess
import wave
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avrec.batch import Ragged, RankingTask, RawItem
from avrec.evaluation.baselines import PopularityScorer
from avrec.evaluation.protocol import evaluate
from avrec.evaluation.ranking import EmbeddingScorer, top_k
from avrec.report.clips import sound, thumbnail
from avrec.report.facts import gather
from avrec.report.item_map import item_map
from avrec.report.material import Material
from avrec.report.page import bars, charts, render, tables, write
from avrec.report.people import people
from avrec.report.words import headline

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'</style>"
ITEMS, USERS = 12, 9
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
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
    return Material(
        name=EVIL,
        task=task,
        results=[r for name, scorer in scorers.items() for r in evaluate(name, scorer, task)],
        query_ED=query_ED,
        item_ND=item_ND,
        history=Ragged.of(history),
        items=items,
        titles=[f"{EVIL} {n}" for n in range(ITEMS)],
        user_ids=[f"<b>user{n}" for n in range(USERS)],
        labels=["<i>funny", "sad", ""] * 4,
        label_name="<u>mood",
        curve=[{"epoch": e, "step": e, "train/loss": 3.0 - e, "val/ndcg@10": 0.1 * e} for e in (1, 2, 3)],
        about={"<b>objective": EVIL},
    )


@pytest.fixture(scope="module")
def page(material) -> str:
    return render(gather(material))


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
    assert sections == ["results", "curves", "slices", "map", "gallery", "about"]


def test_the_tables_numbers_are_the_results(material, page):
    for result in material.results:
        table = next(t for t in tables(material.results) if t["key"] == result.slice)
        row = next(r for r in table["rows"] if r["name"] == result.model)
        place = [name.lower() for name in table["metrics"]].index(result.metric)
        assert row["cells"][place].value == f"{result.value:.4f}"
        assert row["cells"][place].interval == f"{result.low:.3f} – {result.high:.3f}"
        assert f">{result.value:.4f}<" in page
        assert (row["kind"] == "model") == (result.model == "avrec")
    assert [t["key"] for t in tables(material.results)] == ["all", "cold_items", "cold_candidates"]
    assert all(table["metrics"][0] == "NDCG@10" for table in tables(material.results))


def test_bars_are_as_long_as_their_numbers(material):
    rows = [row for part in bars(material.results) for row in part["rows"]]
    longest = max(r.high for r in material.results if r.metric == "ndcg@10")
    assert all(abs(row["length"] / 100 * longest - float(row["value"])) < 1e-3 for row in rows)
    assert [part["title"] for part in bars(material.results)] == ["Everything", "New items", "New items, apart"]


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


def test_items_without_kinds_are_new_or_not(material):
    drawn = item_map(replace(material, labels=[], label_name=""))
    assert dict(drawn.groups) == {"in training": 10, "new: not in training": 2}


@pytest.mark.parametrize("vectors", [torch.zeros(ITEMS, 4), torch.full((ITEMS, 4), torch.nan), torch.ones(ITEMS, 1)])
def test_items_that_cannot_be_told_apart_have_no_map(material, vectors):
    assert item_map(replace(material, item_ND=vectors)) is None


def test_a_run_without_curves_and_pictures_has_a_page(material):
    bare = replace(material, curve=[], items=[RawItem(f"i{n}") for n in range(ITEMS)], titles=[""] * ITEMS)
    text = render(gather(bare))
    assert "kept no curves" in text
    assert "data:image" not in text
    assert "<audio" not in text
    assert ">i7<" in text.replace("\n", "")


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [5.0, float("nan"), 4.0], [1e-7, 3e-7], [1e6, 2e6]])
def test_any_curve_is_drawn_inside_its_chart(values):
    (chart,) = charts([{"epoch": n + 1, "val/ndcg@10": value} for n, value in enumerate(values)])
    assert all(0 <= x <= 340 and 0 <= y <= 190 for x, y, _ in chart.dots)
    assert 2 <= len(chart.y_ticks) <= 7


def test_titles_of_any_characters_can_be_written(material, tmp_path):
    write(
        gather(replace(material, titles=["\ud800", "\x00", "é", *[""] * (ITEMS - 3)])), tmp_path / "a" / "report.html"
    )
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(list((tmp_path / "a").iterdir())) == 1


# ---------------------------------------------------------------------------------------------------------
# In a browser

# Runs in the page itself, so that Chromium alone is needed: what it saw becomes an attribute of <html>.
PROBE = """<script>
addEventListener("load", () => {
  const seen = {};
  const point = data.points[5], svg = document.querySelector("#plane svg");
  svg.scrollIntoView();
  const at = new DOMPoint(point[0], point[1]).matrixTransform(svg.getScreenCTM());
  const before = document.getElementById("tip").hidden;
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: at.x, clientY: at.y, bubbles: true }));
  seen.tip = [before, document.getElementById("tip").hidden, document.querySelector("#tip span").textContent];
  const tabs = [...document.querySelectorAll("#gallery [role=tab]")];
  const shown = () => [...document.querySelectorAll("#gallery .panel")].map(p => !p.hidden);
  seen.before = shown();
  tabs[2].click();
  seen.after = shown();
  seen.tabs = tabs.map(t => t.textContent);
  const play = document.querySelector(".play");
  play.click();
  seen.sound = document.getElementById("audio").src.slice(0, 15);
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  const names = performance.getEntriesByType("resource").map(r => r.name.slice(0, 40));
  seen.requests = names.filter(n => !n.startsWith("data:"));
  document.documentElement.dataset.seen = JSON.stringify(seen);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("size", ["1280,900", "500,760"])
def test_in_a_browser(page, material, tmp_path, size):
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-component-update"
    quiet = ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
    command = [CHROMIUM, *flags.split(), *quiet, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={size}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    seen = json.loads(next(attributes["data-seen"] for tag, attributes in Page(done.stdout).tags if tag == "html"))
    assert seen["tip"] == [True, False, f"{EVIL} 5"]
    assert seen["before"] == [True] + [False] * 7
    assert seen["after"] == [False, False, True] + [False] * 5
    assert seen["tabs"] == [f"{kind} {n}" for kind in ("typical", "new", "best served", "worst served") for n in (1, 2)]
    assert seen["sound"] == "data:audio/mpeg"
    assert seen["wide"] <= 0
    assert seen["requests"] == []


# ---------------------------------------------------------------------------------------------------------
# At the end of a run


def test_a_run_writes_its_report_and_never_ends_of_it(compose_cfg, tmp_path: Path, caplog):
    from avrec import pipeline

    run = pipeline.build(compose_cfg())
    run.data.prepare_data()
    rng = torch.Generator().manual_seed(0)
    task = run.data.tasks["test"]
    run.module.item_ND = torch.randn(len(run.data.catalogue.items), 16, generator=rng)
    run.module.query_ED = torch.randn(len(task), 16, generator=rng)
    results = evaluate("avrec", EmbeddingScorer(run.module.query_ED, run.module.item_ND), task)
    (tmp_path / "curves.json").write_text('[{"epoch": 1, "val/ndcg@10": 0.5}]')
    out = tmp_path / "report.html"
    pipeline.write_report(run, results, tmp_path, out, pipeline.Timing())
    text = out.read_text(encoding="utf-8")
    assert "coloured by planted theme" in text
    assert "epoch 1: 0.5000" in text
    assert "data:audio/mpeg" in text
    out.unlink()
    run.module.query_ED = run.module.query_ED * torch.nan
    pipeline.write_report(run, results, tmp_path, out, pipeline.Timing())
    assert "report.html was not written: UserError" in caplog.text
    assert list(tmp_path.iterdir()) == [tmp_path / "curves.json"]
