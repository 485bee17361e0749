"""Feature differences of M_gt: how much two images differ to the eye, pixel by pixel.

protocol.py       what `ground_truth` asks of them
weight_free.py    gradients and colours; needs no weights
dense.py          any network's tokens, without block artefacts
loading.py        networks from timm, by name and file
resolve.py        names, `auto`, versions and gains
"""
