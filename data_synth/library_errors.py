"""What libraries say when they fail, as part of our own messages."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
