"""The layouts of published datasets, each on a few invented rows in the files as published."""

import gzip
import json
import sys
import tempfile
from datetime import UTC, datetime

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from avrec.data.sources.folder import FolderSource
from avrec.data.sources.layouts.amazon import amazon_2023
from avrec.data.sources.layouts.base import source
from avrec.data.sources.layouts.microlens import microlens_layout
from avrec.data.sources.layouts.mmrec import mmrec_layout
from avrec.data.sources.layouts.movielens import GENRES_100K, movielens_1m, movielens_32m, movielens_100k
from avrec.data.sources.layouts.recbole import recbole_layout, recbole_source
from avrec.data.sources.layouts.sequences import sequences_layout
from avrec.errors import UserError
from avrec.run import build, config

LAYOUTS = {
    "movielens_100k": movielens_100k,
    "movielens_1m": movielens_1m,
    "movielens_32m": movielens_32m,
    "recbole": recbole_layout,
    "microlens": microlens_layout,
    "amazon_2023": amazon_2023,
    "sequences": sequences_layout,
    "mmrec": mmrec_layout,
}


def load(data, *overrides):
    """The catalogue as ``python train.py data=…`` would load it."""
    with tempfile.TemporaryDirectory() as cache, initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"data={data}", "run_dir=x", f"cache_dir={cache}", *overrides])
        build.build_source(cfg).load()
        return build.build_source(cfg).load()  # the second time with the log from the cache


def ids(catalogue):
    return [item.item_id for item in catalogue.items]


def texts(catalogue):
    return [item.text for item in catalogue.items]


def log_of(catalogue):
    """(user, item, time) in the order of the catalogue's log."""
    log, named = catalogue.log, ids(catalogue)
    return [(catalogue.user_ids[u], named[i], t) for u, i, t in zip(log.user.tolist(), log.item, log.time, strict=True)]


def write_jsonl(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)


# ---- MovieLens


def write_100k(root, users=True):
    def film(number, title, released, *genres):
        flags = "|".join(str(int(genre in genres)) for genre in GENRES_100K)
        return f"{number}|{title}|{released}||http://example.org/?x={number}|{flags}\n"

    films = (
        film(1, 'The "Fjord" (1995)', "01-Jan-1995", "Comedy", "War"),
        film(2, "Los Niños (1996)", "15-Feb-1996", "Drama"),
        film(3, "unknown", "", "unknown"),
    )
    (root / "u.item").write_bytes("".join(films).encode("latin-1"))
    (root / "u.data").write_text("7\t2\t5\t880000002\n7\t1\t3\t880000001\n8\t3\t1\t880000003\n")
    if users:
        (root / "u.user").write_text("7|20|M|writer|10001\n8|40|F|other|V3N4P\n9|60|F|other|1\n")
    return root


def test_movielens_100k(tmp_path):
    catalogue = load("movielens_100k", f"data.root={write_100k(tmp_path)}", "data.feedback_map=scale")
    assert texts(catalogue) == ['The "Fjord" (1995). Comedy, War', "Los Niños (1996). Drama", "unknown"]
    assert catalogue.titles[1] == "Los Niños (1996)"
    assert log_of(catalogue) == [("7", "1", 880000001), ("7", "2", 880000002), ("8", "3", 880000003)]
    np.testing.assert_allclose(catalogue.log.weight, [0.6, 1, 0.2])
    assert catalogue.published_N[0] == datetime(1995, 1, 1, tzinfo=UTC).timestamp()
    assert np.isnan(catalogue.published_N[2])
    assert catalogue.category_sizes == [3, 3]  # gender and occupation, with one code for missing
    assert catalogue.user_numbers.tolist() == [[-1], [1]]


