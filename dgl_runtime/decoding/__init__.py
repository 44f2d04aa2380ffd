"""Processes that decode videos, with limits on memory and silence: what crashes one costs one video."""
