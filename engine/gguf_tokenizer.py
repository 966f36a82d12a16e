"""Build the tokenizer of a GGUF file: tokenizer.json and tokenizer_config.json.

The ids are those of llama.cpp. Two kinds exist here: "gpt2" (byte-level BPE; a name tells how text
is cut into words first) and "llama" (SentencePiece BPE; merges follow from the tokens' scores).
"""

from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from engine.errors import InvalidModel
from engine.gguf_config import special_token_id
from engine.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from engine.gguf_reader import GgufFile

SUPPORTED_KINDS = ("gpt2", "llama")
SPACE = "▁"  # how SentencePiece spells a space


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Return the tokenizer. Raises InvalidModel for a kind or a pre-tokenizer we do not know."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind not in SUPPORTED_KINDS:
        raise InvalidModel(
            f"'{file.path}' has a tokenizer of kind {kind!r}, which PageRay does not know.",
            f"Use a file with one of these: {', '.join(SUPPORTED_KINDS)}.",
        )
    vocabulary = _Vocabulary(file)
    tokenizer = _byte_level(file, vocabulary) if kind == "gpt2" else _sentence_piece(vocabulary)
    tokenizer.add_special_tokens(vocabulary.added(TokenType.CONTROL, TokenType.UNKNOWN))
    tokenizer.add_tokens(vocabulary.added(TokenType.USER_DEFINED))
    return tokenizer


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """Return tokenizer_config.json: chat template and special tokens."""
    vocabulary = _Vocabulary(file)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": file.metadata.get("tokenizer.chat_template"),
        "bos_token": vocabulary.special("bos"),
        "eos_token": vocabulary.special("eos"),
        "unk_token": vocabulary.special("unknown"),
        "pad_token": vocabulary.special("padding"),
        "model_max_length": file.metadata.get(
            f"{file.metadata['general.architecture']}.context_length"
        ),
        "clean_up_tokenization_spaces": False,
    }
    return {name: value for name, value in config.items() if value is not None}


class _Vocabulary:
    """The tokens of a file and what is known of each."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.tokens = self._list("tokens")
        self.types = self._list("token_type", [TokenType.NORMAL] * len(self.tokens))
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise self.invalid("has the same token twice")

    def added(self, *types: TokenType) -> list[AddedToken]:
        """Return the tokens that are found in the text before anything else is cut."""
        return [
            AddedToken(token, normalized=False, special=token_type != TokenType.USER_DEFINED)
            for token, token_type in zip(self.tokens, self.types, strict=True)
            if token_type in types
        ]

    def special(self, role: str) -> str | None:
        """Return the token that plays a role: bos, eos, unknown, padding."""
        token_id = special_token_id(self._file.metadata, role)
        if token_id is None:
            return None
        if not 0 <= token_id < len(self.tokens):
            raise self.invalid(f"has {role} token {token_id} of {len(self.tokens)}")
        token: str = self.tokens[token_id]
        return token

    def flag(self, name: str, default: bool) -> bool:
        """Return a setting of the tokenizer."""
        return bool(self._file.metadata.get(f"tokenizer.ggml.{name}", default))

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges of byte-level BPE in order; the first character may be a space."""
        cuts = ((merge, merge.find(" ", 1)) for merge in self._list("merges"))
        return [(merge[:cut], merge[cut + 1 :]) for merge, cut in cuts]

    def merges_by_score(self) -> list[tuple[str, str]]:
        """Return every pair of tokens that makes a token, the highest score first."""
        scores = self._list("scores")
        normal = {
            token
            for token, token_type in zip(self.tokens, self.types, strict=True)
            if token_type in (TokenType.NORMAL, TokenType.USER_DEFINED)
        }
        ranked = []
        for token in normal:
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in normal and right in normal:
                    ranked.append((-scores[self.ids[token]], self.ids[left], left, right))
        return [(left, right) for _, _, left, right in sorted(ranked)]

    def invalid(self, what: str) -> InvalidModel:
        """Return the error to raise."""
        return InvalidModel(
            f"'{self._file.path}' {what}.",
            "Use another GGUF file of this model, or its folder of safetensors.",
        )

    def _list(self, name: str, default: list[Any] | None = None) -> list[Any]:
        values = self._file.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(values, list):
            raise self.invalid(f"has no tokenizer.ggml.{name}")
        if name != "merges" and name != "tokens" and len(values) != len(self.tokens):
            raise self.invalid(f"has {len(values)} tokenizer.ggml.{name} for {len(self.tokens)}")
        return values


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> Tokenizer:
    words = _pre_tokenizer(file, vocabulary)
    merges = vocabulary.merges()
    tokenizer = Tokenizer(_bpe(vocabulary, merges, ignore_merges=words.ignore_merges))
    if words.normalizer is not None:
        tokenizer.normalizer = words.normalizer
    tokenizer.pre_tokenizer = words.build()
    tokenizer.decoder = decoders.ByteLevel()
    byte_level = processors.ByteLevel(trim_offsets=False)
    template = _template(vocabulary, add_bos=words.add_bos)
    tokenizer.post_processor = processors.Sequence([byte_level, *template])
    return tokenizer


def _pre_tokenizer(file: GgufFile, vocabulary: _Vocabulary) -> PreTokenizer:
    name = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if name not in PRE_TOKENIZERS:
        raise InvalidModel(
            f"'{file.path}' has the pre-tokenizer {name!r}, which PageRay does not know.",
            f"Use a file with one of these: {', '.join(sorted(PRE_TOKENIZERS))}.",
        )
    return PRE_TOKENIZERS[name]


def _sentence_piece(vocabulary: _Vocabulary) -> Tokenizer:
    unknown = vocabulary.special("unknown")
    merges = vocabulary.merges_by_score()
    tokenizer = Tokenizer(
        _bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    text: list[decoders.Decoder] = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if vocabulary.flag("add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(SPACE))
        text.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(text)
    template = _template(vocabulary, add_bos=True)
    if template:
        tokenizer.post_processor = template[0]
    return tokenizer


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocabulary.ids, merges, **options)
    except Exception as error:  # which is what tokenizers raises for merges without a token
        raise vocabulary.invalid(f"has merges that do not fit its tokens ({error})") from error


def _template(vocabulary: _Vocabulary, *, add_bos: bool) -> list[processors.TemplateProcessing]:
    """Return what puts begin and end tokens around a text; the file may override `add_bos`."""
    begin = vocabulary.special("bos") if vocabulary.flag("add_bos_token", add_bos) else None
    end = vocabulary.special("eos") if vocabulary.flag("add_eos_token", False) else None
    pieces = [begin, "$A", end]
    template = [piece for piece in pieces if piece is not None]
    special = [(token, vocabulary.ids[token]) for token in (begin, end) if token is not None]
    if not special:
        return []
    return [processors.TemplateProcessing(single=template, special_tokens=special)]
