"""Pretrained image and text encoders: what a backbone is, and each family that can be loaded."""
