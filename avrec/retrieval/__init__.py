"""Search among item embeddings. Needs no training dependency."""

from avrec.retrieval.index import Found, Index

__all__ = ["Found", "Index"]
