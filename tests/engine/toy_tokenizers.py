"""Small tokenizers of the two families that matter, made in the test."""

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from engine.tokenizer import Tokenizer

CORPUS = [
    "the cat sat on the mat, the dog did not; that is all there is to say",
    "hello world, hello there; 1234 5678 90",
    "日本語のテキスト 你好世界 안녕하세요",
    "مرحبا بالعالم 😀😃 👨‍👩‍👧 é à ü",
]
SPECIAL = "<|end|>"
ADDED = "<added token>"
"""Not special, and not in the byte alphabet: it has a space."""


def byte_level() -> Tokenizer:
    """As GPT-2: any bytes are a text, tokens may end inside a character."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _finish(backend)


def sentence_piece() -> Tokenizer:
    """As Llama 2: words carry their leading space, unknown characters are byte tokens."""
    words = ["▁", "▁the", "▁cat", "the", "cat", "▁P", "aris", "é", "語", "\n", *"abcdehilort"]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finish(backend)


def word_piece() -> Tokenizer:
    """As BERT: continuations are marked, the decoder puts the spaces in."""
    tokens = ["[UNK]", "the", "cat", "##s", "sat", "##a"]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return _finish(backend)


def _finish(backend: Backend) -> Tokenizer:
    backend.add_special_tokens([AddedToken(SPECIAL, special=True, normalized=False)])
    backend.add_tokens([AddedToken(ADDED, normalized=False)])
    return Tokenizer(backend)
