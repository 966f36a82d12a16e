"""The names of the ways to place a request, apart from what they do: the command line knows them
without loading it."""

from enum import StrEnum
from typing import Final


class PolicyName(StrEnum):
    """As `--router-policy` and `pageray simulate --policy` take them."""

    KV = "kv"
    ROUND_ROBIN = "round_robin"
    LEAST_REQUESTS = "least_requests"
    POWER_OF_TWO = "power_of_two"
    MOST_FREE = "most_free"
    PREFIX_HASH = "prefix_hash"
    LMETRIC = "lmetric"


DEFAULT_POLICY: Final = PolicyName.KV.value
