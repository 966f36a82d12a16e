"""The requests that hold blocks, by how far they are. They move on with each step."""

from collections.abc import Iterator

from engine.batch import Batch, ScheduledRequest
from engine.request import Request, RequestStatus


class RunningRequests:
    """The running requests of one engine."""

    def __init__(self) -> None:
        self.prefilling: dict[Request, None] = {}
        # Each with its entry in a batch, which is the same every step and so made once.
        self.decoding: dict[Request, ScheduledRequest] = {}
        self.ending: dict[Request, None] = {}
        """Their last token is on its way."""

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding) + len(self.ending)

    def __iter__(self) -> Iterator[Request]:
        yield from self.decoding
        yield from self.prefilling
        yield from self.ending

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of prompts, and of outputs lost, that are to be computed."""
        return sum(r.num_tokens - r.num_computed_tokens for r in self.prefilling)

    def start(self, request: Request) -> None:
        """Take in a request that has its first blocks."""
        request.status = RequestStatus.RUNNING
        self.prefilling[request] = None

    def remove(self, request: Request) -> None:
        """Let one go that ends or has to wait."""
        for stage in (self.decoding, self.prefilling, self.ending):
            if request in stage:
                del stage[request]

    def advance(self, batch: Batch) -> None:
        """Count as done what a batch does that is on its way; its tokens are unknown yet."""
        for scheduled, start in zip(batch.requests, batch.starts, strict=True):
            scheduled.request.num_computed_tokens = start + scheduled.num_scheduled_tokens
        for i in batch.wanting:
            request = batch.requests[i].request
            request.expect()
            if request.num_output_tokens >= request.max_tokens:
                self.remove(request)
                self.ending[request] = None
            elif request in self.prefilling:
                del self.prefilling[request]
                self.decoding[request] = ScheduledRequest(request, 1)
