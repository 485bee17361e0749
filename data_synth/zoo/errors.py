"""What the zoo raises."""

from __future__ import annotations

from data_synth.schema.errors import FinpercepError


class ZooError(FinpercepError):
    """A zoo that is absent, of another scale, or cannot be trained as asked."""
