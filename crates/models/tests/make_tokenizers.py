"""Writes data/tokenizers.json: small tokenizers in the styles of real ones, and what `tokenizers` does with them.

    python make_tokenizers.py

Each entry has a name, the `tokenizer.json` itself, and cases: a text, its ids without and with special tokens added, its
ids with the names of special tokens read as text, and what the ids decode to.
"""

import json
from pathlib import Path

import tokenizers

TEXTS = [
    "",
    "a",
    "the cat",
    " the  cat sat",
    "catthe\nat\n\ncat ",
    "naïve é e\u0301 ﬁ 日本 🙂",
    "<s>the</s> cat<s>",
    "the <mask> cat<mask>",
    "12 345cat 6",
    "a<turn>b<turn> a",
    "xTHEx",
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("a", "t"), ("s", "at"), ("▁", "the"), ("▁", "cat"), ("▁", "▁")]
BYTE_WORDS = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("Ġ", "the"), ("Ġ", "cat"), ("Ã", "©")]


def added(id, content, special=True, **flags):
    token = dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=special)
    return token | flags


def bpe(first, alphabet, merges, **options):
    tokens = first + sorted(set(alphabet))
    tokens += [left + right for left, right in merges if left + right not in tokens]
    vocab = {token: id for id, token in enumerate(tokens)}
    model = dict(
        type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
        byte_fallback=False, ignore_merges=False, vocab=vocab, merges=[list(merge) for merge in merges],
    )
    return model | options


def file(model, added_tokens, normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None):
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=added_tokens, normalizer=normalizer,
        pre_tokenizer=pre_tokenizer, post_processor=post_processor, decoder=decoder, model=model,
    )


def template(bos):
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def marked_decoder(strip):
    decoders = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strip:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


def llama_2():
    """Llama 2 and the first Mistrals: a mark before every text, all of it one word."""
    model = bpe(["<unk>", "<s>", "</s>"] + BYTES, "▁thecasTHEx12", WORDS, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]}
    tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]
    return file(model, tokens, normalizer, None, template("<s>"), marked_decoder(strip=True))


def metaspace():
    """Newer conversions of SentencePiece: the mark is put by the pre-tokeniser, and only before the text's first word."""
    model = bpe(["<unk>", "<s>", "</s>"] + BYTES, "▁thecasTHEx12", WORDS, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokens = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(3, "<mask>", lstrip=True)]
    tokens[3]["id"] = len(model["vocab"])
    pre_tokenizer = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoder = marked_decoder(strip=True)
    return file(model, tokens, None, pre_tokenizer, template("<s>"), decoder)


def gemma():
    """Gemma: marks without a prefix, and tokens that are text but always whole."""
    model = bpe(["<pad>", "<s>", "</s>"] + BYTES, "▁thecasTHEx12", WORDS, byte_fallback=True, fuse_unk=True)
    last = len(model["vocab"])
    tokens = [added(1, "<s>"), added(2, "</s>"), added(last, "\n\n", special=False), added(last + 1, "<turn>")]
    pre_tokenizer = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return file(model, tokens, replace(" ", "▁"), pre_tokenizer, template("<s>"), marked_decoder(strip=False))


def qwen():
    """Qwen: composed characters, words by a regular expression, bytes as characters."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model = bpe([], alphabet, BYTE_WORDS)
    last = len(model["vocab"])
    tokens = [
        added(last, "<s>"), added(last + 1, "</s>"), added(last + 2, "<turn>", rstrip=True),
        added(last + 3, "<mask>", special=False, single_word=True),
    ]
    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pre_tokenizer = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        ],
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return file(model, tokens, {"type": "NFC"}, pre_tokenizer, byte_level, byte_level)


def normalized_tokens():
    """Added tokens that are looked for after normalising, whatever their case."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model = bpe([], alphabet, BYTE_WORDS)
    last = len(model["vocab"])
    tokens = [added(last, "THE", special=False, normalized=True), added(last + 1, "<s>")]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    return file(model, tokens, {"type": "Lowercase"}, pre_tokenizer, None, byte_level)


def main():
    entries = []
    for make in [llama_2, metaspace, gemma, qwen, normalized_tokens]:
        content = make()
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        cases = []
        for text in TEXTS:
            case = {"text": text}
            tokenizer.encode_special_tokens = False
            case["ids"] = tokenizer.encode(text, add_special_tokens=False).ids
            case["with_special"] = tokenizer.encode(text, add_special_tokens=True).ids
            case["decoded"] = tokenizer.decode(case["ids"], skip_special_tokens=False)
            tokenizer.encode_special_tokens = True
            case["special_as_text"] = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append(case)
        entries.append({"name": make.__name__, "tokenizer": content, "cases": cases})
    path = Path(__file__).parent / "data" / "tokenizers.json"
    made_with = f"tokenizers {tokenizers.__version__}"
    text = json.dumps({"made_with": made_with, "tokenizers": entries}, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text.replace('{"name"', '\n{"name"').replace('{"text"', '\n{"text"') + "\n")


if __name__ == "__main__":
    main()
