"""Listings become records: columns, paths, ids, and rows that cannot be used."""

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from lungseg import storage
from lungseg.config import ListingColumns
from lungseg.errors import InputError
from lungseg.ingest import sources
from lungseg.ingest.sources import listing, text_tables
from lungseg.schema import Record
from tests.ingest.sources.archive_files import fill
from tests.ingest.sources.test_image_ids import ids_of

DEFAULT = ListingColumns()


def read(tmp_path: Path, text: str, columns: ListingColumns = DEFAULT, dataset: str = "") -> list[Record]:
    (tmp_path / "My List.csv").write_text(text)
    return sources.read_listing(str(tmp_path / "My List.csv"), columns, dataset)


FULL = (
    "image,mask,patient_id,dataset,finding,age,sex,view,name\n"
    "i/a.png,m/a.png,p1,North,normal,045Y,F,pa,Wu\n"
    "i/b.png,,,St. Mary's,,,,,Li\n"
)


def test_usual_column_names_need_no_settings(tmp_path: Path) -> None:
    first, second = read(tmp_path, FULL)
    folder = str(tmp_path)
    assert first == Record(
        *("a", "north", f"{folder}/i/a.png", (f"{folder}/m/a.png",), ("lung",), "p1", "normal"),
        *("40-49", "female", "PA"),
    )
    assert second == Record("b", "st_mary_s", f"{folder}/i/b.png", patient_id="b")


def test_columns_and_mask_classes_can_be_named(tmp_path: Path) -> None:
    columns = ListingColumns(
        image="file",
        masks=("left", "right", "heart=cor", "a=b"),
        patient_id="who",
        dataset="site",
        finding="dx",
        age="years",
        sex="gender",
        view="pos",
    )
    text = "who;file;left;right;cor;site;dx;years;gender;pos;a=b\n7;a.png;l.png;r.png;h.png;S;tb;9;male;AP;\n"
    (record,) = read(tmp_path, text, columns)
    assert [Path(uri).name for uri in record.mask_uris] == ["l.png", "r.png", "h.png"]
    assert record.mask_classes == ("lung", "lung", "heart")
    fields = (record.patient_id, record.dataset, record.finding, record.age_group, record.sex, record.view)
    assert fields == ("7", "s", "tb", "0-9", "male", "AP")


def test_parquet_listing_gives_the_same_records(tmp_path: Path) -> None:
    rows = read(tmp_path, FULL)
    columns: dict[str, list[object]] = {"image": ["i/a.png", "i/b.png"], "mask": ["m/a.png", None]}
    columns |= {"patient_id": ["p1", None], "dataset": ["North", "St. Mary's"], "finding": ["normal", None]}
    columns |= {"age": [45, None], "sex": ["Female", None], "view": ["PA", None]}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert sources.read_listing(str(tmp_path / "list.parquet"), DEFAULT, "") == rows


def test_pieces_of_a_parquet_listing_give_the_records_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ["1/a.png", "1/b.png", "", "2/a.png", "1/a.jpg", "1/a.png", "c.png", "1/a.png"]
    columns = {"image": images, "dataset": [*"NNNNNNN", "M"], "view": ["", "LL", *[""] * 6]}
    text = "\n".join(",".join(row) for row in [[*columns], *zip(*columns.values(), strict=True)])
    whole = read(tmp_path, text, dataset="d")
    pq.write_table(pa.table(columns), tmp_path / "My List.parquet", row_group_size=3)
    monkeypatch.setattr(text_tables, "_PIECE_ROWS", 2)
    pieces = list(sources.Listing(str(tmp_path / "My List.parquet"), DEFAULT, "d"))
    assert [record.image_uri.removeprefix(f"{tmp_path}/") for record in pieces] == images
    assert {code for record in pieces for code in record.codes} == {"lateral_view", "no_image", "listed_twice"}
    renamed = [replace(record, message=record.message.replace(".parquet", ".csv")) for record in pieces]
    assert sorted(renamed, key=lambda record: (record.dataset, record.image_id, record.image_uri)) == whole


