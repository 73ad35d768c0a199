"""avrec.towers.encoders.features: rows of a file, as they are, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avrec.content.items import RawItem
from avrec.content.preprocess import ContentTable
from avrec.errors import UserError
from avrec.towers.encoders import features
from avrec.towers.encoders.features import FeaturesEncoder, FeatureTable

ITEMS = [RawItem(name) for name in "abcd"]
MATRIX = np.arange(1, 13).reshape(4, 3) / 8
EMPTY = MATRIX.copy()
EMPTY[1], EMPTY[2] = np.nan, 0


def saved(folder: Path, matrix: Any, name: str = "feat.npy") -> Path:
    np.save(folder / name, matrix)
    return folder / name


def encoder_of(root: Path, **arguments: Any) -> FeaturesEncoder:
    torch.manual_seed(0)
    return FeaturesEncoder("text", "feat.npy", root=root, **arguments)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int32", "uint8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_read_as_they_are(tmp_path: Path, dtype: str, order: Any) -> None:
    matrix = np.asarray(MATRIX * 8, dtype=dtype, order=order)
    table = FeatureTable("text", saved(tmp_path, matrix))
    assert isinstance(table, ContentTable)
    assert isinstance(table.matrix, np.memmap)
    rows = table.rows_of(ITEMS)
    assert rows.present_N.tolist() == [True] * 4
    content = rows.read(np.array([3, 0]))
    assert content["features"].dtype == np.float32
    assert content["features"].dtype.isnative
    np.testing.assert_array_equal(content["features"], MATRIX[[3, 0]] * 8)
    assert torch.from_numpy(content["features"]).shape == (2, 3)


@pytest.mark.parametrize("at_once", [1, 6, 1 << 22])
def test_a_row_of_nan_or_of_zeros_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(features, "NUMBERS_AT_ONCE", at_once)
    rows = FeatureTable("text", saved(tmp_path, EMPTY)).rows_of(ITEMS)
    assert rows.present_N.tolist() == [True, False, False, True]
    EMPTY_ROW = EMPTY.copy()
    EMPTY_ROW[3, 1] = np.inf
    with pytest.raises(UserError, match=r"row 3 \(from 0\) holds a number that is not finite"):
        FeatureTable("text", saved(tmp_path, EMPTY_ROW)).rows_of(ITEMS)
    with pytest.raises(UserError, match="row 0 .* not finite as float32"):
        FeatureTable("text", saved(tmp_path, np.full((4, 1), 1e300) + np.zeros(3))).rows_of(ITEMS)


@pytest.mark.parametrize("suffix", ["npy", "txt", "json"])
def test_ids_say_which_item_each_row_is(tmp_path: Path, suffix: str) -> None:
    ids = tmp_path / f"ids.{suffix}"
    if suffix == "npy":
        np.save(ids, np.array(["d", "a", "b"]))
    else:
        ids.write_text("d\na \r\nb\n" if suffix == "txt" else '["d", "a", "b"]')
    rows = FeatureTable("text", saved(tmp_path, EMPTY[:3]), ids).rows_of(ITEMS)
    # a is row 1, which is NaN, b is row 2, which is zero; c has no row.
    assert rows.present_N.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(rows.read(np.array([3]))["features"], EMPTY[[0]])


def test_ids_may_be_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([7, 5]))
    (tmp_path / "ids.json").write_text("[7, 5]")
    for name in ("ids.npy", "ids.json"):
        table = FeatureTable("text", saved(tmp_path, MATRIX[:2]), tmp_path / name)
        read = table.rows_of([RawItem("5"), RawItem("7")]).read(np.array([0, 1]))
        np.testing.assert_array_equal(read["features"], MATRIX[[1, 0]])


def test_a_worker_is_sent_the_path_alone(tmp_path: Path) -> None:
    rows = FeatureTable("text", saved(tmp_path, np.ones((4, 50_000)))).rows_of(ITEMS)
    sent = pickle.dumps(rows)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).read(np.array([2]))["features"], np.ones((1, 50_000)))


def test_without_a_hidden_layer_nothing_is_learned(tmp_path: Path) -> None:
    saved(tmp_path, MATRIX)
    encoder = encoder_of(tmp_path)
    assert (encoder.out_dim, list(encoder.parameters()), encoder.frozen_layers()) == (3, [], None)
    given = torch.rand(5, 3)
    assert encoder({"features": given}) is given


def test_the_hidden_layer(tmp_path: Path) -> None:
    """Layer norm, linear, GELU: by hand. Gradients reach all of it, and a row's scale does not matter."""
    saved(tmp_path, MATRIX)
    encoder = encoder_of(tmp_path, hidden=4)
    given = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.5, 0.1]])
    centred = given - given.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    linear = encoder.network[1]
    by_hand = torch.nn.functional.gelu(normed @ linear.weight.T + linear.bias)
    out = encoder({"features": given})
    torch.testing.assert_close(out, by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder({"features": given * 100}), out, rtol=1e-3, atol=1e-3)
    assert out.shape == (2, encoder.out_dim)
    out.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("hidden", [None, 4])
