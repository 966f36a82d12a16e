"""Fetch a model from the Hugging Face hub into the hub's own cache."""

import threading
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from tqdm import tqdm  # type: ignore[import-untyped]  # ships no types

from engine.errors import ModelNotFound
from engine.model_folder import CONFIG_NAME, check_folder
from engine.progress import Report

SMALL_FILES = ["*.json", "*.jinja"]
WEIGHTS = ["*.safetensors"]
# Copies of the weights in other formats.
OTHER_FILES = ["*/*", "consolidated*.safetensors"]


def hub_model(model: str, *, report: Report, needs_weights: bool = True) -> Path:
    """Return the folder of a hub model, fetching what is missing or newer on the hub.

    Offline, whether for want of a network or by HF_HUB_OFFLINE, the copy in the hub's cache does.
    """
    try:
        folder = snapshot_download(
            model,
            allow_patterns=SMALL_FILES + (WEIGHTS if needs_weights else []),
            ignore_patterns=OTHER_FILES,
            tqdm_class=_progress_class(f"Downloading {model}", report),
        )
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise _not_found(model, error) from error
    return check_folder(Path(folder), needs_weights=needs_weights)


def hub_config(model: str, *, report: Report) -> Path:
    """Return config.json of a hub model, fetching nothing else. Raises ModelNotFound."""
    try:
        bars = _progress_class(f"Downloading {CONFIG_NAME} of {model}", report)
        return Path(hf_hub_download(model, CONFIG_NAME, tqdm_class=bars))
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise _not_found(model, error) from error


def _not_found(model: str, error: Exception) -> ModelNotFound:
    elsewhere = "or name a model folder or a GGUF file"
    if isinstance(error, GatedRepoError):
        return ModelNotFound(
            f"The hub gives '{model}' only to those who accepted its terms.",
            f"Accept them at https://huggingface.co/{model} and log in with 'hf auth login'.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"The hub has no model '{model}' that you may see.",
            "Check the name; log in with 'hf auth login' if the model is private.",
        )
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, OfflineModeIsEnabled):
            return ModelNotFound(
                f"'{model}' is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it.",
                f"Unset HF_HUB_OFFLINE, {elsewhere}.",
            )
        return ModelNotFound(
            f"'{model}' is not in the hub's cache, and the hub cannot be reached "
            f"({error.__cause__}).",
            f"Check the network, {elsewhere}.",
        )
    if isinstance(error, EntryNotFoundError):
        return ModelNotFound(
            f"'{model}' on the hub has no {CONFIG_NAME}.", f"Check the name, {elsewhere}."
        )
    return ModelNotFound(
        f"'{model}' could not be fetched from the hub ({type(error).__name__}: {error}).",
        f"Try again, {elsewhere}.",
    )


def _progress_class(phase: str, report: Report) -> type[Any]:
    """Return a progress bar class that reports bytes instead of drawing.

    The hub's client makes several bars, for files and for bytes, depending on how it downloads;
    of those for bytes the one that is ahead counts.
    """
    lock = threading.Lock()
    furthest: dict[str, int] = {"done": 0, "total": 0}

    class Progress(tqdm):  # type: ignore[misc]  # tqdm is untyped
        monitor_interval = 0  # no thread that redraws

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.unit == "B":
                with lock:
                    furthest["done"] = max(furthest["done"], int(self.n))
                    furthest["total"] = max(furthest["total"], int(self.total or 0))
                    report(phase, furthest["done"], furthest["total"])
            return None

        def display(self, *args: object, **kwargs: object) -> None:
            pass

    return Progress