def test_a_listing_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"image": ["a.png"]}), path)
    opened = sources.Listing(str(path), DEFAULT)
    assert len(list(opened)) == 1
    pq.write_table(pa.table({"image": ["a.png", "b.png"]}), path)
    with pytest.raises(InputError, match=r"list\.parquet was changed while it was read: run the same command again"):
        list(opened)


@pytest.mark.parametrize(("dataset", "name"), [("mine", "mine"), ("", "my_list")])
def test_row_without_dataset_gets_the_default_name(dataset: str, name: str, tmp_path: Path) -> None:
    assert [record.dataset for record in read(tmp_path, "image\na.png\n", dataset=dataset)] == [name]
    records = read(tmp_path, "image,dataset\na.png,\nb.png,N\nc.png,n\n", dataset=dataset)
    assert {record.image_id: record.dataset for record in records} == {"a": name, "b": "n", "c": "n"}


def test_dataset_titles_with_equal_names_stay_distinct(tmp_path: Path) -> None:
    records = read(tmp_path, "image,dataset\na.png,Москва\nb.png,Киев\n")
    assert len({record.dataset for record in records}) == 2


def test_paths_may_be_relative_absolute_or_uris(tmp_path: Path) -> None:
    cells = ["a.png", "./b.png", "../c.png", "/abs/d.png", "s3://bucket/e%20f.png"]
    uris = {record.image_uri for record in read(tmp_path, "\n".join(["image", *cells]))}
    folder, parent = str(tmp_path), str(tmp_path.parent)
    assert uris == {f"{folder}/a.png", f"{folder}/b.png", f"{parent}/c.png", "/abs/d.png", "s3://bucket/e%20f.png"}


def test_listing_may_be_a_uri(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "list.csv").write_text("image\nx y.png\n../z.png\n")
    records = sources.read_listing((folder / "list.csv").as_uri(), DEFAULT, "")
    assert [record.image_uri for record in records] == [f"{folder.as_uri()}/x%20y.png", f"{tmp_path.as_uri()}/z.png"]
    assert [record.image_id[:7] for record in records] == ["a_b_x_y", "z"]


def test_ids_are_unique_paths_below_the_common_folder(tmp_path: Path) -> None:
    cells = ["x/1/a.png", "x/1/a.dcm.png", "x/2/a.png", "x/2/a.jpg", "x/1_a.png", "x/1.2.3", "x/1.2.4"]
    records = {Path(record.image_uri).relative_to(tmp_path).as_posix(): record for record in _listed(tmp_path, cells)}
    ids = {path: record.image_id for path, record in records.items()}
    assert len(set(ids.values())) == len(cells)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", own) for own in ids.values())
    assert [ids[path].rpartition("-")[0] for path in ("x/1/a.png", "x/1_a.png", "x/2/a.png")] == ["1_a", "1_a", "2_a"]


def _listed(folder: Path, cells: list[str]) -> list[Record]:
    return read(folder, "\n".join(["image", *cells]))


def test_ids_of_an_earlier_plan_are_kept(tmp_path: Path) -> None:
    text = "image,patient_id,view\n1/b.png,P,\n1/a.png,,\n1/c.png,,LL\n"
    before = read(tmp_path, text, dataset="d")
    earlier_ids = {(record.dataset, record.image_uri): record.image_id for record in before}
    assert list(earlier_ids.values()) == ["a", "b", "c"]
    # Adds another folder, other files of one name, and one that would get an id of an earlier row.
    grown = read(tmp_path, text + "2/a.png,,\n1/a.jpg,Q,\n1/c.jpg,,\na.png,,\n", dataset="d")
    kept = listing.keep_ids(grown, earlier_ids)
    assert [record for record in kept if (record.dataset, record.image_uri) in earlier_ids] == before
    ids = {record.image_uri.removeprefix(f"{tmp_path}/"): record.image_id for record in kept}
    assert [re.sub("-[0-9a-f]{6}$", "-x", ids[new]) for new in ("2/a.png", "1/a.jpg", "1/c.jpg", "a.png")] == [
        *("2_a", "1_a-x", "1_c-x", "a-x")
    ]
    assert len(set(ids.values())) == len(ids) == 7
    assert {record.image_id: record.patient_id for record in kept} == {own: own for own in ids.values()} | {
        "b": "P",
        ids["1/a.jpg"]: "Q",
    }
    assert kept == sorted(kept, key=lambda record: record.image_id)


