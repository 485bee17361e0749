"""Everything, beside the weights, that defines one rung of the reward model. Plain data with JSON in and out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from pydantic import TypeAdapter, ValidationError

from finpercep.errors import ConfigError

Modulation = Literal["literal", "complement", "residual", "statistics", "readout", "attended"]
Pooling = Literal["area", "max"]
Decoder = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "upernet", "segformer", "pspnet", "deeplabv3", "deeplabv3plus", "dpt"
]


@dataclass(frozen=True)
class RewardModelConfig:
    """One rung.

    Attributes:
        encoder: a segmentation-models-pytorch encoder name; ``tu-…`` is any timm backbone, ``tu-resnet50_clip`` CLIP-IQA's.
        encoder_depth: number of halvings; f_N has stride 2**encoder_depth. A ViT's patches are given that side (16 px at
            depth 4), and as many of its levels are decoded.
        lr_input: whether the encoder also sees how the image, brought down, departs from the LR picture it was made from
            (`lr_evidence`). That picture stays optional: one model serves with and without.
        decoder: a segmentation-models-pytorch decoder (`decoders`); ``dpt`` is for ViT encoders, and they for it.
        map_stride: stride of the decoder's map before it is upsampled to the input, a power of two from the decoder's
            `native_stride` up to f_N's stride; None for RM_0, which has no decoder.
        decoder_channels: channels of the decoder's blocks, coarsest first. Of ``unet`` a rung uses as many as its stride needs,
            of ``unetplusplus`` and ``manet`` one for each halving; ``linknet`` ends with the last; the rest have one width, the
            first.
        modulation: how M enters the score (method §2), for f = f_N and M brought to its size:
            ``literal`` f⊙M, the paper's form; ``complement`` f⊙(1−M); ``residual`` f⊙(1+M);
            ``statistics`` [f, f⊙M, mean(M), top 1 % of M], which hands the head the map's own size and peak;
            ``readout`` [f, mean(M), top 0.1 %, 1 % and 10 % of M], the map read directly;
            ``attended`` the same and Σ f⊙M / ΣM, features of what is broken, however small it is.
        map_pooling: how M is brought down to f_N's size. Bilinear sampling is not offered: it misses most small defects.
        head_hidden: hidden width of the score MLP.
        mean: per-channel mean of the encoder's training images, RGB in [0, 1].
        std: their standard deviation.
        score_scale: calibration (`finpercep.training.calibration`): S = sigmoid(score_scale · logit + score_shift).
        score_shift: see ``score_scale``.
        map_scale: calibration of the map that is handed out: M = sigmoid(map_scale · logit + map_shift). The score sees the
            map it was trained with, uncalibrated.
        map_shift: see ``map_scale``.
    """

    encoder: str = "tu-resnet10t"
    encoder_depth: int = 4
    lr_input: bool = True
    map_stride: int | None = None
    decoder: Decoder = "unet"
    decoder_channels: tuple[int, ...] = (64, 48, 24, 12)
    modulation: Modulation = "residual"
    map_pooling: Pooling = "area"
    head_hidden: int = 64
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    score_scale: float = 1.0
    score_shift: float = 0.0
    map_scale: float = 1.0
    map_shift: float = 0.0

    def __post_init__(self) -> None:
        if not 3 <= self.encoder_depth <= 5:
            raise ConfigError(f"encoder_depth must lie in 3…5, got {self.encoder_depth}")
        if self.map_stride is not None and self.map_stride not in {2**k for k in range(self.encoder_depth + 1)}:
            raise ConfigError(f"map_stride must be a power of two up to {self.deep_stride}, or None, got {self.map_stride}")
        if self.decoder not in get_args(Decoder):
            raise ConfigError(f"decoder must be one of {get_args(Decoder)}, got {self.decoder!r}")
        finest = native_stride(self.decoder, self.encoder_depth)
        if self.map_stride is not None and self.map_stride < finest:
            raise ConfigError(
                f"map_stride of decoder {self.decoder!r} on an encoder of depth {self.encoder_depth} must be at least {finest}, "
                f"got {self.map_stride}"
            )
        if len(self.decoder_channels) < self.decoder_blocks:
            raise ConfigError(f"decoder_channels must name {self.decoder_blocks} blocks, got {len(self.decoder_channels)}")
        if self.modulation not in get_args(Modulation):
            raise ConfigError(f"modulation must be one of {get_args(Modulation)}, got {self.modulation!r}")
        if self.map_pooling not in get_args(Pooling):
            raise ConfigError(f"map_pooling must be one of {get_args(Pooling)}, got {self.map_pooling!r}")

    @property
    def deep_stride(self) -> int:
        """Stride of f_N, and the multiple that inputs are padded to."""
        return int(2**self.encoder_depth)

    @property
    def decoder_blocks(self) -> int:
        """Blocks that take a number of ``decoder_channels`` each: one for each halving this rung's decoder undoes."""
        if self.map_stride is None:
            return 0
        match self.decoder:
            case "unet":
                return (self.deep_stride // self.map_stride).bit_length() - 1
            case "unetplusplus" | "manet":
                return self.encoder_depth
        return 1

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Validate and build. Raises `ConfigError` on a missing or unknown field, or a value of the wrong type or range.

        A missing field is not filled with today's default: a later default must not change what an old checkpoint means.
        """
        names = {field.name for field in fields(cls)}
        if set(record) != names:
            raise ConfigError(f"expected exactly the settings {sorted(names)}, got {sorted(record)}")
        try:
            return TypeAdapter(cls).validate_python(record)
        except ValidationError as error:
            fault = error.errors()[0]
            raise ConfigError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r}") from error


def native_stride(decoder: Decoder, encoder_depth: int) -> int:
    """The finest stride the decoder reaches; rungs of coarser maps average its features."""
    match decoder:
        case "unet" | "unetplusplus" | "manet" | "linknet":
            return 1
        case "dpt":
            return 2
        case "upernet" | "segformer" | "deeplabv3plus":
            return 4
        case "fpn":
            return int(2 ** (encoder_depth - 3))
        case "pspnet" | "deeplabv3":
            return int(2**encoder_depth)
