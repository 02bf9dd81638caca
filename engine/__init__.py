"""The machinery of a run: command line, checkpoints, resuming, ranks, caches, files."""
