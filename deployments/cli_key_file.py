"""Reads the file of `--api-keys-file`. No message shows what stands in it, which is secret."""

from pathlib import Path

import yaml

from deployments.tenant import ApiKey, check_distinct
from engine.errors import InvalidConfig


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a YAML or JSON list. Raises InvalidConfig, which names file and entry."""
    entries = _parse(path)
    if not isinstance(entries, list) or not entries:
        what = "an empty list" if entries == [] or entries is None else "no list"
        raise InvalidConfig(
            f"{path} holds {what} of keys.",
            "Give a list of entries, each with `key: ...` and `tenant: ...`.",
        )
    keys = [
        ApiKey.read(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, 1)
    ]
    check_distinct((f"{path}: entry {number}", key) for number, key in enumerate(keys, 1))
    return tuple(keys)


def _parse(path: Path) -> object:
    try:
        parsed: object = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InvalidConfig(
            f"{path} cannot be read: {error.strerror}.", "Give a file with API keys."
        ) from None
    except yaml.YAMLError as error:
        # Its own words quote the file.
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise InvalidConfig(
            f"{path} is neither YAML nor JSON{at}.", "Put keys with special characters in quotes."
        ) from None
    except (ValueError, RecursionError):
        raise InvalidConfig(
            f"{path} is neither YAML nor JSON.", "Put keys and names in quotes."
        ) from None
    return parsed
