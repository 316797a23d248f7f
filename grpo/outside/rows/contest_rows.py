"""The tests of contest problems, as published data sets write them. Pure functions of one row.

Each format has its own rule, and is recognized by one of its columns:
    input_output        APPS (arXiv 2105.09938), TACO (2312.14852): {"inputs", "outputs", "fn_name"}
    public_test_cases   LiveCodeBench (2403.07974), with private_test_cases
    public_tests        CodeContests (2203.07814), with private_tests and generated_tests
    official_tests      open-r1/codeforces, else its examples
    verification_info   SYNTHETIC-1 and prime-rl: {"test_cases": [{"type", "input", "output"}]}
    reward_model        Eurus-2 and PRIME: ground_truth is the text of {"inputs", "outputs"}
    tests               DeepCoder: as in input_output, or a list of {"input", "output", "testtype"}
Anything else raises DataError: guessed tests would train a model on noise.

LiveCodeBench's private tests are JSON text in a pickle, in zlib, in base64 (`unpacked`). Nothing is
unpickled: a pickle of one text is a few opcodes, which are read and not executed. Any other pickle
is refused, since loading one can run any program.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from grpo.errors import DataError
from grpo.outside.rows.columns import Row

# How APPS and LiveCodeBench compare what a function returns: a tuple is the list of its elements.
SAME_VALUE = """
def same_value(got, *wanted):
    def listed(value):
        return [listed(part) for part in value] if isinstance(value, (list, tuple)) else value
    got = listed(got)
    return any(got == listed(value) for value in wanted)
"""
_DEF = re.compile(r"^[ \t]*(?:async +)?def +([A-Za-z]\w*)", re.MULTILINE)


def called(function: str, arguments: Any, wanted: Any, wrapped: bool) -> str:
    """A test that calls a function. wrapped: APPS gives some results in a list of their own."""
    either = wrapped and isinstance(wanted, list) and len(cast("list[Any]", wanted)) == 1
    results = f"{wanted!r}, {wanted[0]!r}" if either else repr(wanted)
    return f"assert same_value({function}(*{arguments!r}), {results})"


def contest_tests(row: Row, place: str = "the row") -> dict[str, Any]:
    """The `tests` column for a row of one of the formats above. Raises DataError."""
    for name, read in _FORMATS.items():
        if row.get(name) not in (None, "", [], {}):
            if row.get("generated_checker"):
                raise DataError(
                    f"{place} has a generated_checker: a problem that accepts several outputs "
                    "needs a checker of its own, which is not supported; leave it out"
                )
            return read(row, f"{place}, column {name!r}")
    raise DataError(
        f"{place} has no tests that are understood: its columns are "
        f"{', '.join(sorted(map(str, row))) or 'none'}; one of {', '.join(_FORMATS)} is needed"
    )


def _object(given: Any, where: str) -> Any:
    """A value, or what its JSON text says."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}, is not JSON: {given[:60]!r}") from error


def _pairs(given: Any, where: str) -> list[tuple[Any, Any]]:
    """(input, output) of {"inputs": […], "outputs": […]} or [{"input": …, "output": …}, …]."""
    pairs: list[tuple[Any, Any]] = []
    try:
        if isinstance(given, Mapping):
            held = cast("Mapping[str, Any]", given)
            ends = [_first(held, end, f"{end}s") for end in ("input", "output")]
            if all(isinstance(end, list) for end in ends):
                pairs = list(zip(*ends, strict=True))
        elif isinstance(given, list):
            pairs = [(case["input"], case["output"]) for case in cast("list[Any]", given)]
    except (ValueError, TypeError, KeyError):
        pairs = []
    if not pairs:
        raise DataError(
            f"{where}, must hold a list of objects with input and output, or one object with a "
            f"list of each, equally long and not empty; it is {str(given)[:60]!r}"
        )
    return pairs


def _first(held: Mapping[str, Any], *names: str) -> Any:
    return next((held[name] for name in names if held.get(name) is not None), None)


def _member(held: Any, name: str) -> Any:
    return cast("Mapping[str, Any]", held).get(name) if isinstance(held, Mapping) else None


def _stdio(pairs: Sequence[tuple[Any, Any]], where: str) -> dict[str, Any]:
    return {"stdio": [{"input": _lines(a, where), "output": _lines(b, where)} for a, b in pairs]}


def _lines(text: Any, where: str) -> str:
    """The text of an input or output: as it is, or given as a list of lines."""
    if isinstance(text, str | int | float):
        return str(text)
    lines: list[Any] = cast("list[Any]", text) if isinstance(text, list) else [None]
    if not all(isinstance(line, str) for line in lines):
        raise DataError(
            f"{where}, has an input or output that is neither text nor a list of lines, and no "
            f"function that is called with it (fn_name): {str(text)[:60]!r}"
        )
    return "\n".join(lines)


def _calls(
    function: str, pairs: Sequence[tuple[Any, Any]], row: Row, where: str, wrapped: bool
) -> dict[str, Any]:
    """Tests that call a function, a method where the row's starter code has a class Solution."""
    if not function.isidentifier():
        raise DataError(f"{where}, calls {function[:60]!r}, which is no function's name")
    method = "class Solution" in str(row.get("starter_code") or "")
    name = f"Solution().{function}" if method else function
    asserts = [
        called(name, _arguments(a, where), _result(b) if isinstance(a, str) else b, wrapped)
        for a, b in pairs
    ]
    tests: dict[str, Any] = {"setup": SAME_VALUE, "asserts": asserts}
    return tests | ({"defines": ["class Solution"]} if method else {"entry_point": function})


