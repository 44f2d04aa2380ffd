"""Backbones and what is tuned on them: prompts, the DGL model, its alternatives, checkpoints."""