def test_ids_without_an_earlier_plan_are_unchanged(tmp_path: Path) -> None:
    records = read(tmp_path, FULL)
    for earlier_ids in ({}, {("north", "/gone/x.png"): "a"}, {("elsewhere", records[0].image_uri): "x"}):
        assert listing.keep_ids(records, earlier_ids) == records


@given(
    st.lists(
        st.sampled_from(
            [f"{a}/{b}.{c}" for a in ("x", "x/y", "z") for b in ("a", "y_a", "c c") for c in ("png", "jpg")]
        ),
        min_size=1,
        unique=True,
    ),
    st.integers(0, 18),
)
def test_grown_listing_keeps_ids_and_stays_unique(paths: list[str], first: int) -> None:
    ids: dict[str, str] = {}
    for count in (first, len(paths)):
        uris = [f"/d/{path}" for path in paths[:count]]
        named = [Record(own, "d", uri) for uri, own in zip(uris, ids_of(uris), strict=True)]
        kept = {
            record.image_uri: record.image_id
            for record in listing.keep_ids(named, {("d", uri): own for uri, own in ids.items()})
        }
        assert {uri: kept[uri] for uri in ids if uri in kept} == ids
        assert len(set(kept.values())) == len(kept) == len(uris)
        ids = kept


def test_every_row_becomes_a_record(tmp_path: Path) -> None:
    text = (
        "image,left,right,view,age,sex\n"
        "a.png,l,r,PA,?,?\n"
        ",l,r,PA,45,F\n"
        "a.png,l,r,,,\n"
        "b.png,l,,,,\n"
        "c.png,,,LL,,\n"
        "  ,,,,,\n"
        "./a.png,,,,,\n"
    )
    records = read(tmp_path, text, ListingColumns(masks=("left", "right")))
    assert len(records) == 7
    assert {record.message[:8]: record.codes for record in records if record.codes} == {
        "row 2 of": ("no_image",),
        "row 3 of": ("listed_twice",),
        "only the": ("one_sided_mask",),
        "row 5 of": ("lateral_view",),
        "row 6 of": ("no_image",),
        "row 7 of": ("listed_twice",),
    }
    assert {record.status for record in records if record.codes} == {"rejected"}
    assert [record.image_id for record in records if not record.codes] == ["a"]
    (empty,) = [record for record in records if record.message.startswith("row 2 of My List.csv names no")]
    assert (empty.image_uri, empty.image_id) == ("", "row_0000002_without_image")


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "None", "n/a", "NA", "<NA>", "NULL", "Unknown", " - "])
def test_missing_patient_id_becomes_the_image_id(cell: str, tmp_path: Path) -> None:
    records = read(tmp_path, f"image,patient_id\na.png,{cell}\nb.png,{cell}\nc.png,Nanna\n")
    assert [record.patient_id for record in records] == ["a", "b", "Nanna"]


@pytest.mark.parametrize(
    "view", ["LL", "lateral", "Lat", "Left Lateral", "L", "LATERAL ERECT", "Profil", "xtl", "dorsal decubitus lateral"]
)
def test_lateral_views_are_rejected(view: str, tmp_path: Path) -> None:
    (record,) = read(tmp_path, f"image,view\na.png,{view}\n")
    assert (record.status, record.codes, record.view) == ("rejected", ("lateral_view",), view.upper())


