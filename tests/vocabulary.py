"""The tokenizer's vocabulary as bytes, read from tokenizer.json (byte-level BPE)."""

import collections
import json


def byte_alphabet():
    """{letter: byte} of byte-level BPE: printable Latin-1 stands for itself, the other bytes for
    the code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def read_vocabulary(directory):
    """{id: bytes} of all tokens; added tokens stand for their own text."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    letters = byte_alphabet()
    tokens = {
        token_id: bytes(letters[letter] for letter in text)
        for text, token_id in tokenizer["model"]["vocab"].items()
    }
    added = {token["id"]: token["content"].encode() for token in tokenizer["added_tokens"]}
    return tokens | added


def token_text(data):
    """How the server writes a token's bytes as JSON text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def ids_of_texts(vocabulary):
    """{text: id} of the tokens whose text is theirs alone."""
    occurrences = collections.Counter(vocabulary.values())
    return {token_text(data): token_id for token_id, data in vocabulary.items()
            if occurrences[data] == 1}


def leading_ids(texts, id_of_text):
    """Ids of the first tokens of `texts`, up to one that cannot be told from its text."""
    ids = []
    for text in texts:
        if text not in id_of_text:
            break
        ids.append(id_of_text[text])
    return ids
