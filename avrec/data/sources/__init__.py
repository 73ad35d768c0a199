"""Where catalogues come from: each source has ``load() -> Catalogue``."""
