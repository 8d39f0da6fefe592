"""Damage done to valid inputs: bytes, texts, and JSON values by key path.

Every function is a pure function of its arguments and of the ``random.Random`` that it
is given, so an input is known by its target, the seed and its number.
"""

import json
import re
from collections.abc import Callable
from random import Random

DIGITS = "9" * 5000
NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "-0.0",
    "1.0",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "1e308",
    "1e-320",
    "1e999",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "0x7f",
    "1_0",
    "01",
    DIGITS,
    "0." + DIGITS,
    "-" + DIGITS,
)
LETTERS = (
    "",
    "\ufeff",
    "\x00",
    "\x07",
    "\x1b[31m",
    "\x85",
    "\u202e",
    "\u2028",
    "\u200b",
    "é",
    "ﬀ",
    "\u0661",
    "😀",
    "\\ud800",
    "\\u0000",
    "\\",
    '"',
    "'",
    "\n",
    "\r",
    "\t",
    "a" * 300,
    "../x",
    "..",
    "/",
    "=1+1",
    "@x",
    "$x$",
    "[bold]",
    "<b>",
    "&amp;",
    "&#x110000;",
    "&#99999999999999999999;",
    "%s{}",
    "none",
    "null",
    "true",
)
VALUES = (
    *NUMBERS,
    "null",
    "true",
    "false",
    '""',
    '"none"',
    '"x"',
    '"../x"',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u202e"',
    '"' + "a" * 300 + '"',
    "[]",
    "{}",
    "[[]]",
    "[0]",
    "[null]",
    '["a"]',
    '{"a":1}',
    '{"use":"x"}',
    "[" * 40 + "]" * 40,
    "[" * 2000 + "]" * 2000,
    '{"a":' * 1200 + "0" + "}" * 1200,
    "[1,2,3]",
    "[1e308,-1e308]",
    "1970-01-01",
)
_NUMBER = re.compile(rb"(?<![\w.])[-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[\w-]+")
_MOST = 60_000  # bytes; splices must not grow without end


def steps(rng: Random) -> int:
    """How many times one input is damaged: mostly once, rarely six times."""
    count = 1
    while count < 6 and rng.random() < 0.4:
        count += 1
    return count


def mutated(data: bytes, others: list[bytes], rng: Random, words: list[bytes]) -> bytes:
    """Return ``data`` after some steps; ``others`` are spliced, ``words`` put in."""
    for _ in range(steps(rng)):
        data = rng.choice(_BYTES)(data, others, rng, words)
    return data[:_MOST]


def damaged(seeds: list[bytes], words: list[bytes]) -> Callable[[Random], bytes]:
    """Return what makes inputs of any of the seeds."""
    return lambda rng: mutated(rng.choice(seeds), seeds, rng, words)


def _flip(data, others, rng, words):
    if not data:
        return bytes([rng.randrange(256)])
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(found))
        found[at] = rng.choice(
            (found[at] ^ (1 << rng.randrange(8)), rng.randrange(256))
        )
    return bytes(found)


def _truncate(data, others, rng, words):
    return data[: rng.randrange(len(data) + 1)]


def _cut(data, others, rng, words):
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 4, 8, 64, 512)) :]


def _repeat(data, others, rng, words):
    at = rng.randrange(len(data) + 1)
    end = at + rng.choice((1, 4, 16, 128))
    times = rng.choice((2, 2, 3, 40))
    return data[:at] + data[at:end] * times + data[end:]


def _splice(data, others, rng, words):
    other = rng.choice(others)
    at, there = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    return data[:at] + other[there:]


def _insert(data, others, rng, words):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(LETTERS).encode() + data[at:]


def _put_word(data, others, rng, words):
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(words) + data[at:]


def _extreme(data, others, rng, words):
    return _replaced(data, _NUMBER, rng.choice(NUMBERS).encode(), rng)


def _renamed(data, others, rng, words):
    """Put another word of the file, or of the target, in the place of a word."""
    own = _WORD.findall(data[:4096])
    pool = own if own and rng.random() < 0.5 else words
    return _replaced(data, _WORD, rng.choice(pool), rng)


def _swapped(data, others, rng, words):
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def _doubled(data, others, rng, words):
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    return b"\n".join([*lines[: at + 1], *lines[at:]])


def _nested(data, others, rng, words):
    at = rng.randrange(len(data) + 1)
    deep = rng.choice((5, 31, 33, 200, 5000))
    pair = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"{a=", b"}"), (b"a [ ", b"]")))
    return data[:at] + pair[0] * deep + b"0" + pair[1] * deep + data[at:]


def _replaced(data, pattern, new, rng):
    # A look at one window: files may be long, and the mutation must stay cheap.
    start = rng.randrange(max(1, len(data) - 2000))
    found = list(pattern.finditer(data, start, start + 2000))
    if not found:
        return data + new
    spot = rng.choice(found)
    return data[: spot.start()] + new + data[spot.end() :]


_BYTES = (
    _flip,
    _flip,
    _truncate,
    _cut,
    _repeat,
    _splice,
    _insert,
    _put_word,
    _put_word,
    _extreme,
    _extreme,
    _renamed,
    _renamed,
    _swapped,
    _doubled,
    _nested,
)


# --- JSON ---------------------------------------------------------------------


def json_edits(value: object, rng: Random) -> list[list]:
    """Return edits ``[operation, path, text]`` for ``edited``; ``text`` is raw JSON."""
    edits = []
    for _ in range(steps(rng)):
        path = _path(value, rng)
        kind = rng.choice(
            ("set", "set", "set", "set", "delete", "rename", "twice", "more")
        )
        text = rng.choice(VALUES)
        if kind == "set" and rng.random() < 0.2:
            text = json.dumps(_at(value, _path(value, rng)))  # from elsewhere in it
        if kind == "rename":
            text = rng.choice(LETTERS)
        edits.append([kind, path, text])
    return edits


def edited(value: object, edits: list[list], *, indent: int | None = None) -> bytes:
    """Return the JSON text of ``value`` with the edits applied; it may be no JSON."""
    holder = {"root": json.loads(json.dumps(value))}
    raw: dict[str, str] = {}
    for kind, path, text in edits:
        try:
            parent = _at(holder, ["root", *path[:-1]]) if path else holder
            _apply(parent, path[-1] if path else "root", kind, text, raw)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier edit took the place away
    found = json.dumps(holder.get("root"), indent=indent, ensure_ascii=False)
    for mark, text in raw.items():
        found = found.replace(f'"{mark}"', text)
    return found.encode("utf-8", "surrogatepass")


def _apply(parent, key, kind, text, raw):
    mark = f"@RAW{len(raw)}@"
    if kind == "delete":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[text] = parent.pop(key)
    elif kind == "twice" and isinstance(parent, dict):
        raw[mark] = json.dumps(key)
        parent[mark] = parent[key]
    elif kind == "more" and isinstance(parent, list):
        raw[mark] = text
        parent.insert(key, mark)
    elif kind == "more":
        parent["x"] = parent[key]
    else:
        parent[key]  # must be there
        raw[mark] = text
        parent[key] = mark


def _path(value, rng):
    path = []
    while isinstance(value, dict | list) and value:
        if path and rng.random() < 0.25:
            break
        if isinstance(value, dict):
            path.append(rng.choice(list(value)))
        else:
            path.append(rng.randrange(len(value)))
        value = value[path[-1]]
    return path


def _at(value, path):
    for key in path:
        value = value[key]
    return value
