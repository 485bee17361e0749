"""FinPercep-RM: image → degradation map and a global score tied to it (arXiv 2512.22647; method §2)."""
