"""Any bytes as ids and back, and the cutting of one vocabulary's tokens into another's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from regraft.data.token_bytes import TokenBytes, token_bytes


class ByteIds:
    """A tokenizer seen from its tokens' bytes.

    Raises:
        ValueError: the tokenizer gives no way to its tokens' bytes.
    """

    def __init__(self, tokenizer: Any, rows: int | None = None):
        self.tokenizer = tokenizer
        self.table: TokenBytes = token_bytes(tokenizer, rows)

    @cached_property
    def id_of(self) -> dict[bytes, int]:
        """The id of each content; of two tokens with the same bytes the one with the longer name, so no
        `<0x41>` for `A`."""
        found: dict[bytes, int] = {}
        for number, (content, kind) in enumerate(zip(self.table.bytes_V, self.table.kind_V, strict=True)):
            if kind == "text" and content and (content not in found or self._spelled_byte(found[content])):
                found[content] = number
        return found

    def _spelled_byte(self, number: int) -> bool:
        return (
            self.tokenizer.convert_ids_to_tokens(number) == f"<0x{self.table.bytes_V[number].hex().upper()}>"
        )

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.id_of), default=0)

    def encode(self, content: bytes) -> list[int]:
        """Ids of any bytes: valid UTF-8 as the tokenizer encodes it, other bytes one by one.

        What spells a special token is text like any other. `decode` gives the bytes back wherever the
        tokenizer keeps its text; one that puts a space in front, or lowers letters, gives ids of what it
        makes of it (`spans`).

        Raises:
            ValueError: a byte that is no UTF-8 has no token.
        """
        ids: list[int] = []
        text: list[str] = []
        for character in content.decode("utf-8", errors="surrogateescape"):
            if "\udc80" <= character <= "\udcff":
                ids += self._encoded("".join(text))
                text = []
                single = bytes([ord(character) - 0xDC00])
                if single not in self.id_of:
                    raise ValueError(f"the tokenizer has no token for the byte 0x{single.hex()}")
                ids.append(self.id_of[single])
            else:
                text.append(character)
        return ids + self._encoded("".join(text))

    def _encoded(self, text: str) -> list[int]:
        return self.encode_texts([text])[0] if text else []

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of some texts, without special tokens."""
        given = (
            self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
            if texts
            else {}
        )
        return given.get("input_ids", [])

    def spans(self, content: bytes) -> list[tuple[int, int, int]] | None:
        """Where each token of some text begins and ends in its bytes, and its id; None where the tokens do
        not make up the text.

        A space that the tokenizer puts in front lies outside.
        """
        try:
            ids = self.encode(content)
        except ValueError:
            return None
        if not self.keeps(content, ids):
            return None
        at = len(content) - len(self.decode(ids))
        found = []
        for number in ids:
            end = at + len(self.table.bytes_V[number])
            found.append((max(0, at), max(0, end), number))
            at = end
        return found

    def keeps(self, content: bytes, ids: Sequence[int]) -> bool:
        """Whether ids stand for a text, but for a space in front of it."""
        return self.decode(ids) in (content, b" " + content)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Bytes of ids; special tokens have none."""
        return b"".join(self.table.bytes_V[number] for number in ids)

    def cut(self, contents: Sequence[bytes]) -> list[list[int]]:
        """Each content as ids whose bytes are exactly it; an empty list where no tokens make it up.

        The tokenizer's own cut where it gives these bytes back, else the one with the fewest tokens.
        """
        texts = [content.decode("utf-8", errors="replace") for content in contents]
        own = self.encode_texts(texts)
        return [
            ids if ids and self.decode(ids) == content else self.fewest(content)
            for ids, content in zip(own, contents, strict=True)
        ]

    def fewest(self, content: bytes) -> list[int]:
        """The ids of the fewest tokens that make up the bytes, longest first where several do; empty where
        none can."""
        best: list[tuple[int, int] | None] = [(0, 0)] + [None] * len(content)
        for end in range(1, len(content) + 1):
            for start in range(max(0, end - self.longest), end):
                before = best[start]
                if before is not None and content[start:end] in self.id_of:
                    count = before[0] + 1
                    if best[end] is None or count < best[end][0]:  # type: ignore[index]
                        best[end] = count, start
        ids: list[int] = []
        end = len(content)
        while end and (found := best[end]) is not None:
            ids.append(self.id_of[content[found[1] : end]])
            end = found[1]
        return ids[::-1] if not end else []
