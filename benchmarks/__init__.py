"""One file a question; each prints a table and writes `results/NAME.json`. Run as `python -m benchmarks.NAME`."""
