"""Photos in: folders, Hugging Face data sets and the packaged samples, as upright RGB, split by photo.

    photo.py             Photo: a name and where its pixels come from
    folders.py           image folders, recursively
    hub.py               Hugging Face data sets, by name or local path, read by row
    samples.py           photographs bundled with scikit-image and scikit-learn
    sources.py           `--photos` specifications → PhotoSource, with licence and origin for the dataset card
    scan.py              every photo decoded once: which are usable, which are near-duplicates; cached
    duplicates.py        perceptual fingerprints and groups of near-duplicates
    split.py             train, validation and test, by photo, a group of near-duplicates in one part

Knows nothing about degradations, artefacts or how samples are stored.
"""

from data_synth.photos.duplicates import DuplicateRule, Fingerprint, fingerprint, near_duplicates
from data_synth.photos.folders import find_photos
from data_synth.photos.photo import Photo, PhotoError, readable
from data_synth.photos.samples import sample_photos
from data_synth.photos.scan import PhotoScan, scan_photos
from data_synth.photos.sources import PhotoSource, gather, photo_source
from data_synth.photos.split import PhotoSplit, split_photos

__all__ = [
    "DuplicateRule",
    "Fingerprint",
    "Photo",
    "PhotoError",
    "PhotoScan",
    "PhotoSource",
    "PhotoSplit",
    "find_photos",
    "fingerprint",
    "gather",
    "near_duplicates",
    "photo_source",
    "readable",
    "sample_photos",
    "scan_photos",
    "split_photos",
]
