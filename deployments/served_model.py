"""The models of one HTTP application, and which of them a request is for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from starlette.types import Scope

from cluster.health import is_serving, problems
from cluster.token_source import TokenSource
from deployments.prompt_encoder import PromptEncoder
from deployments.token_names import TokenNames
from engine.errors import InvalidRequest, ModelNotFound
from engine.tokenizer import Tokenizer

_MODEL: Final = "pageray.model"


def model_name_of(scope: Scope) -> str | None:
    """Name of the model that the request turned out to be for; None: of none so far."""
    name: str | None = scope.get(_MODEL)
    return name


class ServedModel:
    """One model: its names, its limits, its tokenizer and where its tokens come from."""

    def __init__(
        self,
        name: str,
        *,
        max_model_len: int,
        tokenizer: Tokenizer,
        source: TokenSource,
        aliases: Sequence[str] = (),
        may_sleep: bool = False,
    ) -> None:
        """Take what belongs to the model.

        Args:
            name: the one in responses and in the list of models.
            max_model_len: longest prompt plus output in tokens.
            tokenizer: its own.
            source: runs its requests.
            aliases: other names that requests may use for it.
            may_sleep: whether there may be no replica while nobody asks for anything.
        """
        self.name = name
        self.names = (name, *aliases)
        self.max_model_len = max_model_len
        self.tokenizer = tokenizer
        self.source = source
        self.may_sleep = may_sleep
        self.encoder = PromptEncoder(tokenizer, max_model_len)
        self.texts = TokenNames(tokenizer)

    @property
    def is_ready(self) -> bool:
        """Whether a replica takes requests, or one starts for the first that comes."""
        snapshots = self.source.snapshots()
        return (self.may_sleep and not snapshots) or any(map(is_serving, snapshots))

    @property
    def problems(self) -> list[str]:
        """One sentence for each thing that is wrong."""
        return problems(self.source.snapshots(), may_sleep=self.may_sleep)


class ServedModels:
    """All of them, by every name that requests may use."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = tuple(models)
        self._by_name = {name: model for model in models for name in model.names}
        assert len(self._by_name) == sum(len(model.names) for model in models), "a name twice"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may use."""
        return tuple(self._by_name)

    def find(self, name: object) -> ServedModel:
        """The model of that name; no name at all stands for the only one there is.

        Raises ModelNotFound, and InvalidRequest where the name is none.
        """
        if name is None:
            if len(self._models) > 1:
                raise InvalidRequest(
                    "'model' is missing, and several models are served here.",
                    f"Send one of {self._listed()}.",
                    param="model",
                )
            return self._models[0]
        if not isinstance(name, str):
            raise InvalidRequest(
                "'model' should be a valid string.", f"Send {self._listed()}.", param="model"
            )
        model = self._by_name.get(name)
        if model is None:
            raise ModelNotFound(
                f"The model {name[:128]!r} does not exist here.",
                f"Use {self._listed()}; GET /v1/models lists what is served.",
            )
        return model

    def choose(self, scope: Scope, body: Mapping[str, Any]) -> ServedModel:
        """Find what a request's body asks for, and note it in the scope; raises as `find`."""
        model = self.find(body.get("model"))
        scope[_MODEL] = model.name
        return model

    def _listed(self) -> str:
        return ", ".join(map(repr, self._by_name))
