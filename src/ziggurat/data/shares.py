"""Which documents a share of a source, or a number of its rows, takes: chosen by a hash of the text.

The choice does not depend on the order of the documents, and equal texts, or rows of a group, stay together.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from typing import Literal

from ziggurat.data.reading import Reading
from ziggurat.types import Document

Split = Literal["train", "valid", "test"]
Stream = Callable[[Reading], Iterator[Document]]
"""Starts a pass over documents; what is left out goes to the reading."""


def chosen(stream: Stream, wanted: int) -> Stream:
    """The `wanted` documents with the smallest hashes, in their order. One more pass, flat memory. Of rows in groups fewer where the last
    group would be cut apart, unless it is the only one."""

    def kept(reading: Reading) -> Iterator[Document]:
        first = Reading(allowed=reading.allowed)
        found = ((hash_of(d), n, "group" in d.fields) for n, d in enumerate(stream(first)))
        smallest = heapq.nsmallest(wanted + 1, found)
        keep = {n for _, n, _ in smallest[:wanted]}
        if len(smallest) > wanted and smallest[wanted][2]:
            keep = {n for value, n, _ in smallest if value != smallest[wanted][0]} or keep
        yield from (d for n, d in enumerate(stream(reading)) if n in keep)

    return kept


def hash_of(document: Document) -> int:
    """Of the texts; rows of a group have that of the group, so that no split takes it apart."""
    group = document.fields.get("group")
    text = "\0".join(document.texts.values()) if group is None else str(group)
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8, person=b"split").digest(), "big")


def side(document: Document, test: float, valid: float) -> Split:
    """Test takes the low end of the hashes and valid the high end, so that changing one does not move the other."""
    place = hash_of(document) / 2**64
    return "test" if place < test else "valid" if place >= 1 - valid else "train"
