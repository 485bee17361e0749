"""Everything a server can be told, in one validated object; the only place that reads the environment."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBI = 1024 * 1024

_SIZE = re.compile(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", re.ASCII)


class Settings(BaseSettings):
    """Settings of the server. Arguments win over the environment (``FINPERCEP_PORT``, …), and that over the defaults."""

    model_config = SettingsConfigDict(env_prefix="FINPERCEP_", frozen=True, extra="forbid")

    model: Path | None = Field(None, description="Folder of the ladder to serve; the packaged one when absent.")
    model_root: Path | None = Field(
        None, description="Folder of the ladders and rungs that PUT /rungs/NAME may load, by their paths in it."
    )
    device: str = Field("auto", description="auto, cpu, cuda[:i], or several separated by commas: a worker on each.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Of the convolutions; docs/reward_model.md says what bf16 costs."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs a token.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    token: SecretStr | None = Field(None, min_length=16, description="What callers must send as a bearer token.")
    admin_token: SecretStr | None = Field(None, min_length=16, description="The same for PUT /rungs; without it nobody may.")

    max_body_bytes: int = Field(256 * MEBI, gt=0, description="Largest request body, in bytes; a larger one is answered 413.")
    max_pixels: int = Field(100_000_000, gt=0, description="Largest picture, in pixels.")
    max_grad_pixels: int = Field(
        2 * MEBI,
        gt=0,
        description="Largest image whose gradient may be asked for, in pixels: it is not tiled, and takes 700 bytes a pixel.",
    )
    max_images: int = Field(256, gt=0, description="Most images in one request.")
    house_bytes: int = Field(1024 * MEBI, gt=0, description="Bodies of all requests together; beyond it they are answered 503.")
    house_pixels: int = Field(64 * MEBI, gt=0, description="Pixels of all requests together; beyond it they are answered 503.")
    batch_pixels: int | None = Field(
        None, gt=0, description="Pixels of a batch; when absent, 131,072 on a CPU, 32 million on a GPU."
    )
    lanes: int | None = Field(
        None,
        gt=0,
        le=64,
        description="Batches at once on a device; when absent, one for each core of a CPU, four at most; one on a GPU.",
    )
    threads: int | None = Field(None, gt=0, description="Cores of a CPU that models run on; when absent, all.")
    compile: bool = Field(
        False, description="Whether torch.compile makes the models quicker; it takes minutes, and a C++ compiler on a CPU."
    )
    warm_up: str = Field(
        "",
        description="Sizes to score before the server says it is ready, so that no caller waits for the first time: 256,640x480.",
    )
    wait_ms: float = Field(5.0, ge=0, description="Longest time a batch waits for requests that are just being decoded.")
    body_seconds: float = Field(
        60.0, gt=0, description="Longest time a body may take to arrive, a part of an answer to be taken."
    )
    request_seconds: float = Field(120.0, gt=0, description="Longest time an image may wait for its turn.")
    drain_seconds: int = Field(30, ge=0, description="Time that requests in flight are given when the server is asked to end.")
    decoders: int = Field(2, gt=0, description="Threads that decode pictures and encode replies.")

    @field_validator("warm_up")
    @classmethod
    def _sizes_can_be_read(cls, text: str) -> str:
        sizes_of(text)
        return text

    @property
    def warm_up_sizes(self) -> tuple[tuple[int, int], ...]:
        """``warm_up`` as (height, width)."""
        return sizes_of(self.warm_up)

    @model_validator(mode="after")
    def _token_for_the_public(self) -> Settings:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from outside; set a token (FINPERCEP_TOKEN, 16 characters or more), or listen on "
                "127.0.0.1"
            )
        return self


def sizes_of(text: str) -> tuple[tuple[int, int], ...]:
    """``256,640x480`` (a square, width x height) as (height, width) each. Raises `ValueError`."""
    sizes = []
    for one in filter(None, (part.strip() for part in text.split(","))):
        if not (match := _SIZE.fullmatch(one)):
            raise ValueError(f"sizes must be like 256,640x480, got {one!r}")
        width, height = match[1], match[2] or match[1]
        sizes.append((int(height), int(width)))
    return tuple(sizes)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
