"""Small tokenizers of the kinds that the models' repositories hold, trained on text_source.py."""
from collections import Counter

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from text_source import alphabet, corpus

SPLIT_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_QWEN2 = SPLIT_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _special(tok: Tokenizer, names: list[str]) -> None:
    tok.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])


def byte_level(vocab: int, specials: list[str], split: str | None, nfc: bool, bos: str | None):
    """GPT-2 (split=None), Llama-3 or Qwen-2 style byte-level BPE; specials sit last."""
    tok = Tokenizer(models.BPE(ignore_merges=split == SPLIT_LLAMA3))
    if nfc:
        tok.normalizer = normalizers.NFC()
    if split is None:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(corpus(), trainer)
    _special(tok, specials)
    byte_post = processors.ByteLevel(trim_offsets=True)
    if bos:
        tok.post_processor = processors.Sequence(
            [
                byte_post,
                processors.TemplateProcessing(
                    single=f"{bos} $A",
                    pair=f"{bos} $A {bos}:1 $B:1",
                    special_tokens=[(bos, tok.token_to_id(bos))],
                ),
            ]
        )
    else:
        tok.post_processor = byte_post
    return tok


def word_piece(vocab: int):
    """Frequent words and endings, counted here: the library's WordPiece trainer numbers
    its pieces in hash order, which differs from run to run."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    norm, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words, endings = Counter(), Counter()
    for line in corpus():
        for word, _ in split.pre_tokenize_str(norm.normalize_str(line)):
            words[word] += 1
            for n in (2, 3, 4):
                if len(word) > n:
                    endings["##" + word[-n:]] += 1
    letters = alphabet(150, norm.normalize_str)
    pieces = specials + letters + ["##" + c for c in letters]
    ranked = sorted((words + endings).items(), key=lambda kv: (-kv[1] * len(kv[0]), kv[0]))
    known = set(pieces)
    pieces += [w for w, _ in ranked if w not in known and len(w) > 1][: vocab - len(pieces)]
    tok = Tokenizer(
        models.WordPiece(
            {p: i for i, p in enumerate(pieces)}, unk_token="[UNK]", max_input_chars_per_word=100
        )
    )
    tok.normalizer, tok.pre_tokenizer, tok.decoder = norm, split, decoders.WordPiece()
    _special(tok, specials)
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(s, tok.token_to_id(s)) for s in ("[CLS]", "[SEP]")],
    )
    return tok


LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"]
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tok_llama3(vocab):
    return byte_level(vocab, LLAMA3_SPECIALS, SPLIT_LLAMA3, False, "<|begin_of_text|>")


def tok_qwen(vocab):
    return byte_level(vocab, QWEN_SPECIALS, SPLIT_QWEN2, True, None)
