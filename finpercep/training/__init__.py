"""Dataset → reward model, and the run state that every training loop of the package shares."""
