"""Text that people write: UTF-8, csv and jsonl, read strictly."""
