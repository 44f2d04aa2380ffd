"""An exported model on disk: its manifest, tokenizer, files and checksums."""
