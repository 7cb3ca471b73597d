"""The two tokenizer libraries, `tokenizers` and SentencePiece, with one interface.

SentencePiece itself reads a `tokenizer.model`. Conversions of this file to the other library give different ids for
some texts (spaces, normalised characters, unknown characters), but a model needs the ids that it was trained with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_prism.data.tokenizer_files import TokenizerFolder
from megatron_prism.errors import DataError
from megatron_prism.models.model_folder import TOKENIZER_MODEL
from megatron_prism.pipeline.json_text import read_text

# Any text that is not empty: only the tokens that are added around it matter.
PROBE = "Hello, world"


class Backend(Protocol):
    """A vocabulary, and how texts are split into its tokens.

    Attributes:
        vocabulary: name -> id of every token.
        special: the special tokens among them, which are control tokens and not ordinary text.
        unknown_id: the token for characters that the vocabulary cannot spell, or None.
        around: the ids that the tokenizer's files add before and after a text.
        ends: the end token that the vocabulary file defines, or None.
    """

    vocabulary: dict[str, int]
    special: dict[str, int]
    unknown_id: int | None
    around: tuple[list[int], list[int]]
    ends: int | None

    def encode(self, texts: Sequence[str], parse: bool) -> list[list[int]]:
        """Ids of each text, without added tokens. With `parse`, the name of a special token gives that token."""
        ...

    def decode(self, texts: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids. Special tokens appear as their names."""
        ...


def open_backend(folder: TokenizerFolder) -> Backend:
    """The backend of a folder.

    Raises:
        DataError: for a damaged file.
    """
    if folder.vocabulary.name == TOKENIZER_MODEL:
        return SentencePieceBackend(folder)
    return TokenizersBackend(folder)


class TokenizersBackend:
    """`tokenizer.json`, read by the library `tokenizers`."""

    def __init__(self, folder: TokenizerFolder) -> None:
        from tokenizers import AddedToken, Tokenizer

        text = read_text(folder.vocabulary)
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as problem:  # tokenizers raises a bare Exception for everything it cannot parse
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise DataError(f"{folder.vocabulary}: not a tokenizer ({reason})") from None
        # Some files contain the sequence length of a training run; documents must not be cut or padded to it.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        for name in folder.special_names():
            number = self.vocabulary.get(name)
            if number is not None and name not in special:
                # The file does not mark this token as special, so a document that contains its name would get it.
                known = added.get(number)
                sides = {"lstrip": known.lstrip, "rstrip": known.rstrip} if known else {}
                self._tokenizer.add_special_tokens([AddedToken(name, normalized=False, **sides)])
                special[name] = number
        self.special = special
        self.unknown_id = self._unknown()
        self.around = self._around(folder.vocabulary)
        self.ends: int | None = None

    def encode(self, texts: Sequence[str], parse: bool) -> list[list[int]]:
        """Uses all cores unless TOKENIZERS_PARALLELISM=false."""
        self._tokenizer.encode_special_tokens = not parse
        return [row.ids for row in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, texts: Sequence[Sequence[int]]) -> list[str]:
        rows: list[str] = self._tokenizer.decode_batch(
            [list(row) for row in texts], skip_special_tokens=False
        )
        return rows

    def _unknown(self) -> int | None:
        model = self._tokenizer.model
        if type(model).__name__ == "Unigram":
            stated = json.loads(self._tokenizer.to_str())["model"].get("unk_id")
            return None if stated is None else int(stated)
        name = getattr(model, "unk_token", None)
        return self.vocabulary.get(name) if name else None

    def _around(self, file: Path) -> tuple[list[int], list[int]]:
        whole = self._tokenizer.encode(PROBE, add_special_tokens=True).ids
        plain = self._tokenizer.encode(PROBE, add_special_tokens=False).ids
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        raise DataError(
            f"{file}: its post-processor changes the tokens of a text; only adding tokens around them is supported"
        )


