"""A run: steps, loss, processes, and the folder it resumes from."""
