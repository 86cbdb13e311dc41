"""Change values inside JSON, Parquet, CSV, YAML and safetensors files, so that the files stay well-formed."""

import json
import struct
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.byte_mutations import integer, mutate_bytes

_TEXTS = ("", "x", "nan", "-1", "../../etc", "/", "a\0b", "\x1b[31m", "\ud800", "é" * 50, "9" * 5000, "a?b", "#")
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**400, -0.5, 1e308, float("nan"), float("inf")),
    *([], {}, [None], [[]], {"a": 1}, ["x", 1], [1, 2, 3]),
)


def odd_value(random: Random) -> Any:
    """Choose a JSON value that code does not expect."""
    return random.choice(_TEXTS) if random.random() < 0.3 else random.choice(_VALUES)


def _containers(value: Any) -> list[Any]:
    """List all objects and arrays that are not empty."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    found = [value] if inner else []
    return found + [one for child in inner for one in _containers(child)]


def change_json_value(value: dict[str, Any], random: Random) -> dict[str, Any]:
    """Replace, remove, add or rename one value at any depth; a copy is returned."""
    changed: dict[str, Any] = json.loads(json.dumps(value))
    containers = _containers(changed)
    parent = random.choice([changed, *containers])
    key = random.choice([*parent] if isinstance(parent, dict) else range(len(parent)))
    kind = random.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(odd_value(random))] = parent.pop(key)
    elif kind == 2:
        parent[key] = [parent[key]]
    elif kind == 3 and isinstance(parent[key], int | float):
        parent[key] = str(parent[key])
    else:
        parent[key] = odd_value(random)
    return changed


def change_json_text(content: bytes, random: Random) -> bytes:
    """Change the text of a JSON file: bytes, encoding, nesting, size of numbers."""
    text = content.decode()
    place = random.randrange(len(text))
    options = (
        lambda: text.encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: b"[" * random.choice((500, 200_000)),
        lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        lambda: text.replace("1", "1" * 5000, 1).encode(),
        lambda: text.replace(":", ": NaN, ", 1).encode(),
        lambda: content[:place] + random.randbytes(4) + content[place:],
        lambda: random.choice((b"", b"null", b"[]", b'"x"', b"1", b"{}", b"\0" * 64, b"\xff" * 64)),
        lambda: mutate_bytes(content, random),
        lambda: mutate_bytes(content, random),
    )
    return random.choice(options)()


def _change_type(column: pa.ChunkedArray, random: Random) -> pa.Array:
    """Convert a column to another type, or fill it with nulls."""
    count = len(column)
    options = (
        lambda: pa.nulls(count, column.type),
        lambda: pa.nulls(count, pa.string()),
        lambda: pa.array([str(value) for value in column.to_pylist()], pa.string()),
        lambda: pa.array([7] * count, pa.int64()),
        lambda: pa.array([b"\xff"] * count, pa.binary()),
        lambda: pa.array([["x"]] * count, pa.list_(pa.string())),
        lambda: pa.array([{"a": 1}] * count),
        lambda: pa.array([str(value) for value in column.to_pylist()]).dictionary_encode(),
        lambda: pa.array([0] * count, pa.timestamp("ns")),
    )
    return random.choice(options)()


def _change_cell(column: pa.ChunkedArray, random: Random) -> pa.Array:
    """Replace one cell by an unusual value of the same type."""
    values = column.to_pylist()
    place = random.randrange(len(values))
    kind = column.type
    if pa.types.is_string(kind):
        options: tuple[Any, ...] = (None, *(text for text in _TEXTS if text != "\ud800"), "[" * 100_000, "{}", "null")
    elif pa.types.is_list(kind):
        options = (None, [], [None], ["x"] if pa.types.is_string(kind.value_type) else [-1, 2**31 - 1])
    elif pa.types.is_floating(kind):
        options = (None, float("nan"), float("inf"), -1.0, 1e308 if kind == pa.float64() else 1e38)
    elif pa.types.is_boolean(kind):
        options = (None, True, False)
    else:
        most = 2**31 - 1 if kind == pa.int32() else 2**63 - 1
        options = (None, 0, -1, 1, most, -most, min(most, integer(random)))
    values[place] = random.choice(options)
    return pa.array(values, kind)


def change_table(content: bytes, random: Random) -> bytes:
    """Change a cell, a column, the rows or the metadata of a Parquet file."""
    table = pq.read_table(pa.BufferReader(content))
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    kind = random.randrange(10)
    if kind < 5 and table.num_rows:
        table = table.set_column(place, name, _change_cell(column, random))
    elif kind == 5:
        table = table.set_column(place, name, _change_type(column, random))
    elif kind == 6:
        table = random.choice((table.drop_columns([name]), table.append_column(name, column)))
    elif kind == 7:
        table = table.rename_columns(
            [random.choice(("x", "", name)) if one == name else one for one in table.schema.names]
        )
    elif kind == 8:
        table = random.choice((table.slice(0, 0), table.slice(1), pa.concat_tables([table, table])))
    else:
        table = table.replace_schema_metadata(_metadata(dict(table.schema.metadata or {}), random))
    return parquet(table, random.choice(("zstd", "snappy", "none")))


def parquet(table: pa.Table, compression: str = "zstd") -> bytes:
    """Encode a table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression)
    return bytes(sink.getvalue().to_pybytes())


def _metadata(metadata: dict[bytes, bytes], random: Random) -> dict[bytes, bytes] | None:
    if not metadata or random.random() < 0.2:
        return None
    name = random.choice([*metadata])
    values = (b"", b"x", b"\xff\xfe", b"-1", b"5", b"9" * 5000, "\u0665".encode(), b"1e3", b"7", "\u00b2".encode())
    return {**metadata, name: random.choice(values)}


