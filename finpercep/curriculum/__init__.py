"""Curriculum fine-tuning: when to change rung, how to blend, and the loop around a fine-tuning algorithm."""
