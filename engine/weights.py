"""Read a checkpoint's tensors slice by slice, so that a rank touches only its own share.

Knows names, shapes and files; what the tensors mean is the model's business.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import InvalidModel

_MAX_NAMED = 5
_ALL = slice(None)


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
        self._files = [_open(path) for path in _find_files(folder)]
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
            expected: name to shape.
            ignored: endings of names that may be there and are not read.
        """
        endings = tuple(ignored)
        extra = [n for n in self._slices if n not in expected and not n.endswith(endings)]
        missing = [name for name in expected if name not in self._slices]
        wrong = [
            f"{name} {found} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in self._slices
            and (found := list(self._slices[name].get_shape())) != list(shape)
        ]
        for what, names in (("lacks", missing), ("has unexpected", extra), ("has", wrong)):
            if names:
                more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
                raise InvalidModel(
                    f"The checkpoint in {self._folder} {what} {', '.join(names[:_MAX_NAMED])}"
                    f"{more}.",
                    "Check that its weights and its config.json belong together.",
                )

    def read(self, name: str, rows: slice = _ALL, columns: slice = _ALL) -> Tensor:
        """Read a vector's or a matrix's share, in the dtype it is stored in.

        Args:
            name: one that `check` has seen.
            rows: of the first dimension.
            columns: of the second; leave it out for a vector.
        """
        source = self._slices[name]
        part = source[rows] if columns == _ALL else source[rows, columns]
        # A copy always: a view of the file would change, or crash us, with the file.
        tensor: Tensor = part.clone()
        return tensor


def _find_files(folder: Path) -> list[Path]:
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
