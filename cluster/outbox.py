"""Messages for one peer, in order, kept until the peer has them.

Belongs to one event loop. Knows nothing of what the messages say or how they travel.
"""

import asyncio
from collections import deque


class Outbox:
    """Numbered messages survive a broken connection; a heartbeat does not need to.

    acknowledged | sent, may be lost | not sent
                   <------- kept, num_bytes ------->
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._sent: deque[bytes] = deque()
        self._unsent: deque[bytes] = deque()
        self._last_sent = 0
        self._heartbeat: bytes | None = None
        self._filled = asyncio.Event()

    @property
    def last_sent(self) -> int:
        """Number of the last message that `get` has handed out."""
        return self._last_sent

    @property
    def last_number(self) -> int:
        """Number of the newest message; they count from 1."""
        return self._last_sent + len(self._unsent)

    def put(self, payload: bytes) -> None:
        """Add the message with number `last_number + 1`."""
        self._unsent.append(payload)
        self.num_bytes += len(payload)
        self._filled.set()

    def put_heartbeat(self, payload: bytes) -> None:
        """Send this unless there is better to send: only the newest one counts."""
        if not self._unsent:
            self._heartbeat = payload
            self._filled.set()

    async def get(self) -> bytes:
        """Wait for the next message to send."""
        while True:
            # What is in a numbered message is newer than any heartbeat that waits.
            heartbeat, self._heartbeat = self._heartbeat, None
            if self._unsent:
                payload = self._unsent.popleft()
                self._sent.append(payload)
                self._last_sent += 1
                return payload
            if heartbeat is not None:
                return heartbeat
            self._filled.clear()
            await self._filled.wait()

    def acknowledge(self, number: int) -> None:
        """Forget what the peer has: everything up to `number`, which must have been sent."""
        if number > self._last_sent:
            raise ValueError(f"message {number} was never sent, only {self._last_sent}")
        while self._sent and self._last_sent - len(self._sent) < number:
            self.num_bytes -= len(self._sent.popleft())

    def rewound(self) -> "Outbox":
        """Copy that sends again what is not acknowledged, for the next connection.

        A copy, because whoever carries the old connection may still be taking from this one.
        """
        copy = Outbox()
        copy._last_sent = self._last_sent - len(self._sent)
        copy._unsent = self._sent + self._unsent
        copy.num_bytes = self.num_bytes
        copy._filled.set()
        return copy
