"""Spoilt files: strategies that change bytes, JSON and safetensors so that a reader is misled if it trusts them."""

import copy
import json
import re
from typing import Any

from hypothesis import strategies as st

DEEP = 10**5
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**18, 10**400, 1e308, -1e308, 5e-324,
    "", "0", "x", "mean", "../../x", "/etc/passwd", "~/x", "file:///etc/passwd", "\x00\x1b[2J\r\n", "\u202eevil\u2066",
    "__import__('os').system('touch owned')", "$(touch owned)", "</script><script>hacked=1</script>", "x" * 10**5,
    [], [[]], [None], {}, {"": None}, {"__class__": "x", "__reduce__": ["os.system", "touch owned"]}, [0] * 1000,
]
# What json.dumps would not write: other constants, numbers without end, deep nesting, half a surrogate pair.
RAW = ["NaN", "Infinity", "-Infinity", "9" * 5000, "1e999", "-0", "[" * DEEP + "]" * DEEP, "[" * DEEP,
       '{"a":' * DEEP + "1" + "}" * DEEP, '"\\ud800"', "'x'", "01", "nul"]
NUMBERS = [b"-1", b"0", b"1", b"65536", b"999999999", b"1" + b"0" * 18, b"9" * 400, b"1e308", b"NaN"]
TOKENS = [b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b'"', b"{", b"]", b"<", b"\xe2\x80\xae", b"../../x",
          b"!!python/object:os.x"]


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut off, flipped bits, ranges dropped or repeated, numbers exchanged, tokens put in; a few of these."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["cut", "flip", "drop", "repeat", "number", "token", "empty"]))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        elif kind == "drop":
            content = content[:at] + content[at + length :]
        elif kind == "repeat":
            content = content[: at + length] + content[at : at + length] * draw(st.sampled_from([1, 2, 100]))\
                + content[at + length :]
        elif kind == "number":
            found = list(re.finditer(rb"\d+", content[at : at + 2000])) or list(re.finditer(rb"\d+", content[:2000]))
            if found:
                match = draw(st.sampled_from(found))
                start = content.index(match[0], 0)
                content = content[:start] + draw(st.sampled_from(NUMBERS)) + content[start + len(match[0]) :]
        elif kind == "token":
            content = content[:at] + draw(st.sampled_from(TOKENS)) + content[at:]
        elif draw(st.integers(0, 9)) == 0:
            content = b""
    return content


@st.composite
def edited(draw: st.DrawFn, data: Any, n: int = 3) -> bytes:
    """JSON of the data, of which up to `n` places hold something else: another type, a huge number, a name twice."""
    data, raw = copy.deepcopy({"root": data}), {}
    for _ in range(draw(st.integers(1, n))):
        owner, key = _place(draw, data)
        kind = draw(st.sampled_from(["value", "value", "value", "raw", "delete", "twice", "rename", "add", "inside"]))
        if kind in ("value", "inside") and isinstance(owner[key], str) and owner[key][:1] in "[{" and owner[key]:
            owner[key] = draw(_inside(owner[key]))
        elif kind == "value":
            owner[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif kind == "raw":
            mark = f"@raw{len(raw)}@"
            raw[json.dumps(mark)] = draw(st.sampled_from(RAW))
            owner[key] = mark
        elif isinstance(owner, list):
            times = 0 if kind == "delete" else draw(st.sampled_from([2, 1000]))
            owner[key : key + 1] = [copy.deepcopy(owner[key]) for _ in range(times)]
        elif kind == "delete" and owner is not data:
            del owner[key]
        elif kind == "rename" and owner is not data:
            owner[draw(st.sampled_from(["", "x", "../../x", "__class__", "a0.h99", "\u202e"]))] = owner.pop(key)
        elif kind == "twice" and owner is not data:
            owner[f"@twice@{key}"] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif isinstance(owner[key], dict):
            name = draw(st.sampled_from(["x", "../../x", "constructor"]))
            owner[key][name] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    text = json.dumps(data["root"]).replace("@twice@", "")
    for mark, value in raw.items():
        text = text.replace(mark, value)
    return text.encode()


@st.composite
def _inside(draw: st.DrawFn, text: str) -> str:
    """JSON that stands in a string, edited there."""
    try:
        return draw(edited(json.loads(text), 1)).decode()
    except (ValueError, RecursionError):
        return text


def _place(draw: st.DrawFn, data: dict[str, Any]) -> tuple[Any, Any]:
    """A container in the data and a key of it, at any depth."""
    owner, key = data, "root"
    while isinstance(owner[key], dict | list) and owner[key] and draw(st.integers(0, 5)):
        owner = owner[key]
        key = draw(st.sampled_from(list(owner)) if isinstance(owner, dict) else st.integers(0, len(owner) - 1))
    return owner, key


@st.composite
def spoilt_tensors(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file whose header says something else than what follows; or with other bytes."""
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = draw(st.sampled_from(["header", "header", "length", "numbers", "bytes"]))
    if kind == "header":
        new = draw(edited(header))
        return len(new).to_bytes(8, "little") + new + body
    if kind == "length":
        return draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1, size - 1, len(content)])).to_bytes(8, "little") \
            + content[8:]
    if kind == "numbers" and len(body) >= 4:  # NaN, infinity, huge
        at = 4 * draw(st.integers(0, len(body) // 4 - 1))
        bits = draw(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\x80\xff"]))
        return content[: 8 + size] + body[:at] + bits + body[at + 4 :]
    return draw(spoilt_bytes(content))


def spoilt(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Ways to spoil a file, by the ending of its name."""
    if name.endswith(".safetensors"):
        return spoilt_tensors(content)
    if name.endswith((".json", ".cyjs")):
        return st.one_of(edited(json.loads(content)), edited(json.loads(content)), spoilt_bytes(content))
    if name.endswith((".jsonl", ".journal")):
        return st.one_of(_lines(content), spoilt_bytes(content))
    return spoilt_bytes(content)


@st.composite
def _lines(draw: st.DrawFn, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    return b"".join([*lines[:at], draw(edited(json.loads(lines[at]))) + b"\n", *lines[at + 1 :]])
