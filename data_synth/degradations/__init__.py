"""I_LR: a clean photo made worse, blindly and twice, as plain parameters first, then their pure effect.

blind.py           the whole degradation: which step follows which
blur_kernels.py    Gaussian, generalised Gaussian, plateau and sinc kernels
resizing.py        up, down or not at all, by several interpolations
noise.py           Gaussian and Poisson noise, in colour or grey
codecs.py          JPEG and WebP round trips
"""

from data_synth.degradations.blind import (
    Degradation,
    DegradationConfig,
    DegradationError,
    FinalConfig,
    FinalStep,
    Stage,
    StageConfig,
    degrade,
    sample_degradation,
)
from data_synth.degradations.codecs import jpeg_round_trip
from data_synth.degradations.resizing import Interpolation, resize_image

__all__ = [
    "Degradation",
    "DegradationConfig",
    "DegradationError",
    "FinalConfig",
    "FinalStep",
    "Interpolation",
    "Stage",
    "StageConfig",
    "degrade",
    "jpeg_round_trip",
    "resize_image",
    "sample_degradation",
]