def change_parquet_footer(content: bytes, random: Random) -> bytes:
    """Change the footer, its length, or the magic bytes at either end."""
    (size,) = struct.unpack("<I", content[-8:-4])
    start = len(content) - 8 - size
    kind = random.randrange(4)
    if kind == 0:
        length = random.choice((0, 1, size - 1, size + 1, len(content), integer(random))) % (1 << 32)
        return content[:-8] + struct.pack("<I", length) + content[-4:]
    if kind == 1:
        return random.choice((content[:-4] + b"PARE", b"PAR1" + content[-8:], b"PAR1", content[:start] + content[-8:]))
    footer = mutate_bytes(content[start:-8], random)
    length = len(footer) if kind == 2 else size
    return content[:start] + footer + struct.pack("<I", length) + content[-4:]


def change_safetensors(content: bytes, random: Random) -> bytes:
    """Change the length of the header, or a value in it."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = random.randrange(5)
    if kind == 0:
        length = random.choice((0, 1, size - 1, size + 1, 1 << 40, (1 << 64) - 1, integer(random)))
        return struct.pack("<Q", length) + content[8:]
    if kind == 1:
        text = change_json_text(content[8 : 8 + size], random)
    else:
        text = json.dumps(change_json_value(header, random)).encode()
    return struct.pack("<Q", len(text)) + text + data[: random.choice((len(data), len(data) // 2))]


def change_csv(content: bytes, random: Random) -> bytes:
    """Change encoding, delimiters, quotes, line ends and cells of a CSV."""
    text = content.decode()
    lines = text.splitlines()
    place = random.randrange(len(lines))
    cells = lines[place].split(",")
    column = random.randrange(len(cells))
    odd = (
        '"',
        '"x',
        'a"b',
        "\0",
        "",
        "é" * 3,
        "x" * 200_000,
        '"a\nb"',
        "\x1b[31m",
        "9" * 400,
        "=1+1",
        "s3://x?y",
        "\r",
    )
    cells[column] = random.choice((*odd, "nan", "../../x.png", "file:///x", "http:/x", "\ufeff"))
    changed = "\n".join([*lines[:place], ",".join(cells), *lines[place + 1 :]])
    options = (
        *(lambda: changed.encode("utf-8", "replace") for _ in range(6)),
        lambda: text.encode(random.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252"))),
        lambda: text.replace(",", random.choice((";", "\t", "|", ",,", ", "))).encode(),
        lambda: text.replace("\n", random.choice(("\r", "\r\n", "\n\n", "\0\n"))).encode(),
        lambda: "\n".join(lines[:place] + lines[place + 1 :]).encode(),
        lambda: random.choice((b"", b"\n", b"sep=;\n", b"sep=;", b'"', b"\xef\xbb\xbf", b"a", b"image\n", b",,,\n,,,")),
        lambda: random.choice((b"sep=,\n", b'"sep=;"\r\n', b"sep=\0\n", b"sep=\r\n", b"sep=\n\n")) + content,
        (lines[0] + "\n" + lines[1] * 3).encode,
        *(lambda: mutate_bytes(content, random) for _ in range(3)),
    )
    return random.choice(options)()


def change_yaml(content: bytes, random: Random) -> bytes:
    """Change one line, add a tag, an alias, nesting or another document."""
    lines = content.decode().splitlines()
    place = random.randrange(1, len(lines))
    name = lines[place].partition(":")[0]
    odd = ("", "null", "~", "[]", "{}", "{a: 1}", "[1, [2]]", "nan", ".nan", ".inf", "1e400", "-1", "yes", "2001-01-01")
    odd += ("!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a}", "*x", "&x [*x]", '"\\0"', "'x", "0o7")
    odd += ("9" * 5000, "1:30", "? x", "- x", "|", "\t", "%", "@", "!!int x", "!!float x", "!!timestamp x", "1_000")
    options = (
        *(lambda: _with_line(lines, place, f"{name}: {random.choice(odd)}") for _ in range(6)),
        lambda: _with_line(lines, place, lines[place] + "\n" + lines[place]),
        lambda: _with_line(lines, place, f"{random.choice(odd)}: 1"),
        lambda: b"[" * random.choice((100, 3000)),
        lambda: b"a: &a [x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(9)),
        lambda: content + b"---\na: 1\n",
        lambda: content.decode().encode(random.choice(("utf-16", "utf-32", "utf-8-sig"))),
        lambda: random.choice((b"", b"\0", b"\xff", b"x", b"- a", b"1", b"1: 2", b"null: 1", b"[1]: 2", b"? [a]\n: b")),
        *(lambda: mutate_bytes(content, random) for _ in range(2)),
    )
    return random.choice(options)()


def _with_line(lines: list[str], place: int, line: str) -> bytes:
    return "\n".join([*lines[:place], line, *lines[place + 1 :], ""]).encode("utf-8", "replace")


def change_file(name: str, content: bytes, random: Random) -> bytes:
    """Change a file by its ending."""
    if name.endswith(".json"):
        if random.random() < 0.25:
            return change_json_text(content, random)
        return json.dumps(change_json_value(json.loads(content), random)).encode()
    if name.endswith(".parquet"):
        return random.choice((change_table, change_table, change_table, change_parquet_footer, mutate_bytes))(
            content, random
        )
    if name.endswith(".safetensors"):
        return random.choice((change_safetensors, change_safetensors, mutate_bytes))(content, random)
    return mutate_bytes(content, random)


def change_lines(content: bytes, random: Random) -> bytes:
    """Change one line of a file with a JSON object in each line."""
    lines = content.splitlines()
    place = random.randrange(len(lines))
    lines[place] = change_file("line.json", lines[place], random)
    return b"\n".join(lines) + b"\n"
