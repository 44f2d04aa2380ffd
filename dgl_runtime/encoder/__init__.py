"""A bundle that embeds texts and clips: which engine runs it, and the check that it runs right."""