@pytest.mark.parametrize(
    "view", ["PA", "ap", "AP supine", "left lateral decubitus", "bilateral", "LLD", "L/R", "TBD", ""]
)
def test_frontal_views_are_accepted(view: str, tmp_path: Path) -> None:
    (record,) = read(tmp_path, f"image,view\na.png,{view}\n")
    assert record.status == "ok"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ListingColumns(image="imgae"), "no column imgae; it has Image, path, mask_l, path: did you mean Image?"),
        (ListingColumns(view="Imaeg"), "no column Imaeg; .* did you mean Image?"),
        (ListingColumns(image="Image", masks=("zzz",)), "no column zzz; it has .*: name one of these"),
        (ListingColumns(image="Image", masks=("lung=maskx",)), "no column maskx; .* did you mean mask_l?"),
        (
            ListingColumns(image="Image", masks=("hart=mask_l",)),
            "hart=mask_l: hart is not a class: name one of lung,",
        ),
        (ListingColumns(image="Image", age="years"), "no column years"),
        (ListingColumns(image="path"), "2 columns are called path: rename all but one"),
    ],
)
def test_unknown_column_or_class_is_refused(columns: ListingColumns, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, "Image,path,mask_l,path\na,b,c,d\n", columns)


def test_missing_or_empty_listing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list\.csv: no such file"):
        sources.read_listing(str(tmp_path / "list.csv"), DEFAULT, "")
    with pytest.raises(InputError, match="no rows, expected one for each image"):
        read(tmp_path, "image\n")
    with pytest.raises(InputError, match="no such file"):
        sources.read_listing(str(tmp_path), DEFAULT, "")


def test_listing_of_the_real_archive_gives_equal_records(cxr256: Path, tmp_path: Path) -> None:
    records = sources.discover(str(cxr256))
    lines = [
        ",".join([record.image_uri, *record.mask_uris, record.dataset, record.finding or ""]) for record in records
    ]
    listed = read(tmp_path, "\n".join(["image,mask,dataset,finding", *lines]))
    fields = ("dataset", "image_uri", "mask_uris", "mask_classes", "finding", "status")
    assert [[getattr(record, name) for name in fields] for record in listed] == [
        [getattr(record, name) for name in fields] for record in records
    ]


def test_listed_names_of_another_unicode_form_are_found(tmp_path: Path) -> None:
    stored, listed = (unicodedata.normalize(form, "köln/größe é.png") for form in ("NFD", "NFC"))
    for kind in ("images", "masks"):
        fill(tmp_path, f"{kind}/{stored}", f"{kind}/plain.png")
    text = (
        f"image,mask,patient_id\nimages/{listed},masks/{listed},Jürgen\nimages/plain.png,masks/plain.png,Ju\u0308rgen\n"
    )
    records = {record.image_uri: record for record in read(tmp_path, text)}
    record = records[f"{tmp_path}/images/{stored}"]
    assert record.mask_uris == (f"{tmp_path}/masks/{stored}",)
    assert len({record.patient_id for record in records.values()}) == 1


def test_listed_names_that_exist_stay_as_they_are(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    fill(tmp_path, *forms)
    records = read(tmp_path, "image\n" + "\n".join([*forms, "ä-missing.png"]))
    assert {Path(record.image_uri).name for record in records} == {*forms, "ä-missing.png"}
    assert len({record.image_id for record in records}) == 3


def test_one_file_listed_in_two_unicode_forms_is_listed_twice(tmp_path: Path) -> None:
    fill(tmp_path, "e\u0301.png")
    records = read(tmp_path, "image\n\u00e9.png\ne\u0301.png\n")
    assert sorted(record.codes for record in records) == [(), ("listed_twice",)]


def test_dicom_row_without_a_patient_has_no_patient_id(tmp_path: Path) -> None:
    rows = read(tmp_path, "image,patient_id\na.dcm,\n1.2.840.7,\nb.png,\nc.dcm,p7\n")
    assert {storage.name_of(row.image_uri): row.patient_id for row in rows} == {
        "a.dcm": "",
        "1.2.840.7": "",
        "b.png": "b",
        "c.dcm": "p7",
    }
    assert [listing.pseudonymise_patient(row, b"k" * 16).patient_id for row in rows].count("") == 2
    assert listing.keep_ids(rows, {}) == rows