def test_movielens_100k_without_people(tmp_path):
    catalogue = load("movielens_100k", f"data.root={write_100k(tmp_path, users=False)}", "data.clean.min_feedback=3")
    assert catalogue.user_ids == ["7"]
    assert catalogue.category_sizes == []


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_1m(tmp_path, encoding):
    films = "10::Café: Part II (1999)::Comedy|Film-Noir\n20::Zoë (2000)::Drama\n"
    (tmp_path / "movies.dat").write_bytes(films.encode(encoding))
    (tmp_path / "ratings.dat").write_text("1::20::5::960000001\n1::10::4::960000000\n2::10::1::960000002\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    catalogue = load("movielens_1m", f"data.root={tmp_path}")
    assert texts(catalogue) == ["Café: Part II (1999). Comedy, Film-Noir", "Zoë (2000). Drama"]
    assert log_of(catalogue) == [("1", "10", 960000000), ("1", "20", 960000001), ("2", "10", 960000002)]
    assert catalogue.category_sizes == [3, 3]  # an occupation is a code, no number
    assert catalogue.user_numbers.tolist() == [[-1], [1]]
    (tmp_path / "users.dat").unlink()
    assert load("movielens_1m", f"data.root={tmp_path}").category_sizes == []


def test_movielens_32m(tmp_path):
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Fjord, The ""Old"" (1995)",Adventure|Sci-Fi\n7,Kör (2001),(no genres listed)\n',
        "utf-8",
    )
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n3,7,4.5,1100000001\n3,1,0.5,1100000000\n")
    catalogue = load("movielens_32m", f"data.root={tmp_path}", "data.feedback_map=scale")
    assert texts(catalogue) == ['Fjord, The "Old" (1995). Adventure, Sci-Fi', "Kör (2001)"]
    assert log_of(catalogue) == [("3", "1", 1100000000), ("3", "7", 1100000001)]
    np.testing.assert_allclose(catalogue.log.weight, [1 / 9, 1])


# ---- RecBole


def write_atomic(folder, name="toy", item=True, user=True):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\t007\t4\t880000001\nu2\tz\t2\t880000002\n"
    )
    if item:
        (folder / f"{name}.item").write_text(
            "item_id:token\tmovie_title:token_seq\tclass:token_seq\tprice:float\tvector:float_seq\n"
            '007\tA "quoted fjord\tDrama War\t1.5\t0.1 0.2\n8\tÜber\tComedy\t\t0.3 0.4\n'
        )
    if user:
        (folder / f"{name}.user").write_text("user_id:token\tage:float\tjob:token\nu1\t20\tcook\nu2\t40\tpilot\n")
    return folder


@pytest.mark.parametrize("below", ["", "toy"])
def test_recbole(tmp_path, below):
    write_atomic(tmp_path / below)
    catalogue = load(
        "recbole", f"data.root={tmp_path}", "data.name=toy", "data.feedback=rating", "data.feedback_map=implicit"
    )
    # An item of the log without a row of its own has no text; a vector is no text.
    assert ids(catalogue) == ["007", "8", "z"]
    assert texts(catalogue) == ['A "quoted fjord. Drama War', "Über. Comedy", None]
    assert catalogue.titles == ['A "quoted fjord', "Über", ""]
    assert log_of(catalogue) == [("u1", "007", 880000001), ("u2", "z", 880000002)]
    assert catalogue.category_sizes == [3]
    assert catalogue.user_numbers.tolist() == [[-1], [1]]


def test_recbole_interactions_alone(tmp_path):
    write_atomic(tmp_path, item=False, user=False)
    assert ids(load("recbole", f"data.root={tmp_path}", "data.name=toy")) == ["007", "z"]


def test_recbole_ids_of_another_name(tmp_path):
    (tmp_path / "game.inter").write_text("user_id:token\tproduct_id:token\nu1\t5\n")
    (tmp_path / "game.item").write_text("product_id:token\tapp_name:token\n5\tChess\n")
    catalogue = load("recbole", f"data.root={tmp_path}", "data.name=game")
    assert (ids(catalogue), catalogue.titles) == (["5"], ["Chess"])


