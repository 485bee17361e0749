"""Fine-tuning algorithms: one file each, the objective a pure function beside its step."""
