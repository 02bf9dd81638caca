"""Speed and memory side by side: python -m benchmarks.speed, a module for each sub-command."""
