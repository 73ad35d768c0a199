"""MovieLens: films and ratings (Harper and Konstan 2015, https://grouplens.org/datasets/movielens)."""

from pathlib import Path

import polars as pl

from avrec.data.sources.download import fetch_members
from avrec.data.sources.layouts.base import Origin, old_table, text_table
from avrec.data.tables import Table, Tables, scan

PAGE = "https://grouplens.org/datasets/movielens"
FILES = "https://files.grouplens.org/datasets/movielens"
RATING = ["user_id", "item_id", "rating", "timestamp"]
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
# As TensorFlow Datasets lists them (tensorflow_datasets/url_checksums/movielens.txt).
SHA256_100K = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
SHA256_1M = "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"
MAY_DOWNLOAD = "Or let it be fetched for you, if you accept its licence: data.download=true."


def movielens_100k(root: Path, download: bool = False) -> Tables:
    """MovieLens-100K: ``u.data``, ``u.item`` and maybe ``u.user`` (https://grouplens.org/datasets/movielens/100k).

    With ``download``, what is missing is fetched from GroupLens.
    """
    if download:
        fetch_members(f"{FILES}/ml-100k.zip", root, SHA256_100K, ["u.data", "u.item", "u.user"])
    origin = Origin("ml-100k.zip", f"{PAGE}/100k", MAY_DOWNLOAD)
    data, item, user = origin.need(root, "u.data"), origin.need(root, "u.item"), origin.find(root, "u.user")
    films = old_table(item, ["item_id", "title", "released", "released_on_video", "link", *GENRES_100K], "|")
    flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K[1:]]
    items = films.frame.select(
        "item_id",
        "title",
        genres=pl.concat_str(flagged, separator=", ", ignore_nulls=True),
        published=pl.col("released").str.to_date("%d-%b-%Y", strict=False),
    )
    users = _users(user, ["user_id", "age", "gender", "occupation", "zip"], "|")
    return Tables(Table(items, item), text_table(data, RATING, "\t"), users)


def movielens_1m(root: Path, download: bool = False) -> Tables:
    """MovieLens-1M and 10M: ``ratings.dat``, ``movies.dat`` and, in 1M, ``users.dat``.

    Ages are the lower ends of ranges, occupations codes (https://grouplens.org/datasets/movielens/1m). With
    ``download``, what is missing of MovieLens-1M is fetched from GroupLens.
    """
    if download:
        fetch_members(f"{FILES}/ml-1m.zip", root, SHA256_1M, ["ratings.dat", "movies.dat", "users.dat"])
    origin = Origin("ml-1m.zip", f"{PAGE}/1m", MAY_DOWNLOAD)
    ratings, movies = origin.need(root, "ratings.dat"), origin.need(root, "movies.dat")
    users = _users(origin.find(root, "users.dat"), ["user_id", "gender", "age", "occupation", "zip"], "::")
    films = old_table(movies, ["item_id", "title", "genres"], "::")
    return Tables(_films(films), old_table(ratings, RATING, "::"), users)


def movielens_32m(root: Path) -> Tables:
    """MovieLens-32M, 25M, 20M and latest: ``ratings.csv`` and ``movies.csv`` (https://grouplens.org/datasets/movielens)."""
    origin = Origin("ml-32m.zip (or ml-25m, ml-20m, ml-latest, ml-latest-small)", PAGE)
    paths = [origin.need(root, "ratings.csv"), origin.need(root, "movies.csv")]
    names = {"user_id": "userId", "item_id": "movieId"}
    ratings, movies = (scan(path, infer_schema=False).renamed(names) for path in paths)
    return Tables(_films(movies.need(["item_id", "title", "genres"])), ratings)


def _films(films: Table) -> Table:
    genres = pl.col("genres").replace("(no genres listed)", None).str.replace_all("|", ", ", literal=True)
    return Table(films.frame.with_columns(genres), films.path)


def _users(path: Path | None, columns: list[str], separator: str) -> Table | None:
    if path is None:
        return None
    # A postal code tells a few people apart, and little about them.
    users = old_table(path, columns, separator).frame.drop("zip")
    return Table(users.with_columns(pl.col("age").cast(pl.Int64, strict=False)), path)
