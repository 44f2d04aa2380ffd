"""Search videos by text, without torch."""
