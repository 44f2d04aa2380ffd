"""Captioned clips: data sets, their check, and the way from files to batches."""
