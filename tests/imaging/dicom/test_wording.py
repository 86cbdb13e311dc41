"""Body parts and views in many languages and character sets."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lungseg.imaging.dicom.reader import read
from lungseg.imaging.dicom.wording import (
    USUAL_PARTS,
    USUAL_VIEWS,
    classify_body_part,
    classify_view,
    fold,
    possible_readings,
    words_to_body_part,
    words_to_view,
)

CHEST = """
CHEST|chst|Thorax 2 Ebenen|PORTABLE CHEST|CXR|Brustkorb|LUNGE|Lungenübersicht|poumons|POITRINE|Tórax|PULMÕES
|pecho|torace|petto|polmoni|BORSTKAS|longen|klatka piersiowa|KLATKI PIERSIOWEJ|płuca|грудная клетка|ОГК|лёгкие
|Akciğer|GÖĞÜS|toraks|胸部|肺|ｷｮｳﾌﾞ|흉부|가슴|bröst|lungor|bryst|keuhkot|hrudník|mellkas|ΘΩΡΑΚΑΣ|الصدر|חזה|ngực
|\uff23\uff28\uff25\uff33\uff34|thorax de face|tórax de pie|HEART|THOR|pulmão|RADIOGRAPHIE THORACIQUE|piept|plaušas
|органи грудної клітки|krūtinės ląsta|צילום חזה|흉부 X선|caixa torácica|prsa
"""
OTHER = """
T-SPINE|BWS|Brustwirbelsäule|BRUSTBEIN|columna torácica|rachis dorsal|грудной отдел позвоночника
|kręgosłup piersiowy|胸椎|흉추|胸骨|ABDOMENPELVIS|Schädel|SCHAEDEL|HUEFTE|genou|rodilla|joelho|kolano|колено
|膝関節|무릎|腹部|brzuch|живот|main droite|mão|feet|ANKLES|upper limb|addome|MAMMA|ÉPAULE|RIBS|NECK|TMJ
|CIRCLEOFWILLIS|SSPINE|ABDPELV|UP_EXM|Mammographie|ЖИВІТ|يد|胃|大腸
"""
NOTHING = """
N/A|n.a.|NA|UNKNOWN|UNSPECIFIED|NONE|OTHER||0|-|--|?|NOT SPECIFIED|unbekannt|その他|不明|XXX
|#N/A|inconnu|неизвестно|기타|keine Angabe|не указано|brak danych|no especificado|non spécifié|不详|未填写|該当なし
|k.A.|S/D|NO DATA|NOTSPECIFIED|BODYPART|leer|vacío|ismeretlen|άγνωστο|לא ידוע|غير معروف|알 수 없음|tidak ada
|UNSPEC|TBD|não informado|nicht angegeben|non renseigné|нет данных|未記入|niet opgegeven|
"""
SPINE_OR_STERNUM = """
COLOANA TORACALA|BRYSTVIRVEL|CỘT SỐNG NGỰC|العمود الصدري|ВІДДІЛ ХРЕБТА|ГРЪДЕН ГРЪБНАК|bröstkotor|hrudní obratle
|mellkasi csigolya|torakalna kičma|ستون فقرات سینه|THORACOLUMBAR|toraco-lombare|thoraco-lombaire|胸腰段|PRSNA KOST
|HRUDNI KOST|грудна кост|tulang dada|THORACIC DISC|prsná kosť|грудний відділ хребта|rintanikamat|kręgi piersiowe
|toracolumbar|thorakolumbal|Brustwirbel|đốt sống ngực|hrudné stavce|tulang belakang dada|胸椎间盘|toracal coloană
"""
UNSURE = """
BRUSTWARZE|BRUSTKREBS|胸主动脉|CHEST SMITH|CHESTNUT TREE|thoracic duct|THORAX DRAIN|胸腺|Brustimplantat|lung biopsy
|thoracotomie|CHEST QX|опухоль лёгкого|lungenkrebs|chest tumour marker|胸部肿瘤
"""
SURE = """
CHEST PA|CHEST (PA & LAT)|AP CHEST|CHEST 2 VIEWS|CHEST2V|Chest portable|chest bedside routine|CHEST (L+R)|LATCHEST
|CHESTLAT|PACHEST|Thoraxaufnahme|Thorax p.a.|THORAX AP LIEGEND|RX TORACE|Rx de tórax PA|Thoracic structure|Lungs
|Entire chest|Chest wall|Chest X-Ray|CXR_PORT|胸部正位|胸部X線|胸部正面立位|胸片|両肺|흉부 정면|단순흉부촬영
|органы грудной клетки|ОГК прямая|RTG klatki piersiowej|prsni koš|Röntgen Thorax|cardiothoracic|intrathorakal
|THORAX 2|heart and lungs|CHEST ADULT|CHEST PEDIATRIC|bröstkorg|brystkasse|lungröntgen|hrudní koš|mellkasröntgen
|Thorax im Liegen|Thorax Bettaufnahme|Radiographie du thorax|THX AP|胸部ポータブル|CHEST,AP|X-quang ngực thẳng
"""
LATERAL = """
LL|RL|L LAT|LATERALE|latéral|PROFIL gauche|PERFIL|XTL|SWIMMER'S|seitlich|левая боковая|側面|侧位|측면|boczne|yan
|X-TABLE LATERAL|cross-table|lateraal|LATERO-LATERAL|sidobild|L→R
|SIDE VIEW|CTLAT|προφίλ|ด้านข้าง|šoninė|külg|sivulta
|LATCHEST|CHESTLAT|thoraxlat|DORSAL DECUBITUS LATERAL|LLD LAT|ventral decubitus, lateral|RLD lateral
"""
OBLIQUE = "LAO|rlo|OBL|oblicua|oblíqua|schräg|SCHRAEG|косая|斜位|skośne|λοξή|left anterior oblique"
PA = "PA|οπισθοπρόσθια|P.A.|p/a erect|Postero-Anterior|postéro-antérieur|P→A|後前位"
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


@pytest.mark.parametrize(
    ("listed", "part"), [(SPINE_OR_STERNUM, "other"), (UNSURE, "unknown"), (SURE, "chest")], ids=["spine", "?", "chest"]
)
def test_chest_is_certain_only_without_unknown_words(listed: str, part: str) -> None:
    found = {word: classify_body_part([word]) for word in words(listed)}
    assert {word: kind for word, kind in found.items() if kind != part} == {}


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
        ("LAT DECUBITUS|Linke Seitenlage|FACE|正面|прямая|Frontal|de frente|أمامي", "frontal", None),
        ("left lateral decubitus|decúbito lateral derecho|LAT DECUB", "frontal", None),
        ("ERECT|2 Ebenen|supine|bilateral|LEFT|L/R|L+R|CHEST (R/L)|0|99|TBD|keine Angabe", "", None),
        ("Q7|SMITH|AP/LAT|AXIAL|LORDOTIC|apical|45 degrees|45°|45|axiale", "unknown", None),
        ("LLD OBL|RAO 45°", "oblique", None),
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


def test_usual_words_are_classified_as_by_the_patterns() -> None:
    assert {words: words_to_body_part(words) for words in USUAL_PARTS} == USUAL_PARTS
    assert {words: words_to_view(words) for words in USUAL_VIEWS} == USUAL_VIEWS
    assert all(fold(words) == words for words in (*USUAL_PARTS, *USUAL_VIEWS))
