"""Why a system has no figure."""


class PeerUnavailable(Exception):
    """It cannot be had on this machine."""


class PeerFailed(Exception):
    """It was there and did not do what was asked."""
