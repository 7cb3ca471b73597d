"""A record of LiveCodeBench (code_generation, code_generation_lite) as the tests of a code problem.

The fields that decide a verdict are `public_test_cases`, `private_test_cases` and `metadata`, all three JSON in text.
The private cases may be compressed instead: base64 of zlib of a pickled text of JSON (lcb_runner/benchmarks/
code_generation.py). Only text is unpickled; a pickle that contains anything else, which could run code, is refused. The
other fields (title, content, platform, ids, dates, difficulty, starter code) belong to the prompt.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from megatron_prism.errors import DataError
from megatron_prism.verification.sandbox.code_tests import CodeTest, parse_tests

# The limit that the harness applies to each test (lcb_runner/runner/parser.py, --timeout).
TIME_LIMIT_SECONDS = 6.0


def livecodebench_tests(record: Mapping[str, Any], where: str = "record") -> list[CodeTest]:
    """The public and then the private tests of `record`, checked, each with the harness's time limit.

    Raises:
        DataError: if a field is missing or cannot be read, or a test is malformed.
    """
    metadata = _json(record.get("metadata") or "{}", f"{where}: 'metadata'")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    tests: list[CodeTest] = []
    for key in ("public_test_cases", "private_test_cases"):
        if key not in record:
            raise DataError(f"{where}: key '{key}' is missing; give a whole record of LiveCodeBench")
        cases = _json(record[key], f"{where}: '{key}'")
        if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
            raise DataError(f"{where}: '{key}' must be a list of tests, found {type(cases).__name__}")
        for case in cases:
            named = {"fn_name": name} if name is not None and case.get("testtype") == "functional" else {}
            tests.append({**case, **named, "time_limit": TIME_LIMIT_SECONDS})
    parse_tests(tests, f"{where}: tests")
    return tests


def _json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        text = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(value, validate=True)))).load()
        return json.loads(text)
    except (ValueError, TypeError, EOFError, binascii.Error, zlib.error, pickle.UnpicklingError) as problem:
        raise DataError(
            f"{what} is neither JSON nor compressed JSON ({problem}); download the data set again"
        ) from None


class _TextOnly(pickle.Unpickler):
    """Refuses every name, and with that every call: what is left are texts, numbers and containers."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")
