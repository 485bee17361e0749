"""The colour photographs bundled with scikit-image and scikit-learn: no download."""

from __future__ import annotations

import numpy as np

from data_synth.photos.photo import Photo, PhotoError
from data_synth.schema.pixels import RGB8

SAMPLE_SCHEME = "sample:"
_SKIMAGE_PHOTOS = {
    "astronaut": "public domain (NASA)",
    "chelsea": "CC0 (S. van der Walt)",
    "coffee": "CC0 (R. Michetti)",
    "rocket": "public domain (SpaceX)",
    "motorcycle": "Middlebury stereo benchmark 2014 (D. Scharstein et al.), licence not stated",
}
_SKLEARN_PHOTOS = {"china.jpg": "CC BY 2.0 (danielbuechele on Flickr)", "flower.jpg": "CC BY 2.0 (vultilion on Flickr)"}
"""Licences as the two libraries state them beside the pictures."""

SAMPLE_LICENCE = "; ".join(f"{name}: {licence}" for name, licence in (_SKIMAGE_PHOTOS | _SKLEARN_PHOTOS).items())
SAMPLE_ORIGIN = "photographs bundled with scikit-image (skimage.data) and scikit-learn (load_sample_images)"


def sample_photos() -> list[Photo]:
    """The sample photographs, under the licences of `SAMPLE_LICENCE`."""
    return [Photo(f"{SAMPLE_SCHEME}{name}") for name in (*_SKIMAGE_PHOTOS, *_SKLEARN_PHOTOS)]


def read_sample(source_id: str) -> RGB8:
    """Pixels of the sample a ``source_id`` names (``sample:NAME``, also behind the number of its source).

    Raises:
        PhotoError: no sample is called so, or its library is missing.
    """
    name = source_id.rpartition(SAMPLE_SCHEME)[2]
    try:
        if name in _SKLEARN_PHOTOS:
            from sklearn.datasets import load_sample_image

            return np.array(load_sample_image(name), dtype=np.uint8)
        if name in _SKIMAGE_PHOTOS:
            import skimage.data

            loaded = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
            return np.array(loaded[..., :3], dtype=np.uint8)
    except ImportError as error:
        raise PhotoError("the sample photos come with scikit-image and scikit-learn: pip install 'finpercep[train]'") from error
    raise PhotoError(f"no sample photo is called {name!r}; there are {', '.join([*_SKIMAGE_PHOTOS, *_SKLEARN_PHOTOS])}")
