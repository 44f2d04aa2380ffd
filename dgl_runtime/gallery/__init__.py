"""Clip embeddings on disk, which clip each row is, and the search among them."""
