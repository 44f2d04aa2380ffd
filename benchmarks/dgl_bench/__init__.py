"""Measures, side by side, what the three packages cost: time, memory, accuracy."""