def _arguments(given: Any, where: str) -> list[Any]:
    """A call's arguments: a list of them, or text with the JSON of one on each line."""
    if isinstance(given, list):
        return cast("list[Any]", given)
    if not isinstance(given, str):
        raise DataError(f"{where}, must give a function's arguments as a list: {str(given)[:60]!r}")
    return [_object(line, where) for line in given.split("\n") if line.strip()]


def _result(given: Any) -> Any:
    """What a call with JSON text returns. Text that is not JSON is the value itself."""
    try:
        return json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return given


def _inputs_outputs(given: Any, row: Row, where: str) -> dict[str, Any]:
    pairs = _pairs(given, where)
    function = _member(given, "fn_name")
    if not function and any(_is_call(a) for a, _ in pairs):
        function = _starter(row)
    if function:
        return _calls(str(function), pairs, row, where, wrapped=True)
    return _stdio(pairs, where)


def _is_call(given: Any) -> bool:
    return isinstance(given, list) and not all(isinstance(p, str) for p in cast("list[Any]", given))


def _starter(row: Row) -> str | None:
    """The one function that a row's starter code begins."""
    found = [name for name in _DEF.findall(str(row.get("starter_code") or "")) if name[0] != "_"]
    return found[0] if len(set(found)) == 1 else None


def _livecodebench(row: Row, where: str) -> dict[str, Any]:
    cases = _cases(_object(row["public_test_cases"], where), where)
    if hidden := row.get("private_test_cases"):
        at = where.replace("public_test_cases", "private_test_cases")
        cases += _cases(_object(unpacked(hidden, at), at), at)
    function = _member(_object(row.get("metadata") or "{}", where), "func_name")
    return _by_type(cases, function or _starter(row), row, where)


def _cases(given: Any, where: str) -> list[Mapping[str, Any]]:
    _pairs(given, where)  # says what is wrong with its shape
    if not isinstance(given, list):
        raise DataError(f"{where}, must hold a list of objects with input and output")
    return cast("list[Mapping[str, Any]]", given)


def _by_type(
    cases: Sequence[Mapping[str, Any]], function: Any, row: Row, where: str
) -> dict[str, Any]:
    """Cases that say by `testtype` how they are run."""
    pairs = _pairs(cases, where)
    kinds = {str(case.get("testtype") or "stdin") for case in cases}
    if kinds == {"functional"}:
        name = function or _member(cases[0].get("metadata"), "func_name")
        if not name:
            raise DataError(
                f"{where}, has functional tests, and neither metadata nor starter_code names the "
                "function"
            )
        return _calls(str(name), pairs, row, where, wrapped=False)
    if kinds <= {"stdin", "stdin_stdout", "stdio"}:
        return _stdio(pairs, where)
    raise DataError(
        f"{where}, has tests of type {', '.join(sorted(kinds))}; understood are stdin or "
        "functional, the same for all tests of a problem"
    )


def _codecontests(row: Row, where: str) -> dict[str, Any]:
    if row.get("input_file") or row.get("output_file"):
        raise DataError(f"{where}, belongs to a problem that reads or writes a named file")
    pairs: list[tuple[Any, Any]] = []
    for name in ("private_tests", "generated_tests", "public_tests"):
        given = _object(row.get(name), where.replace("public_tests", name))
        needed = name == "public_tests" and not pairs
        if needed or _member(given, "input") or isinstance(given, list):
            pairs += _pairs(given, where.replace("public_tests", name))
    return _stdio(pairs, where)


def _codeforces(row: Row, where: str) -> dict[str, Any]:
    if row.get("input_mode") not in (None, "", "stdio") or row.get("interaction_format"):
        raise DataError(f"{where}, belongs to a problem that is interactive or reads a named file")
    name = "official_tests" if row.get("official_tests") else "examples"
    return _stdio(_pairs(_object(row[name], where), where), where)


def _verification_info(row: Row, where: str) -> dict[str, Any]:
    given: Any = _object(row["verification_info"], where)
    held = cast("Mapping[str, Any]", given) if isinstance(given, Mapping) else {}
    if str(held.get("language") or "python").lower() not in ("python", "python3"):
        raise DataError(f"{where}, is for {held['language']!r}; understood is python")
    if "test_cases" not in held:
        return _inputs_outputs(held, row, where)
    cases = _cases(_object(held["test_cases"], where), where)
    kinds = {str(case.get("type") or "stdin_stdout") for case in cases}
    names = {str(case.get("fn_name") or "") for case in cases}
    if kinds == {"function_call"} and len(names) == 1:
        return _calls(names.pop(), _pairs(cases, where), row, where, wrapped=True)
    if kinds == {"stdin_stdout"}:
        return _stdio(_pairs(cases, where), where)
    raise DataError(
        f"{where}, has tests of type {', '.join(sorted(kinds))}; understood are stdin_stdout, or "
        "function_call with one fn_name"
    )


def _by_shape(text: Any, row: Row, where: str) -> dict[str, Any]:
    """JSON of {"inputs", "outputs"}, or of a list of cases that may say their type."""
    given = _object(text, where)
    if isinstance(given, list):
        return _by_type(_cases(given, where), _starter(row), row, where)
    return _inputs_outputs(given, row, where)


_FORMATS: dict[str, Callable[[Row, str], dict[str, Any]]] = {
    "input_output": lambda row, where: _inputs_outputs(
        _object(row["input_output"], where), row, where
    ),
    "public_test_cases": _livecodebench,
    "public_tests": _codecontests,
    "official_tests": _codeforces,
    "verification_info": _verification_info,
    "reward_model": lambda row, where: _by_shape(
        _member(row["reward_model"], "ground_truth"), row, where
    ),
    "tests": lambda row, where: _by_shape(row["tests"], row, where),
    "examples": _codeforces,
}


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
