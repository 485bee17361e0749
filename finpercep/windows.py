"""A window of an image, turned and mirrored: pixels move, none is resampled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A crop, then quarter turns, then perhaps its mirror image.

    Attributes:
        top, left, height, width: the crop, in px of the image.
        turns: quarter turns anticlockwise.
        flip: left to right, after turning.
    """

    top: int
    left: int
    height: int
    width: int
    turns: int = 0
    flip: bool = False

    def crop(self, scale: int = 1) -> tuple[slice, slice]:
        """Rows and columns of the crop in a picture ``scale`` times smaller; ``scale`` must divide the crop."""
        rows = slice(self.top // scale, (self.top + self.height) // scale)
        return rows, slice(self.left // scale, (self.left + self.width) // scale)
