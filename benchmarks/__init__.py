"""Measured tables behind every figure in the documentation."""
