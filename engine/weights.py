"""Read a checkpoint's tensors slice by slice, so that a rank touches only its own share.

Knows names, shapes and files; what the tensors mean is the model's business.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import InvalidModel

ALL = slice(None)
_MAX_NAMED = 5


class WeightSource(Protocol):
    """Where a model's tensors come from. A context manager; `check` comes before `read`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str]) -> None:
        """See `Checkpoint.check`."""

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """See `Checkpoint.read`; on the host, or on the device that the source was made for."""


class Checkpoint:
    """The safetensors files of a model folder, open for reading. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Open the files.

        Args:
            folder: with model.safetensors, or with shards and model.safetensors.index.json.

        Raises InvalidModel when a file is missing or broken.
        """
        self._folder = folder
        # One handle a file: safetensors maps it, so that only slices which are read are loaded.
        self._files = [_open(path) for path in find_weight_files(folder)]
        self._slices = {name: file.get_slice(name) for file in self._files for name in _names(file)}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._slices.clear()
        for file in self._files:
            file.__exit__(kind, error, traceback)

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str]) -> None:
        """Raise InvalidModel unless exactly the expected tensors are there, each of its shape.

        Args:
            expected: name to shape; a scalar counts as a vector of one.
            ignored: endings of names that may be there and are not read.
        """
        found = {name: tuple(part.get_shape()) or (1,) for name, part in self._slices.items()}
        check_tensors(self._folder, found, expected, ignored)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """Read a vector's or a matrix's share, or a scalar, in the dtype it is stored in.

        Args:
            name: one that `check` has seen.
            rows: of the first dimension.
            columns: of the second; leave it out for a vector.
        """
        source = self._slices[name]
        if not source.get_shape():
            part = source[...]
        else:
            part = source[rows] if columns == ALL else source[rows, columns]
        # A copy always: a view of the file would change, or crash us, with the file.
        tensor: Tensor = part.clone()
        return tensor


def check_tensors(
    folder: Path,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str],
) -> None:
    """Do what `Checkpoint.check` does, for the tensors found in a folder: name to shape."""
    endings = tuple(ignored)
    extra = [n for n in found if n not in expected and not n.endswith(endings)]
    missing = [name for name in expected if name not in found]
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != tuple(shape)
    ]
    for what, names in (("lacks", missing), ("has unexpected", extra), ("has", wrong)):
        if names:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            raise InvalidModel(
                f"The checkpoint in {folder} {what} {', '.join(names[:_MAX_NAMED])}{more}.",
                "Check that its weights and its config.json belong together.",
            )


def find_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder. Raises InvalidModel for a broken index."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidModel(
                f"{index} cannot be read: {error}.", "Fetch the model again."
            ) from error
        return [folder / name for name in names]
    return [folder / "model.safetensors"]


def _names(file: Any) -> list[str]:
    names: list[str] = file.keys()
    return names


def _open(path: Path) -> Any:  # safetensors' handle has no types
    try:
        handle: Any = safe_open(str(path), framework="pt")
        return handle.__enter__()
    except FileNotFoundError:
        raise InvalidModel(
            f"{path.parent} has no {path.name}.",
            "Give a folder with safetensors weights; other formats are not read.",
        ) from None
    except (OSError, SafetensorError) as error:
        raise InvalidModel(f"{path} cannot be read: {error}.", "Fetch the model again.") from error
