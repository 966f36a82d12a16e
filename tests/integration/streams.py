"""Streams of a live service, each read by a thread of its own."""

import json
import threading
import time
from collections.abc import Callable

import httpx2


class Stream:
    """One completion as its client sees it come."""

    def __init__(self, url: str, body: dict[str, object]) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.status = 0
        self.error: str | None = None
        self.num_events = 0
        self.largest_gap_s = 0.0
        self._url = url
        self._body = {**body, "stream": True}
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait(self, timeout_s: float = 120.0) -> "Stream":
        """Wait for its end."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream has not ended"
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it ended as it should."""
        return self.error is None and self.finish_reason in ("stop", "length")

    def _read(self) -> None:
        try:
            with (
                httpx2.Client(base_url=self._url, timeout=120, trust_env=False) as client,
                client.stream("POST", "/v1/completions", json=self._body) as response,
            ):
                self.status = response.status_code
                self._take(response.iter_lines)
        except httpx2.TransportError as error:
            self.error = repr(error)

    def _take(self, lines: Callable[[], object]) -> None:
        last_s = time.monotonic()
        for line in lines():  # type: ignore[attr-defined]
            if not line.startswith("data: {"):
                continue
            now = time.monotonic()
            if self.num_events:
                self.largest_gap_s = max(self.largest_gap_s, now - last_s)
            last_s = now
            self.num_events += 1
            event = json.loads(line[6:])
            if "error" in event:
                self.error = event["error"]["message"]
                return
            (choice,) = event["choices"]
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
