"""Who sends requests: tenants, and the API keys by which they are known.

A key is kept as its digest alone, so it shows in no config file, log or memory of a process.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import InvalidConfig

MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose request it is, and what service that buys."""

    name: str = ""
    """Empty where no keys are asked for. Requests share cached prefixes only within one."""
    weight: float = 1.0
    """Share of the service while all ask for more than there is."""
    priority: int | None = None
    """Most urgent class that its requests may have; None: any."""
    is_admin: bool = False
    """Whether it may see the whole service."""

    def priority_of(self, asked: int | None) -> int:
        """Class of a request; lower goes first.

        Args:
            asked: what its client asked for, which can only be less urgent; None: nothing.
        """
        if self.priority is None:
            return asked or 0
        return self.priority if asked is None else max(asked, self.priority)


class ApiKey(BaseModel):
    """A key that clients may send, and the tenant it stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the key in UTF-8, in lower-case hexadecimal digits."""
    # A colon parts the tenant from its client's own cache salt.
    tenant: Annotated[str, Field(pattern=r"^[^:\x00-\x1f]{1,128}$")]
    """Name of the tenant, who may have several keys."""
    # Within bounds that no sum of tokens over a weight can leave what a float holds.
    weight: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 1.0
    priority: Annotated[int, Field(ge=-MAX_PRIORITY - 1, le=MAX_PRIORITY)] | None = 0
    """As of Tenant."""
    admin: bool = False
    """Whether it shows metrics and status, which no other key does once there is one."""

    @classmethod
    def of(cls, key: str, *, admin: bool = False) -> Self:
        """The key alone: a tenant of its own, free in its priority. Raises InvalidConfig."""
        digest = _digest(key, "An admin key" if admin else "An API key")
        return cls(key_sha256=digest, tenant=digest[:16], priority=None, admin=admin)

    @classmethod
    def read(cls, entry: object, place: str) -> Self:
        """Take an entry of a file: fields by name, `key` standing for its digest.

        Raises InvalidConfig, which names the place but never shows a key.
        """
        if not isinstance(entry, dict):
            raise InvalidConfig(
                f"{place} is no mapping.", "Give each key as `key: ...` and `tenant: ...`."
            )
        values: dict[Any, Any] = dict(entry)
        if ("key" in values) == ("key_sha256" in values):
            has = "both `key` and" if "key" in values else "neither `key` nor"
            raise InvalidConfig(f"{place} has {has} `key_sha256`.", "Give one of them.")
        digest = values.get("key_sha256")
        if "key" in values:
            values["key_sha256"] = _digest(values.pop("key"), f"{place}: the key")
        elif isinstance(digest, str):
            values["key_sha256"] = digest.lower()
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            name = ".".join(map(str, first["loc"]))
            raise InvalidConfig(
                f"{place}: {name}: {first['msg']}.", f"An entry may have {_FIELDS}."
            ) from None

    def to_tenant(self) -> Tenant:
        """Whoever sends it."""
        return Tenant(self.tenant, self.weight, self.priority, self.admin)


_FIELDS = (
    "`key` or `key_sha256`, `tenant` without a colon, `weight` from 0.000001 to 1000000, "
    "`priority` and `admin`"
)


def check_distinct(keys: Iterable[tuple[str, ApiKey]]) -> None:
    """Refuse a key that stands at two places. Raises InvalidConfig."""
    seen: dict[str, str] = {}
    for place, key in keys:
        if key.key_sha256 in seen:
            raise InvalidConfig(
                f"{place} has the same key as {seen[key.key_sha256]}.", "Give each key once."
            )
        seen[key.key_sha256] = place


def _digest(key: object, name: str) -> str:
    if not isinstance(key, str):
        raise InvalidConfig(f"{name} is no text.", "Put it in quotes.")
    key = key.strip()  # as the header that brings it
    if not key:
        raise InvalidConfig(
            f"{name} is empty, so anybody could ask.",
            "Give a key with characters in it, or leave it out.",
        )
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
