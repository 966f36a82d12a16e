"""The file of a batch's answers: OpenAI's JSON lines, appended one at a time, resumed later.

A line is kept for ever once the service has said what it makes of the request. One that never got
an answer, or only that there was no room or a fault, is left out when the batch is run again.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from engine.errors import InvalidConfig, PageRayError


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What became of one request."""

    status_code: int | None
    """None: it never got an answer, and `body` is an object with code and message."""
    body: Any
    request_id: str = ""

    @property
    def is_success(self) -> bool:
        """Whether it is what was asked for."""
        return self.status_code is not None and self.status_code < HTTPStatus.BAD_REQUEST

    @property
    def is_final(self) -> bool:
        """Whether to ask again could not change it."""
        return self.status_code is not None and (
            self.status_code < HTTPStatus.INTERNAL_SERVER_ERROR
            and self.status_code not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        )


class BatchOutput:
    """Opened by one run at a time; what earlier runs have written counts."""

    def __init__(self, path: Path, custom_ids: Set[str]) -> None:
        """Open or make the file.

        Args:
            path: the file.
            custom_ids: those of the batch.

        Raises InvalidConfig for a file of something else, or that another run writes to.
        """
        self.path = path.resolve()
        self.answered: set[str] = set()
        """Ids that need not be asked again."""
        self.num_failed = 0
        """Lines in the file whose answer is an error."""
        with self._explained():
            self._file = _open(path)
            try:
                self._resume(custom_ids)
            except BaseException:
                self._file.close()
                raise

    def append(self, custom_id: str, answer: BatchAnswer) -> None:
        """Write a line, whole and at once. Raises PageRayError when the disk does not take it."""
        line: dict[str, Any] = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": custom_id,
            "response": None,
            "error": None,
        }
        if answer.status_code is None:
            line["error"] = answer.body
        else:
            line["response"] = {
                "status_code": answer.status_code,
                "request_id": answer.request_id,
                "body": answer.body,
            }
        with self._explained():
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
        self.answered.add(custom_id)
        self.num_failed += not answer.is_success

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a full disk, which append has told of
            self._file.close()

    def _resume(self, custom_ids: Set[str]) -> None:
        redone: set[int] = set()
        num_bytes = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):  # the last run was killed while it wrote
                self._file.truncate(num_bytes)
                break
            num_bytes += len(line)
            custom_id, answer = _read(line, f"{self.path}:{number}")
            if custom_id not in custom_ids:
                raise InvalidConfig(
                    f'{self.path}:{number} answers "{custom_id}", which the batch does not ask.',
                    "Name another file for the answers to this batch.",
                )
            if not answer.is_final or custom_id in self.answered:
                redone.add(number)
                continue
            self.answered.add(custom_id)
            self.num_failed += not answer.is_success
        if redone:
            self._leave_out(redone)
        self._file.seek(0, os.SEEK_END)

    def _leave_out(self, numbers: Set[int]) -> None:
        """Beside the file first: whenever this is interrupted, one of the two is whole."""
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            self._file.seek(0)
            file.writelines(
                line for number, line in enumerate(self._file, 1) if number not in numbers
            )
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(self.path, fresh)
        fresh.replace(self.path)
        self._file.close()
        self._file = _open(self.path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise InvalidConfig(
                f"Another run writes to {self.path}.", "Wait for it, or name another file."
            ) from error
        except OSError as error:
            raise PageRayError(
                f"{self.path} cannot be written: {error.strerror}.",
                "Make room for it, or name another file; what it has already is kept.",
            ) from error


def _open(path: Path) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # a file system without locks is no reason not to run
    return file


class _Response(msgspec.Struct):
    status_code: int


class _Line(msgspec.Struct):
    """Of which nothing else is looked at, least of all the body."""

    custom_id: str
    response: _Response | None


def _read(line: bytes, place: str) -> tuple[str, BatchAnswer]:
    try:
        read = msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidConfig(
            f"{place} is no answer of a batch.", "Name another file for the answers."
        ) from error
    response = read.response
    return read.custom_id, BatchAnswer(None if response is None else response.status_code, None)
