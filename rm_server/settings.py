"""Everything a server can be told, in one validated object; the only place that reads the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024


class Settings(BaseSettings):
    """Settings of the server. Arguments win over the environment (``FINPERCEP_PORT``, …), and that over the defaults."""

    model_config = SettingsConfigDict(env_prefix="FINPERCEP_", frozen=True, extra="forbid")

    model: Path | None = Field(None, description="Folder of the ladder to serve; the packaged one when absent.")
    device: str = Field("auto", description="auto, cpu or cuda[:i].")
    host: str = Field("127.0.0.1", description="Address to listen on. Loopback: nothing here asks who is calling.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    max_body_bytes: int = Field(256 * MEBIBYTE, gt=0, description="Largest request body, in bytes; a larger one is answered 413.")
    max_pixels: int = Field(100_000_000, gt=0, description="Largest picture, in pixels.")
    max_images: int = Field(256, gt=0, description="Most images in one request.")
