"""Models by their Hugging Face hub id, where there is a network."""

from __future__ import annotations

import re
from pathlib import Path

from edgeawq.checkpoints.embedded_model import EMBEDDED_REFERENCE
from edgeawq.errors import CheckpointError, MissingExtraError, UnsafeFileError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What a checkpoint is made of, and nothing that could run code.
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
# The same weights again in another layout, hundreds of gigabytes for some models.
UNWANTED_FILES = ["original/*", "consolidated*", "*/*"]


def download_model(hub_id: str) -> Path:
    """The local folder of a hub model, downloading what is missing; raises CheckpointError saying what to do instead.

    Files come from huggingface_hub's own cache where they are there already, also without a network.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise MissingExtraError("huggingface_hub", "host") from error
    instead = (
        f"on a machine with a network run: hf download {hub_id} --local-dir {hub_id.split('/')[1]} ; copy that folder "
        f"here and give its path. Or use {EMBEDDED_REFERENCE}, which needs no network"
    )
    try:
        folder = huggingface_hub.snapshot_download(hub_id, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES)
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"the hub model {hub_id} asks for its licence to be accepted first",
            remedy=f"accept it on https://huggingface.co/{hub_id} and log in with: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no hub model {hub_id}, or it is private",
            remedy="check the name on https://huggingface.co; for a private model log in with: hf auth login",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise CheckpointError(
            f"{hub_id} is not a folder here, and as a hub model it cannot be downloaded: the hub is out of reach",
            remedy=instead,
        ) from error
    # The hub library's HTTP client changes with its version; its error class is what the hub's own one derives from.
    except (*errors.HfHubHTTPError.__bases__, OSError) as error:
        raise CheckpointError(f"the hub model {hub_id} cannot be downloaded: {error}", remedy=instead) from error
    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        raise UnsafeFileError(
            f"the hub model {hub_id} has no safetensors files (only formats that can run code, or none)",
            remedy="choose a version of the model in safetensors, or a GGUF file",
        )
    return path
