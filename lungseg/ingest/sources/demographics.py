"""Age and sex as archives write them, to the few values that a record holds; what cannot be read is None."""

import re
from collections.abc import Iterator

_OLDEST = 122  # years, the longest life that is documented; more is a code for unknown or a slip
_AGE = re.compile(r"(\d+(?:[.,]\d+)?)\s*-?\s*([a-z]*)(?:\W*old)?\W*")
_RANGE = re.compile(r"(\d+)\s*(?:-|\u2013|to)\s*(\d+)\s*([a-z]*)")
_UNITS = {
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years"), 1.0),
    **dict.fromkeys(("m", "mo", "mos", "mon", "mth", "mths", "month", "months"), 12.0),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 52.18),
    **dict.fromkeys(("d", "day", "days"), 365.25),
}
"""How many of a unit make a year."""

_SEXES = {
    **dict.fromkeys(("f", "w", "fem", "female", "females", "femal", "famale", "feamle", "feminine"), "female"),
    **dict.fromkeys(("femenino", "feminin", "weiblich", "woman", "girl", "\u5973"), "female"),
    **dict.fromkeys(("m", "mal", "male", "males", "masc", "masculine", "masculino", "masculin"), "male"),
    **dict.fromkeys(("m\u00e4nnlich", "maennlich", "man", "boy", "\u7537"), "male"),
    **dict.fromkeys(("o", "x", "other", "diverse", "intersex", "nonbinary", "non-binary"), "other"),
}
_SEX_LINE = re.compile(r"\bsex\W+([a-z]+)", re.IGNORECASE)
_AGE_LINE = re.compile(r"\bage\W+(\d+\s*[a-z]*)", re.IGNORECASE)
_WORD = re.compile(r"(?<![a-z])([a-z]+)[\s,;:.]*(\d+\s*[a-z]*)?", re.IGNORECASE)


def parse_age_group(text: str) -> str | None:
    """Bring an age (`45`, `045Y`, `45 years`, `7 months`, `40-44`) into a group of ten years, 40-49 or 90+.

    A number without a unit is years. A range that reaches over two groups, and what is more than 122 years, is None.
    """
    text = text.strip().lower()
    if text in ("90+", ">89", "> 89", ">=90"):
        return "90+"
    span = _RANGE.fullmatch(text)
    if span:
        low, high = (_group(f"{number}{span[3]}") for number in span.group(1, 2))
        return low if low == high else None
    return _group(text)


def parse_sex(text: str) -> str | None:
    """Bring a sex in any usual spelling to female, male or other."""
    return _SEXES.get(text.strip().strip(".").lower())


def parse_clinical_reading(text: str) -> tuple[str | None, str | None]:
    """Read age group and sex out of the text beside an image of Montgomery or Shenzhen.

    Montgomery has a line for each (`Patient's Sex: F`, `Patient's Age: 027Y`), Shenzhen one for both (`male 45yrs`,
    `Female, 33yrs`, `male 16month`); what follows is the radiologist's and is not looked at once both are known.
    """
    sex_line, age_line = _SEX_LINE.search(text), _AGE_LINE.search(text)
    if sex_line or age_line:
        return parse_age_group(age_line[1]) if age_line else None, parse_sex(sex_line[1]) if sex_line else None
    return next(_brief(text), (None, None))


def _brief(text: str) -> Iterator[tuple[str | None, str | None]]:
    for word, age in _WORD.findall(text):
        # A lone letter is a sex only before an age: the reading itself may hold one.
        if parse_sex(word) in ("female", "male") and (len(word) > 1 or age):
            yield parse_age_group(age), parse_sex(word)


def _group(text: str) -> str | None:
    found = _AGE.fullmatch(text)
    if not found or found[2] not in _UNITS:
        return None
    years = float(found[1].replace(",", ".")) / _UNITS[found[2]]
    if years > _OLDEST:
        return None
    decade = int(years) // 10 * 10
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}"
