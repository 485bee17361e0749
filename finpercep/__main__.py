"""`python -m finpercep` is the same as `finpercep`."""

from finpercep.cli import main

main()
