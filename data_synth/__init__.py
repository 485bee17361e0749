"""Stage 1: photos → dataset. Synthesises (gt, sr, syn, mask, map) samples for a fine-grained reward model.

Knows nothing about reward models, servers or fine-tuning: those meet it only in `data_synth.schema`.
"""
