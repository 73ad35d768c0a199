"""The log-sigmoid family of objectives: embeddings in, a scalar out."""