def test_the_network_is_rebuilt_without_the_file(tmp_path: Path, hidden: int | None) -> None:
    saved(tmp_path, MATRIX)
    one = encoder_of(tmp_path, hidden=hidden)
    other = FeaturesEncoder(**one.options())
    assert other.preprocess is None
    other.load_state_dict(one.state_dict())
    given = {"features": torch.rand(2, 3)}
    torch.testing.assert_close(other(given), one(given), rtol=0, atol=0)
    assert other.options() == one.options()


def test_the_content_of_one_item() -> None:
    encoder = FeaturesEncoder("text", width=3)
    np.testing.assert_array_equal(encoder.content_of([1, 2, 3], "a")["features"], [1, 2, 3])
    assert encoder.content_of([0, 0, 0], "a") is encoder.content_of([np.nan] * 3, "a") is None
    for wrong, message in (
        ([1, 2], r"text_features of item 'a' has shape \(2,\); this tower reads vectors of 3"),
        ([1, np.inf, 3], "not finite. Mend it"),
        ([1, None, 3], "not finite. Mend it"),
        (["x", "y", "z"], "is no vector: .* Use 3 numbers"),
        ([[1], [2, 3]], "is no vector: .* Use 3 numbers"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.content_of(wrong, "a")


# ---------------------------------------------------------------------------------------------------------
# Mistakes


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


def write_text(path: Path) -> None:
    path.write_text("1,2,3\n")


def write_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, MATRIX)


def write_cut(path: Path) -> None:
    np.save(path, np.ones((4, 300)))
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"text.path=.*feat.npy is not a file. Use an .npy file; a relative path starts at"),
        (write_text, "could not be read as .npy: .* Write it with np.save"),
        (write_archive, "could not be read as .npy"),
        (write_cut, "could not be read as .npy"),
        (lambda path: path.write_bytes(b""), "could not be read as .npy"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb())), "could not be read as .npy"),
        (lambda path: np.save(path, np.array([[Bomb()]])), "from an array that is not of Python objects"),
        (lambda path: np.save(path, np.ones(4)), r"holds float64 of shape \(4,\). It must hold .* N x F"),
        (lambda path: np.save(path, np.ones((4, 2, 2))), r"of shape \(4, 2, 2\)"),
        (lambda path: np.save(path, np.ones((4, 0))), r"of shape \(4, 0\)"),
        (lambda path: np.save(path, np.ones((0, 4))), r"of shape \(0, 4\)"),
        (lambda path: np.save(path, np.full((4, 2), "x")), "holds <U1 of shape"),
        (lambda path: np.save(path, np.ones((4, 2), complex)), "holds complex128 of shape"),
        (lambda path: np.save(path, np.ones((4, 2), bool)), "holds bool of shape"),
        (lambda path: np.save(path, MATRIX[:3]), "has 3 rows, the catalogue 4 items. Use a row for each item, .*ids="),
        (lambda path: np.save(path, MATRIX * 0), "every row is NaN or zero. Use a file .* text=none"),
    ],
)
def test_a_file_that_is_no_feature_matrix(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "feat.npy")
    with pytest.raises(UserError, match=message):
        encoder_of(tmp_path).preprocess.rows_of(ITEMS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ids.txt", "a\nb\nc\n", "has 3 ids, .* 4 rows. Use one id for each row"),
        ("ids.txt", "a\nb\na\nd\n", "names 'a' more than once"),
        ("ids.txt", "a\nb\nx\ny\n", r"names 'x', which is no item_id of the catalogue \(2 of 4 ids; .* 'a' and"),
        ("ids.json", "{}", "is no list of item ids. Use a .txt file"),
        ("ids.json", "[1.5, 2, 3, 4]", "is no list of item ids"),
        ("ids.json", "[", "is no list of item ids"),
        ("ids.csv", "a\n", "is no list of item ids"),
        ("ids.npy", "a\n", "text.ids=.* could not be read as .npy"),
        ("nowhere.txt", None, "text.ids=.*nowhere.txt could not be read"),
        ("nowhere.npy", None, "text.ids=.*nowhere.npy is not a file"),
    ],
)
def test_ids_that_do_not_fit(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    saved(tmp_path, MATRIX)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        encoder_of(tmp_path, ids=name).preprocess.rows_of(ITEMS)


def test_ids_are_not_unpickled(tmp_path: Path) -> None:
    saved(tmp_path, MATRIX)
    np.save(tmp_path / "ids.npy", np.array([Bomb()] * 4))
    with pytest.raises(UserError, match="not of Python objects"):
        encoder_of(tmp_path, ids="ids.npy").preprocess.rows_of(ITEMS)


def test_arguments_that_cannot_work(tmp_path: Path) -> None:
    saved(tmp_path, MATRIX)
    with pytest.raises(UserError, match="`hidden` must be an integer ≥ 1 or null; got 0"):
        encoder_of(tmp_path, hidden=0)
    with pytest.raises(UserError, match="text.path must be given and is not. Add text.path=FILE"):
        FeaturesEncoder("text")