class SentencePieceBackend:
    """`tokenizer.model`, read by SentencePiece. Text is encoded to control tokens only with `parse`."""

    def __init__(self, folder: TokenizerFolder) -> None:
        from sentencepiece import SentencePieceProcessor

        file = folder.vocabulary
        try:
            self._model = SentencePieceProcessor(model_file=str(file))
        except (OSError, RuntimeError) as problem:
            raise DataError(f"{file}: not a SentencePiece model ({str(problem).splitlines()[0]})") from None
        size = self._model.get_piece_size()
        if not size:
            raise DataError(f"{file}: a SentencePiece model without a vocabulary")
        self._file, self._size = file, size
        self.vocabulary = {self._model.id_to_piece(number): number for number in range(size)}
        added = {n: each for n, each in folder.added_tokens().items() if self._name(n) != each[0]}
        names = {number: name for name, number in self.vocabulary.items()}
        for number, (name, _) in added.items():
            # An added token may rename a placeholder of the model.
            self.vocabulary.pop(names.get(number, ""), None)
            self.vocabulary[name] = number
        self.special = {
            self._model.id_to_piece(n): n for n in range(size) if self._model.is_control(n) and n not in added
        }
        self.special |= {name: number for number, (name, special) in added.items() if special}
        named = {name: self.vocabulary[name] for name in folder.special_names() if name in self.vocabulary}
        self.unknown_id: int | None = self._model.unk_id()
        self.special |= {name: number for name, number in named.items() if number != self.unknown_id}
        self._ordinary = {name: n for n, (name, special) in added.items() if not special}
        self._names = {number: name for name, number in (self.special | self._ordinary).items()}
        self.ends = self._model.eos_id() if self._model.eos_id() >= 0 else None
        self.around = self._around(folder)
        self._inner: Any = None

    def encode(self, texts: Sequence[str], parse: bool) -> list[list[int]]:
        names = self._ordinary | self.special if parse else self._ordinary
        if not names:
            rows: list[list[int]] = self._model.encode(list(texts))
            return rows
        pattern = names_pattern(names)
        return [self._encode_parts(pattern.split(text), names) for text in texts]

    def decode(self, texts: Sequence[Sequence[int]]) -> list[str]:
        return [self._decode(row) for row in texts]

    def _encode_parts(self, parts: Sequence[str], names: dict[str, int]) -> list[int]:
        """Ids of a text that was split at names. Only its start gets SentencePiece's leading space."""
        ids: list[int] = list(self._model.encode(parts[0]))
        for part in parts[1:]:
            if part in names:
                ids.append(names[part])
            elif part:
                ids += self._within.encode(part)
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text, run, model = "", list[int](), self._model
        for number in ids:
            if number in self._names or number >= self._size:
                text += model.decode(run) if run else ""
                text += self._names.get(number, "")
                run, model = [], self._within
            else:
                run.append(number)
        return text + (model.decode(run) if run else "")

    @property
    def _within(self) -> Any:
        """The same model without the leading space, for text after a special token."""
        if self._inner is None:
            from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

            model = sentencepiece_model_pb2.ModelProto()
            model.ParseFromString(self._file.read_bytes())
            model.normalizer_spec.add_dummy_prefix = False
            self._inner = SentencePieceProcessor(model_proto=model.SerializeToString())
        return self._inner

    def _name(self, number: int) -> str | None:
        return self._model.id_to_piece(number) if 0 <= number < self._size else None

    def _around(self, folder: TokenizerFolder) -> tuple[list[int], list[int]]:
        """The ids that transformers adds around a text of such a folder, which tokenizer_config.json decides."""
        sides: list[list[int]] = []
        for flag, key, own in (
            ("add_bos_token", "bos_token", self._model.bos_id()),
            ("add_eos_token", "eos_token", self._model.eos_id()),
        ):
            named = folder.token(key)
            number = own if named is None else self.vocabulary.get(named[0], -1)
            if folder.flag(flag) and number < 0:
                raise DataError(
                    f"{folder.path / 'tokenizer_config.json'}: {flag}=true, but there is no {key}; add one"
                )
            sides.append([number] if folder.flag(flag) else [])
        return sides[0], sides[1]


def names_pattern(names: dict[str, int]) -> re.Pattern[str]:
    """A pattern that matches any of these names, the longest first. Splitting by it keeps the names."""
    return re.compile("(" + "|".join(map(re.escape, sorted(names, key=len, reverse=True))) + ")")
