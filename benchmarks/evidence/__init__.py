"""The evidence for the curriculum: `python -m benchmarks.evidence`, written up in `docs/evidence.md`."""
