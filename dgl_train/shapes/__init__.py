"""A synthetic data set of moving shapes, and a tiny backbone for it."""
