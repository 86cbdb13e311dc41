"""CSV and Parquet of Excel, pandas and R are read as text; damaged tables are refused."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lungseg.errors import InputError
from lungseg.ingest.sources.text_tables import column_names, read_columns


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_dialects_are_read_alike(bom: bytes, delimiter: str, end: str) -> None:
    rows = [("id", "age", "notes"), ("007", "045Y", '"a\nb"'), ('"1,5;\t""x"""', " NA ", "é"), ("true", "", "")]
    content = bom + end.join(delimiter.join(row) for row in rows).encode() + end.encode() * 2
    assert column_names(content, "x.csv") == ["id", "age", "notes"]
    cells = {"age": ["045Y", "NA", ""], "id": ["007", '1,5;\t"x"', "true"]}
    assert read_columns(content, "x.csv", ["age", "id", "age"]) == cells


@pytest.mark.parametrize("line", ["sep={}", "SEP={}", '"sep={}"'])
@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_first_line_may_give_the_delimiter(line: str, delimiter: str, start: str) -> None:
    rows = [("image", "age, in y; or m"), ("a.png", "45"), ("b.png", "7 m")]
    text = "\r\n".join([start + line.format(delimiter), *(delimiter.join(f'"{cell}"' for cell in row) for row in rows)])
    content = f"{text}\r\n".encode()
    assert column_names(content, "x.csv") == list(rows[0])
    assert read_columns(content, "x.csv", ["image"]) == {"image": ["a.png", "b.png"]}
    with pytest.raises(InputError, match="row 3 has 3 cells, expected 2"):
        read_columns(content + delimiter.join("abc").encode() + b"\r\n", "x.csv", ["image"])


def test_column_may_be_called_sep() -> None:
    assert column_names(b"sep=x,sep\n1,2\n", "x.csv") == ["sep=x", "sep"]


def test_one_column_or_no_rows_are_read() -> None:
    assert column_names(b"image\na.png\n", "x.csv") == ["image"]
    assert read_columns(b"image\na.png\n", "x.csv", ["image"]) == {"image": ["a.png"]}
    assert read_columns(b"image,age\n", "x.csv", ["image"]) == {"image": []}


def test_parquet_of_any_scalar_type_is_read() -> None:
    content = parquet(image=["a.png", None], age=[45, None], weight=[1.5, float("nan")], big=pa.array(["x", "y"]))
    content = content if column_names(content, "x") == ["image", "age", "weight", "big"] else b""
    cells = {"image": ["a.png", ""], "age": ["45", ""], "weight": ["1.5", ""]}
    assert read_columns(content, "x", ["image", "age", "weight"]) == cells


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no header"),
        (b"\n\n", "no header"),
        (b"sep=;\n", "no header"),
        (b"image,age\na,\xff\xfe\n", "cannot be read .*CSV as UTF-8"),
        ("image,é\na,1\n".encode("latin-1"), "neither Parquet nor CSV in UTF-8"),
        ("image,age\na,1\n".encode("utf-16"), "neither Parquet nor CSV in UTF-8"),
        (b"image,age\na,1\nWu,2,3\nb,2\n", "row 2 has 3 cells, expected 2: put cells"),
        (b'image,age\na,1\n"Wu,2\nb,2\n', "row 2 has a double quote that is not closed"),
        (b'note,image,age\nfine,a,1\n"Wu\nhu",b,2\n"Wu,c,2\nx,d,2\n', "row 3 has a double quote that is not closed"),
        (b'image,note\na,"Wu\nb,x"y\nc,z\n', "row 1 has a double quote that is not closed"),
        (b"PAR1 truncated", "not a Parquet file"),
        (parquet(image=["a"], age=[1])[:-9] + b"123456789", "not a Parquet file"),
        (parquet(image=["a"], age=[1]).replace(b"image", b"ima\x80e"), "not a Parquet file"),
        (parquet(image=[b"\x89PNG"], age=[1]), "column image has the type binary, expected text"),
        (parquet(image=[{"path": "a", "bytes": b""}], age=[1]), "column image has the type struct"),
    ],
)
def test_damaged_table_is_refused_without_showing_cells(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_columns(content, "x.csv", [name for name in column_names(content, "x.csv") if name in ("image", "age")])
    assert str(caught.value).startswith("x.csv: ")
    assert "Wu" not in str(caught.value)


def test_cells_may_contain_line_breaks_and_quotes() -> None:
    content = b'image,note\na,"one\ntwo"\n\nb,5" film\nc,"so ""called"""\n'
    assert read_columns(content, "x.csv", ["image", "note"]) == {
        "image": ["a", "b", "c"],
        "note": ["one\ntwo", '5" film', 'so "called"'],
    }


@pytest.mark.parametrize(
    "content",
    [
        b"image,patient\na,Quasimodo\0\n",
        "image,patient\na,Quasimodo\n".encode("utf-16"),
        b"image,image\na,b,Quasimodo\xff",
    ],
)
def test_a_row_is_never_quoted(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    def read() -> None:
        column_names(content, "x.csv")
        read_columns(content, "x.csv", ["image"])

    with pytest.raises(InputError) as refused:
        read()
    assert "Quasimodo" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_a_parquet_file_with_a_double_column_is_refused() -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["image", "image"])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with pytest.raises(InputError, match="several columns are called image"):
        read_columns(sink.getvalue().to_pybytes(), "x.parquet", ["image"])


def test_double_column_of_csv_is_refused_if_read() -> None:
    content = b"image,mask,mask\na.png,,m.png\n"
    with pytest.raises(InputError, match="several columns are called mask"):
        read_columns(content, "x.csv", ["image", "mask"])
    assert read_columns(content, "x.csv", ["image"]) == {"image": ["a.png"]}
