"""Learn DGL prompts for a frozen CLIP on captioned clips."""
