"""Diffusion SR policies: what is fine-tuned, behind one small protocol (`policy.SRPolicy`)."""