def test_recbole_examples_of_the_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site" / "recbole"
    write_atomic(package / "dataset_example" / "ml-100k", "ml-100k")
    (package / "__init__.py").write_text("raise AssertionError('it must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "recbole", raising=False)
    assert ids(load("recbole")) == ["007", "8", "z"]
    with pytest.raises(UserError, match=r"the installed RecBole has no .*dataset_example/ml-1m\. Get ml-1m's"):
        load("recbole", "data.name=ml-1m")


def test_recbole_neither_given_nor_installed(monkeypatch):
    monkeypatch.setattr("avrec.data.sources.layouts.recbole.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"data\.root is not given, and RecBole is not installed\. .*recbole\.io.*or install"
    ):
        recbole_source(recbole_layout, "ml-100k")


# ---- MicroLens


def write_microlens(root, pairs="csv"):
    if pairs == "csv":
        (root / "MicroLens-100k_pairs.csv").write_text(
            "user,item,timestamp\n5,2,1583378629552\n5,1,1583378628552\n6,3,1584412681021\n"
        )
    else:
        (root / "MicroLens-100k_pairs.tsv").write_text("5\t1 2\n6\t3\n")
    return root


@pytest.mark.parametrize("header", ["", "item,title\n"])
def test_microlens(tmp_path, header):
    write_microlens(tmp_path)
    (tmp_path / "MicroLens-100k_title_en.csv").write_text(header + '1,"A cat, a dog"\n2,Ünder\n', "utf-8")
    for folder, names in {
        "covers": ["1.jpg", "3.jpg", "9.jpg"],
        "audios": ["1.mp3", "2.wav"],
        "videos": ["2.mp4"],
    }.items():
        (tmp_path / f"MicroLens-100k_{folder}").mkdir()
        for name in [*names, "readme.txt"]:
            (tmp_path / f"MicroLens-100k_{folder}" / name).touch()
    catalogue = load("microlens", f"data.root={tmp_path}")
    assert ids(catalogue) == ["1", "2", "3"]
    assert texts(catalogue) == ["A cat, a dog", "Ünder", None]
    named = [tuple(p and p.name for p in (item.image, item.audio, item.video)) for item in catalogue.items]
    assert named == [("1.jpg", "1.mp3", None), (None, "2.wav", "2.mp4"), ("3.jpg", None, None)]
    assert catalogue.items[0].image == tmp_path.resolve() / "MicroLens-100k_covers" / "1.jpg"
    assert log_of(catalogue) == [("5", "1", 1583378628.552), ("5", "2", 1583378629.552), ("6", "3", 1584412681.021)]


def test_microlens_pairs_in_order_and_nothing_else(tmp_path):
    catalogue = load("microlens", f"data.root={write_microlens(tmp_path, 'tsv')}")
    assert not catalogue.log.has_time
    assert log_of(catalogue) == [("5", "1", 0), ("5", "2", 1), ("6", "3", 2)]
    assert not any(catalogue.has(modality) for modality in ("text", "vision", "audio"))


def test_microlens_one_of_two(tmp_path):
    write_microlens(tmp_path)
    (tmp_path / "MicroLens-50k_pairs.csv").write_text("1,1,1583378629552\n")
    with pytest.raises(
        UserError, match=r"more than one dataset: MicroLens-100k_pairs\.csv, MicroLens-50k.*data\.name=NAME"
    ):
        load("microlens", f"data.root={tmp_path}")
    assert log_of(load("microlens", f"data.root={tmp_path}", "data.name=MicroLens-50k")) == [("1", "1", 1583378629.552)]


# ---- Amazon

META = [
    {
        "main_category": "All Beauty",
        "title": "Soap",
        "features": ["Mild", "With oil"],
        "description": ["A soap.", "It lathers."],
        "price": 3.99,
        "images": [
            {
                "thumb": "https://m.example/t.jpg",
                "large": "https://m.example/no.jpg",
                "variant": "MAIN",
                "hi_res": None,
            },
            {"thumb": "https://m.example/u.jpg", "large": "https://m.example/I/side.jpg?x=1", "variant": "PT01"},
        ],
        "categories": ["Beauty", "Soaps"],
        "details": {"Brand": "X"},
        "parent_asin": "B01",
    },
    {"title": None, "features": [], "price": "from 5", "images": [], "details": {"Age": 3}, "parent_asin": "B02"},
]
REVIEWS = [
    {
        "rating": rating,
        "title": "T",
        "images": images,
        "asin": "B0X",
        "parent_asin": item,
        "user_id": user,
        "timestamp": ms,
    }
    for rating, images, item, user, ms in (
        (5.0, [], "B01", "A", 1600000000123),
        (1.0, [{"x": "y"}], "B02", "A", 1600000001000),
        (4.0, [], "B03", "C", 1500000000000),
        (2.0, [], "B01", "A", 1700000000000),
    )
]
ALL = ("data.clean.min_per_user=0", "data.clean.min_per_item=0")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("pictures", ["", "images"])
def test_amazon_2023(tmp_path, suffix, pictures):
    write_jsonl(tmp_path / f"All_Beauty.{suffix}", REVIEWS)
    write_jsonl(tmp_path / f"meta_All_Beauty.{suffix}", META)
    (tmp_path / pictures).mkdir(exist_ok=True)
    (tmp_path / pictures / "side.jpg").touch()
    catalogue = load("amazon_2023", f"data.root={tmp_path}", *ALL)
    assert ids(catalogue) == ["B01", "B02", "B03"]
    assert texts(catalogue) == ["Soap. Mild. With oil. A soap. It lathers.. Beauty, Soaps", None, None]
    assert [item.image for item in catalogue.items] == [tmp_path.resolve() / pictures / "side.jpg", None, None]
    # The first of two reviews of one product is kept.
    assert log_of(catalogue) == [("A", "B01", 1600000000.123), ("A", "B02", 1600000001), ("C", "B03", 1500000000)]


def test_amazon_2023_without_pictures_and_5_core(tmp_path):
    write_jsonl(tmp_path / "Toys.jsonl", REVIEWS)
    write_jsonl(tmp_path / "meta_Toys.jsonl.gz", META)
    assert not load("amazon_2023", f"data.root={tmp_path}", "data.name=Toys", *ALL).has("vision")
    with pytest.raises(UserError, match=r"data\.clean leaves no interaction .*5/5-core"):
        load("amazon_2023", f"data.root={tmp_path}")


# ---- sequences

LOG = [("1", "5", 0), ("1", "6", 1), ("2", "5", 2)]


@pytest.mark.parametrize("text", ["1 5 6\n2 5\n", "1 5\n1 6\n2 5\n", "1\t5 6\n\n3\n2 5", "1 5 6\r\n2 5\r\n"])
def test_sequences(tmp_path, text):
    (tmp_path / "Toys.txt").write_bytes(text.encode())
    catalogue = load("sequences", f"data.root={tmp_path}")
    assert log_of(catalogue) == LOG
    assert not catalogue.log.has_time
    assert not catalogue.has("text")


def test_sequences_with_attributes(tmp_path):
    (tmp_path / "Toys.txt").write_text("1 5 6\n2 5\n")
    (tmp_path / "Toys_sample.txt").write_text("1 5 6\n2 5\n")
    (tmp_path / "Toys_item2attributes.json").write_text(json.dumps({"5": [12, 7], "4": []}))
    catalogue = load("sequences", f"data.root={tmp_path}", "data.name=Toys")
    assert (ids(catalogue), texts(catalogue)) == (["5", "4", "6"], ["a12 a7", None, None])
    assert log_of(catalogue) == LOG
    with pytest.raises(UserError, match=r"more than one dataset: Toys\.txt, Toys_sample\.txt"):
        load("sequences", f"data.root={tmp_path}")
    (tmp_path / "Toys_item2attributes.json").write_text("[1]")
    with pytest.raises(UserError, match="no JSON object of items with lists of attributes"):
        load("sequences", f"data.root={tmp_path}", "data.name=Toys")


# ---- MMRec


def write_mmrec(root, items=(2, 0, 2), labels="012"):
    rows = "".join(f"{n % 2}\t{item}\t5.0\t{1400000000 + n}\t{labels[n]}\n" for n, item in enumerate(items))
    (root / "baby.inter").write_text("userID\titemID\trating\ttimestamp\tx_label\n" + rows)
    return root


def test_mmrec(tmp_path):
    catalogue = load("mmrec", f"data.root={write_mmrec(tmp_path)}")
    assert ids(catalogue) == ["0", "1", "2"]
    assert log_of(catalogue) == [("0", "2", 1400000000), ("0", "2", 1400000002), ("1", "0", 1400000001)]
    assert catalogue.log.given_role.tolist() == [0, 2, 1]


def test_mmrec_rows_of_its_matrices_are_its_items(tmp_path):
    write_mmrec(tmp_path)
    np.save(tmp_path / "image_feat.npy", np.eye(12, dtype=np.float32))
    catalogue = load("mmrec", f"data.root={tmp_path}")
    assert ids(catalogue) == [str(number) for number in range(12)]
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        cfg = compose("train", overrides=["data=mmrec", "vision=features", "vision.path=image_feat.npy", "run_dir=x"])
    assert cfg.split._target_.endswith("Given")
    encoder = config.instantiate(cfg.vision, "vision", root=catalogue.root)
    features = encoder.preprocess.rows_of(catalogue.items).read(np.array([11, 3]))["features"]
    np.testing.assert_array_equal(features.argmax(1), [11, 3])


@pytest.mark.parametrize(
    ("items", "labels", "message"),
    [
        (["a", 0, 1], "012", r"column itemID must hold a finite number in every row; .* MMRec numbers items"),
        ([0.5, 0, 1], "012", "column itemID must hold whole numbers from 0 on"),
        ([-1, 0, 1], "012", "column itemID must hold whole numbers from 0 on"),
        ([0, 1, 2], "013", "column split must hold one of train.*row 3 with '3'"),
    ],
)
def test_mmrec_columns_that_cannot_be(tmp_path, items, labels, message):
    write_mmrec(tmp_path, items, labels)
    with pytest.raises(UserError, match=message):
        load("mmrec", f"data.root={tmp_path}")


# ---- what all share


@pytest.mark.parametrize(
    ("data", "there", "message"),
    [
        (
            "movielens_100k",
            ["u.item"],
            r"has no u\.data\. Get ml-100k\.zip from https://grouplens\.org.*data\.download=true",
        ),
        ("movielens_100k", ["u.data"], r"has no u\.item\."),
        ("movielens_1m", ["movies.dat"], r"has no ratings\.dat\. Get ml-1m\.zip"),
        ("movielens_1m", ["ratings.dat"], r"has no movies\.dat\."),
        (
            "movielens_32m",
            ["movies.csv"],
            r"has no ratings\.csv\. Get ml-32m\.zip .*grouplens.*set data\.root to the folder that holds its files\.$",
        ),
        ("movielens_32m", ["ratings.csv"], r"has no movies\.csv\."),
        ("recbole", ["ml-100k.item"], r"has no ml-100k\.inter\. Get ml-100k's atomic files from https://recbole\.io"),
        ("microlens", [], r"has no NAME_pairs\.csv or NAME_pairs\.tsv\. .*github\.com/westlake-repl/MicroLens"),
        (
            "amazon_2023",
            ["T.jsonl"],
            r"has no meta_NAME\.jsonl or meta_NAME\.jsonl\.gz\. .*amazon-reviews-2023\.github\.io",
        ),
        ("amazon_2023", ["meta_T.jsonl"], r"has no T\.jsonl or T\.jsonl\.gz\."),
        ("sequences", [], r"has no NAME\.txt\. .*CIKM2020-S3Rec.*SASRec"),
        ("mmrec", ["image_feat.npy"], r"has no NAME\.inter\. .*github\.com/enoche/MMRec"),
    ],
)
def test_a_missing_file_is_said_with_its_page(tmp_path, data, there, message):
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        load(data, f"data.root={tmp_path}")


@pytest.mark.parametrize("data", LAYOUTS)
def test_no_folder(tmp_path, data):
    with pytest.raises(UserError, match=r"data\.root=.*gone is not a folder\. Get .* from http"):
        load(data, f"data.root={tmp_path / 'gone'}")


@pytest.mark.parametrize("data", [data for data in LAYOUTS if data != "recbole"])
def test_the_folder_must_be_given(data):
    with pytest.raises(UserError, match=r"root` must be given"):
        load(data)


def test_the_log_is_kept_and_read_anew_when_a_file_changes(tmp_path):
    path, kept = tmp_path / "Toys.txt", tmp_path / "cache"
    path.write_text("1 5 6\n")
    for lines, count in (("1 5 6\n", 2), ("1 5 6\n", 2), ("1 5 6 7\n2 5\n", 4)):
        path.write_text(lines) if path.read_text() != lines else None
        assert len(source(sequences_layout, tmp_path, "Toys", cache_dir=kept).load().log) == count
    assert len(list(kept.iterdir())) == 2


def test_a_damaged_table_is_named(tmp_path):
    write_atomic(tmp_path)
    with (tmp_path / "toy.inter").open("ab") as file:
        file.write(b"u1\t\xff\t4\t5\n")
    with pytest.raises(UserError, match=r"toy\.inter is not in UTF-8: line .* the byte 0xff"):
        FolderSource(tmp_path, lambda root: recbole_layout(root, "toy")).load()


def test_a_column_that_is_not_there_is_named(tmp_path):
    (tmp_path / "game.inter").write_text("user_id:token\tthing_id:token\nu1\t5\n")
    with pytest.raises(UserError, match=r"game\.inter has no column item_id\. It has user_id, thing_id"):
        load("recbole", f"data.root={tmp_path}", "data.name=game")
    (tmp_path / "game.item").write_text("product_id:token\tapp_name:token\n5\tChess\n")
    with pytest.raises(UserError, match=r"game\.inter has no column item_id\. It has user_id, thing_id"):
        load("recbole", f"data.root={tmp_path}", "data.name=game")
