"""Fold a tuned model into two lean encoders and write them as a bundle."""
