"""Parse age and sex in the spellings of archives into the values of a record; None if unknown."""

import re
from collections.abc import Iterator

_OLDEST = 122  # years, the longest documented life; more is a code for unknown or a typing error
_AGE = re.compile(r"(\d+(?:[.,]\d+)?)\s*-?\s*([a-z]*)(?:\W*old)?\W*")
_RANGE = re.compile(r"(\d+)\s*(?:-|\u2013|to)\s*(\d+)\s*([a-z]*)")
_UNKNOWN_AGE = re.compile("0{3}y?")
_UNITS = {
    **dict.fromkeys(("", "y", "yr", "yrs", "year", "years"), 1.0),
    **dict.fromkeys(("m", "mo", "mos", "mon", "mth", "mths", "month", "months"), 12.0),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks"), 52.18),
    **dict.fromkeys(("d", "day", "days"), 365.25),
}
"""Units in a year."""

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
    """Convert an age (`45`, `045Y`, `45 years`, `7 months`, `40-44`) to a group of ten years, such as 40-49, or 90+.

    A number without a unit is in years. None for a range over two groups, for more than 122 years, and for `000Y`,
    which programs write for an unknown age.
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
    """Convert a sex in any usual spelling to female, male or other."""
    return _SEXES.get(text.strip().strip(".").lower())


def parse_clinical_reading(text: str) -> tuple[str | None, str | None]:
    """Parse age group and sex from the text file of an image of Montgomery or Shenzhen.

    Montgomery has a line for each (`Patient's Sex: F`, `Patient's Age: 027Y`), Shenzhen one line for both (`male
    45yrs`, `Female, 33yrs`, `male 16month`). The radiologist's text follows.
    """
    sex_line, age_line = _SEX_LINE.search(text), _AGE_LINE.search(text)
    if sex_line or age_line:
        return parse_age_group(age_line[1]) if age_line else None, parse_sex(sex_line[1]) if sex_line else None
    return next(_parse_shenzhen(text), (None, None))


def _parse_shenzhen(text: str) -> Iterator[tuple[str | None, str | None]]:
    for word, age in _WORD.findall(text):
        # A single letter is a sex only before an age: the radiologist's text may contain one.
        if parse_sex(word) in ("female", "male") and (len(word) > 1 or age):
            yield parse_age_group(age), parse_sex(word)


def _group(text: str) -> str | None:
    match = _AGE.fullmatch(text)
    if not match or match[2] not in _UNITS or _UNKNOWN_AGE.fullmatch(text):
        return None
    years = float(match[1].replace(",", ".")) / _UNITS[match[2]]
    if years > _OLDEST:
        return None
    decade = int(years) // 10 * 10
    return "90+" if decade >= 90 else f"{decade}-{decade + 9}"
