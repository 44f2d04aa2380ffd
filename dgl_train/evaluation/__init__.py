"""The protocol of evaluation, and reports of it."""
