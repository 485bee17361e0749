"""A rung to and from the Hugging Face hub: download, upload, and the card an upload gets. Knows files, not the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from finpercep.errors import WeightsError
from finpercep.reward_model.config import RewardModelConfig

HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
"""What the hub's client raises: unreachable, offline, refused, no such repository, a name that cannot be one.

Which HTTP library it uses, and so whose errors these are, changes from release to release; its own error's bases tell.
"""


class HubApi(Protocol):
    """The two calls an upload needs; `huggingface_hub.HfApi` has them."""

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        """Make the repository; what comes back has its full ``repo_id``."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str | Path, commit_message: str | None = None) -> Any:
        """Commit a folder's files; what comes back reads as the commit's address."""
        ...


def download(model_id: str, revision: str | None, hub: dict[str, Any]) -> Path:
    """The local copy of a repository.

    Raises:
        WeightsError: it cannot be had.
    """
    try:
        return Path(snapshot_download(model_id, revision=revision, **hub))
    except HUB_ERRORS as error:
        raise WeightsError(
            f"{model_id}: neither a folder here nor a model that could be downloaded ({one_line(error)})"
        ) from error


def upload(folder: Path, repo_id: str, api: HubApi, *, private: bool | None, message: str) -> str:
    """Commit ``folder`` to ``repo_id``, made when absent. Returns the commit's address.

    Raises:
        WeightsError: the hub cannot be reached or refused.
    """
    try:
        full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=full_name, folder_path=folder, commit_message=message))
    except HUB_ERRORS as error:
        raise WeightsError(
            f"{repo_id}: could not be uploaded ({one_line(error)}); check the network and `hf auth whoami`, "
            "or keep it in a folder with save_pretrained"
        ) from error


def model_card(config: RewardModelConfig, digest: str | None, *, repo_id: str, licence: str | None, notes: str) -> ModelCard:
    """What the files are and how they are used. How the model was trained and measured only its owner knows: ``notes``."""
    about = ModelCardData(
        license=licence,
        library_name="finpercep",
        tags=["image-quality-assessment", "super-resolution", "reward-model"],
    )
    stride = config.map_stride
    gives = "a global score" if stride is None else f"a global score and a degradation map (decoded at stride {stride})"
    return ModelCard(f"""---
{about.to_yaml()}
---

# {repo_id}

One rung of a FinPercep reward model (arXiv 2512.22647): {gives} for an image.
Score in [0, 1], higher is better; map in [0, 1], 1 = degraded. Input: RGB in [0, 1], N×3×H×W, sides of at least 32 px.

    from finpercep.reward_model.model import FinPercepRM

    output = FinPercepRM.from_pretrained("{repo_id}")(images)  # output.score, output.map

- encoder: `{config.encoder}`, depth {config.encoder_depth}
- digest: `{digest}`

{notes}
""")


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
