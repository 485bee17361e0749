"""finpercep: fine-grained reward models for image super-resolution.

Stages 2 and 4 of the story (dataset → reward model; reward → fine-tuned SR model). Nothing heavy is imported here:
`import finpercep.client` must stay quick.
"""

__version__ = "0.1.0"
