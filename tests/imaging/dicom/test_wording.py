"""Body parts and views in many languages and character sets."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lungseg.imaging.dicom.reader import read
from lungseg.imaging.dicom.wording import classify_body_part, classify_view, fold, possible_readings

CHEST = """
CHEST|chst|Thorax 2 Ebenen|PORTABLE CHEST|CXR|Brustkorb|LUNGE|Lungenübersicht|poumons|POITRINE|Tórax|PULMÕES
|pecho|torace|petto|polmoni|BORSTKAS|longen|klatka piersiowa|KLATKI PIERSIOWEJ|płuca|грудная клетка|ОГК|лёгкие
|Akciğer|GÖĞÜS|toraks|胸部|肺|ｷｮｳﾌﾞ|흉부|가슴|bröst|lungor|bryst|keuhkot|hrudník|mellkas|ΘΩΡΑΚΑΣ|الصدر|חזה|ngực
|\uff23\uff28\uff25\uff33\uff34|thorax de face|tórax de pie|HEART
"""
OTHER = """
T-SPINE|BWS|Brustwirbelsäule|BRUSTBEIN|columna torácica|rachis dorsal|грудной отдел позвоночника
|kręgosłup piersiowy|胸椎|흉추|胸骨|ABDOMENPELVIS|Schädel|SCHAEDEL|HUEFTE|genou|rodilla|joelho|kolano|колено
|膝関節|무릎|腹部|brzuch|живот|main droite|mão|feet|ANKLES|upper limb|addome|MAMMA|ÉPAULE|RIBS|NECK|TMJ
|CIRCLEOFWILLIS|SSPINE
"""
NOTHING = """
N/A|n.a.|NA|UNKNOWN|UNSPECIFIED|NONE|OTHER||0|-|--|?|NOT SPECIFIED|unbekannt|その他|不明|XXX
|#N/A|inconnu|неизвестно|기타|
"""
LATERAL = """
LL|RL|L LAT|LATERALE|latéral|PROFIL gauche|PERFIL|XTL|SWIMMER'S|seitlich|левая боковая|側面|侧位|측면|boczne|yan
|X-TABLE LATERAL|cross-table|lateraal|LATERO-LATERAL|sidobild|L→R
"""
OBLIQUE = "LAO|rlo|OBL|oblicua|oblíqua|schräg|SCHRAEG|косая|斜位|skośne|left anterior oblique"
PA = "PA|P.A.|p/a erect|Postero-Anterior|postéro-antérieur|P→A|後前位"
AP = "AP|A-P|AP_SUPINE|antero posterior|AP LORDOTIC|前后位|bilateral AP"
# The text as a device writes it, and the character set that the file declares.
CODED = [
    ("胸部", "gb18030", "GB18030"),
    ("胸部", "utf_8", "ISO_IR 192"),
    ("胸部", "iso2022_jp", "ISO 2022 IR 87"),
    ("грудная клетка", "iso8859_5", "ISO_IR 144"),
    ("TÓRAX", "latin_1", "ISO_IR 100"),
    ("胸部", "gb18030", ""),
    ("胸部", "utf_8", ""),
    ("胸部", "cp932", ""),
    ("흉부", "euc_kr", ""),
    ("грудь", "cp1251", ""),
    ("göğüs", "iso8859_9", ""),
    ("TÓRAX", "latin_1", ""),
    ("胸部", "utf_8", "ISO_IR 100"),
]


def words(listed: str) -> list[str]:
    return [word.strip("\n") for word in listed.split("|")]


@pytest.mark.parametrize("word", words(CHEST))
def test_chest_is_recognised_in_many_languages(word: str) -> None:
    assert classify_body_part([word.strip()]) == "chest"


@pytest.mark.parametrize("word", words(OTHER))
def test_other_body_parts_are_recognised_in_many_languages(word: str) -> None:
    assert classify_body_part([word.strip()]) == "other"


@pytest.mark.parametrize("word", words(NOTHING))
def test_placeholders_say_nothing(word: str) -> None:
    assert (classify_body_part([word]), classify_view([word]).kind) == ("", "")


@pytest.mark.parametrize(
    ("listed", "kind", "term"),
    [
        (LATERAL, "lateral", None),
        (OBLIQUE, "oblique", None),
        (PA, "frontal", "PA"),
        (AP, "frontal", "AP"),
        ("LLD|lld", "frontal", "LLD"),
        ("LAT DECUBITUS|Linke Seitenlage|FACE|正面|прямая|Frontal", "frontal", None),
        ("ERECT|2 Ebenen|supine|bilateral|LEFT", "", None),
        ("Q7|SMITH|AP/LAT", "unknown", None),
    ],
)
def test_views_are_recognised_in_many_languages(listed: str, kind: str, term: str | None) -> None:
    found = {word: classify_view([word]) for word in words(listed)}
    assert {word for word, view in found.items() if (view.kind, view.term) != (kind, term)} == set()


@pytest.mark.parametrize(("text", "codec", "declared"), CODED)
def test_character_sets_are_found_declared_or_not(text: str, codec: str, declared: str) -> None:
    as_pydicom_reads = text.encode(codec).decode("latin_1")
    assert classify_body_part(possible_readings(as_pydicom_reads, [declared])) == "chest"


@given(st.text(max_size=16))
def test_any_text_is_classified_without_an_error(text: str) -> None:
    readings = possible_readings(text, ["no such set", "ISO 2022 IR 87"])
    assert readings
    assert classify_body_part(readings) in ("", "chest", "several", "other", "unknown")
    assert classify_view(readings).kind in ("", "frontal", "lateral", "oblique", "unknown")
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize("name", ["plain", "chinese-gb18030", "chinese-utf8", "cyrillic", "japanese"])
def test_case_files_pass_without_flags(name: str, pytestconfig: pytest.Config) -> None:
    path: Path = pytestconfig.rootpath / ".." / "shared" / "cases" / "body-part-words" / f"{name}.dcm"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    assert read(path.read_bytes(), path.name)[1].flags == ()
