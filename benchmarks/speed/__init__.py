"""Speed and memory side by side: what bench.py measures, a module for each of its sub-commands."""
