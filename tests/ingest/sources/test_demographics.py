"""Age and sex are parsed in the spellings of archives."""

import pytest
from hypothesis import given, strategies as st

from lungseg.ingest.sources.demographics import parse_age_group, parse_clinical_reading, parse_sex


@pytest.mark.parametrize(
    ("text", "group"),
    [
        *(("45", "40-49"), ("045Y", "40-49"), (" 45 years ", "40-49"), ("45.0", "40-49"), ("45,5", "40-49")),
        *(("45yrs.", "40-49"), ("45 years old", "40-49"), ("45-year-old", "40-49"), ("49.9", "40-49")),
        *(("50", "50-59"), ("0", "0-9"), ("9", "0-9"), ("10", "10-19"), ("89", "80-89"), ("90", "90+"), ("104", "90+")),
        *(("7 months", "0-9"), ("16month", "0-9"), ("64days", "0-9"), ("003W", "0-9"), ("150m", "10-19")),
        *(("40-44", "40-49"), ("40 - 49 years", "40-49"), ("90+", "90+"), (">89", "90+"), ("35-45", None)),
        *(("", None), ("unknown", None), ("nan", None), ("999", None), ("414Y", None), ("-3", None), ("?", None)),
        *(("19540302", None), ("1954-03-02", None), ("45 kg", None), ("Smith 45", None), ("4 5", None)),
    ],
)
def test_age_becomes_a_group_of_ten_years(text: str, group: str | None) -> None:
    assert parse_age_group(text) == group


@given(st.integers(0, 122))
def test_age_is_within_its_group(years: int) -> None:
    for text in (str(years), f"{years:03d}Y", f"{years} yrs", f"{years}.5", f"{years}-{years}"):
        group = parse_age_group(text)
        if (years == 122 and text.endswith(".5")) or text == "000Y":  # an unknown age
            assert group is None
        elif years >= 90:
            assert group == "90+"
        else:
            assert group is not None
            low, high = (int(end) for end in group.split("-"))
            assert (low % 10, high - low) == (0, 9)
            assert low <= years <= high


@pytest.mark.parametrize(
    ("spellings", "value"),
    [
        (("F", "f ", "female", "FEMALE", "Femal", "Fem.", "W", "weiblich", "woman"), "female"),
        (("M", "m.", "male", "Male", "MAL", "man", "boy", "masculino"), "male"),
        (("O", "other", "Diverse", "X"), "other"),
        (("", "U", "unknown", "nan", "1", "0", "formal", "?"), None),
    ],
)
def test_sex_is_parsed_in_any_spelling(spellings: tuple[str, ...], value: str | None) -> None:
    assert {parse_sex(spelling) for spelling in spellings} == {value}


@pytest.mark.parametrize(
    ("text", "age", "sex"),
    [
        ("Patient's Sex: F \nPatient's Age: 027Y\nnormal", "20-29", "female"),
        ("Patient's Sex: O\r\nPatient's Age: 005Y\r\nmale, 60 years", "0-9", "other"),
        ("Patient's Age: 031Y\nPatient's Sex: M", "30-39", "male"),
        ("PATIENT'S SEX:M", None, "male"),
        ("male 45yrs\nnormal", "40-49", "male"),
        ("Female, 33yrs\nbilateral PTB", "30-39", "female"),
        ("\n\n  female  64days", "0-9", "female"),
        ("male 7 months\nnormal", "0-9", "male"),
        ("femal 32yrs", "30-39", "female"),
        ("male45yrs", "40-49", "male"),
        ("Male,40 yrs,PTB for 2 years", "40-49", "male"),
        ("F 40", "40-49", "female"),
        ("female\nnormal", None, "female"),
        ("male , 200yrs", None, "male"),
        ("normal", None, None),
        ("m o x 3 nodules", None, None),
        ("", None, None),
    ],
)
def test_clinical_reading_gives_age_and_sex(text: str, age: str | None, sex: str | None) -> None:
    assert parse_clinical_reading(text) == (age, sex)


@given(st.text())
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    groups = {None, "90+", *(f"{low}-{low + 9}" for low in range(0, 90, 10))}
    assert {parse_age_group(text), parse_clinical_reading(text)[0]} <= groups
    assert {parse_sex(text), parse_clinical_reading(text)[1]} <= {None, "female", "male", "other"}
