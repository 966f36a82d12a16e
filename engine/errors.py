"""The exception tree.

    PageRayError                 cause and fix; everything we raise on purpose
    |-- InvalidRequest           the client asked for something impossible      (HTTP 400)
    |   |-- PromptTooLong        prompt does not fit the context or the cache   (HTTP 400)
    |   `-- UnsupportedParameter a parameter we do not implement yet            (HTTP 400)
    |-- ModelNotFound            no such model here                             (HTTP 404)
    |-- InvalidModel             a checkpoint we cannot serve                   (start-up)
    |-- InvalidConfig            settings that contradict each other            (start-up)
    |-- DeadlinePassed           its own deadline came before its answer        (HTTP 504)
    |-- Overloaded               no room now, try later                         (HTTP 503)
    `-- ReplicaLost              the engine died while it worked on the request (HTTP 503)

Every class keeps all its arguments in `args`, so errors cross process borders unharmed.
`str(error)` is two lines: the cause, then the fix.
"""


class PageRayError(Exception):
    """An error with a cause and a fix, one line each."""

    def __init__(self, cause: str, fix: str, *details: object) -> None:
        super().__init__(cause, fix, *details)
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.cause}\n{self.fix}"


class InvalidRequest(PageRayError):
    """The request can never succeed as it is. `param` names the field at fault."""

    def __init__(
        self, cause: str, fix: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(cause, fix, param, code)
        self.param = param
        self.code = code


class PromptTooLong(InvalidRequest):
    """The prompt and the tokens asked for do not fit the model's context."""

    def __init__(
        self, cause: str, fix: str, param: str | None = "messages", code: str | None = None
    ) -> None:
        super().__init__(cause, fix, param, code or "context_length_exceeded")


class UnsupportedParameter(InvalidRequest):
    """A known parameter, or value of one, that is not implemented."""

    def __init__(
        self, cause: str, fix: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(cause, fix, param, code or "unsupported_parameter")


class ModelNotFound(PageRayError):
    """No model of that name can be found or is served here."""


class InvalidModel(PageRayError):
    """A model folder or file that cannot be served: unknown architecture, broken files."""


class InvalidConfig(PageRayError):
    """Settings that cannot work together, or not on this machine."""


class Overloaded(PageRayError):
    """No room for the request at present; `retry_after_s` is the advised wait in seconds."""

    def __init__(self, cause: str, fix: str, retry_after_s: float = 1.0) -> None:
        super().__init__(cause, fix, retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlinePassed(PageRayError):
    """The request's own deadline came before its answer."""


class ReplicaLost(PageRayError):
    """The replica that worked on the request is gone."""
