"""LiveCodeBench's private tests: JSON text in a pickle, in zlib, in base64 (its `code_generation`).

Nothing is unpickled: a pickle of one text is a few opcodes, which are read and not executed. Any
other pickle is refused, since loading one can run any program.
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib
from typing import Any

from grpo.errors import DataError

_LARGEST = 1 << 28  # bytes of the tests of one problem
# Opcodes that only frame, number or end what a pickle holds.
_AROUND_TEXT = frozenset(["PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"])


def unpacked(text: Any, where: str) -> Any:
    """The JSON text inside, or `text` itself if it is not packed. Raises DataError."""
    if not isinstance(text, str) or text.lstrip()[:1] in ("[", "{"):
        return text
    try:
        unzip = zlib.decompressobj()
        body = unzip.decompress(base64.b64decode(text, validate=True), _LARGEST)
        if unzip.unconsumed_tail:
            raise DataError(f"{where}, holds more than {_LARGEST >> 20} MiB")
        return body.decode() if body[:1] in (b"[", b"{") else _text_of(body, where)
    except (binascii.Error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}, is neither JSON nor JSON packed by LiveCodeBench") from error


def _text_of(body: bytes, where: str) -> str:
    """The text that a pickle of nothing but one text holds."""
    found: list[Any] = []
    try:
        for opcode, argument, _ in pickletools.genops(body):
            if opcode.name.endswith("UNICODE") or opcode.name.endswith("UNICODE8"):
                found.append(argument)
            elif opcode.name not in _AROUND_TEXT:
                found.append(None)
    except Exception as error:  # whatever the opcodes' reader meets in bytes that are none
        raise DataError(f"{where}, is neither JSON nor JSON packed by LiveCodeBench") from error
    if len(found) != 1 or not isinstance(found[0], str):
        raise DataError(
            f"{where}, is a pickle of more than a text, which is not loaded: a pickle can run any "
            "program; write it as JSON"
        )
    return found[0]
