"""Words in names of folders and labels, in several languages, and what they mean."""

import re
import unicodedata
from functools import lru_cache

# Without accents, in any order and case, with or without blanks, underscores and hyphens between them.
_WORDS = {
    "image": r"images?|imgs?|xrays?|cxrs?|radiographs?|films?|bilder|imagens|imagenes|immagini",
    "mask": r"masks?|labelmaps?|labels?|segmentations|segs?|annotations|annots?|annos?|groundtruths?|gts?|contours"
    r"|lbls?|masken?|masques?|mascaras?|maschere|maska|maski|etiquetas|anotaciones|anotacoes|segmentaciones"
    r"|segmentacoes|segmentazioni|segmentierungen|маск[аи]|разметк[аи]|マスク|마스크|掩[码膜模]|遮罩|标[注签]|標[注籤]",
    # A data set is often called "Lung Segmentation", so these are masks only beside images.
    "weak_mask": r"segmentation|annotation|delineations?|segmented|segmentierung|truths?|goldstandards?|分割",
    "lung": r"lungfields?|lungs?|pulmonary|lunges?|lungen(?:feld|felder|flugel)?|lunga|lungor(?:na)?|longen"
    r"|poumons?|pulmao|pulmoes|pulmon(?:es)?|polmon[ei]|p[lł]uc[aoe]|plice|keuhkot?|tudok?|akciger(?:ler)?|paruparu|phoi"
    r"|легкие|легкое|легких|легені|легеня|肺部?|肺野|폐",
    "left": r"left|links|linke[rs]?|gauche|esquerd[ao]|izquierd[ao]|sinistr[ao]|lewe|vanster|левое|ліва|左",
    "right": r"right|rechts|rechte[rs]?|droite?|direit[ao]|derech[ao]|destr[ao]|prawe|hoger|правое|права|右",
    "lesion": r"infect(?:ion|ed)s?|lesions?|nodules?|tumou?rs?|cancers?|mass(?:es)?|pneumonia|consolidations?"
    r"|opacit(?:y|ies)|diseased?|defects?|ggos?|covid(?:19)?|tb|tuberculosis|fibrosis|emphysema|atelectas[ie]s|cavit(?:y|ies)"
    r"|infiltrat(?:e|es|ion|ions)|infektion(?:en)?|infeccion(?:es)?|infeccao|infezioni?|lasion(?:en)?|lesao|lesoes|lesiones|nodulos?"
    r"|patholog(?:y|ies|ical)|abnormal(?:ity|ities)?",
    "other": r"hearts?|herz|coeur|coracao|corazon|cuore|cardiac|clavicles?|collarbones?|ribs?|bones?|pneumothorax"
    r"|effusions?|trachea|spines?|diaphragms?|mediastinum|aorta|cardiomegaly|body|thorax|devices?|catheters?|tubes?|wires?"
    r"|vessels?|airways?|bronch(?:i|us)|o?esophagus|stomach|liver|spleen|breasts?|scapulae?|shoulders?|sternum"
    r"|vertebrae?|muscles?|fat|skin|fractures?|pacemakers?|overlays?|saliency|heatmaps?|attention",
    "subset": r"train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?",
    "neutral": r"png|jpe?g|tiff?|bmp|gif|manual|binary|expert|chest|both|all|final|full|original|raw|tr|ts"
    r"|\d+(?:px|bit)?",
    "region": r"healthy|normal|whole|total|entire|areas?|regions?|zones?|parenchyma|tissues?|fields?|lobes?|upper"
    r"|middle|lower|superior|inferior",
}
_WORD_KINDS = {kind: re.compile(words) for kind, words in _WORDS.items()}
# Parts of longer words, as in `infectedregion` or `ribcage`.
_PARTS = {
    "lesion": re.compile(
        r"infect|infekt|infecc|infez|lesion|lasion|nodul|covid|opacit|consolidat|tubercul|tumou?r|pneumoni|disease"
    ),
    "other": re.compile(r"heart|clavic|pneumothora|effusion|vessel|trachea|diaphragm|vertebra|bone|^rib|catheter"),
}
_SIDES = {"l": "left", "r": "right"}


@lru_cache(100_000)
def tokens_of(name: str) -> tuple[str, ...]:
    """Split a name at blanks, hyphens, underscores and capitals; without accents, in lower case."""
    spaced = re.sub(r"([a-z]{2})([A-Z][a-z])", r"\1 \2", name)
    letters = [letter for letter in unicodedata.normalize("NFKD", spaced.lower()) if not unicodedata.combining(letter)]
    return tuple(filter(None, re.split(r"[\W_]+", unicodedata.normalize("NFC", "".join(letters)))))


def words_of(tokens: tuple[str, ...]) -> dict[str, str] | None:
    """Return a known word of each kind in a name, or None if a part of the name is unknown; L and R are sides."""
    return parse("".join(_SIDES.get(token, token) for token in tokens))


def findings_in(tokens: tuple[str, ...]) -> set[str]:
    """Return `lesion` and `other` if a word, or a part of one, names a lesion or another structure."""
    parts_named = {kind for token in tokens for kind in parse(token) or () if kind in _PARTS}
    return parts_named | {kind for kind, parts in _PARTS.items() if any(parts.search(token) for token in tokens)}


@lru_cache(100_000)  # of every rest, too: else the time would grow exponentially with the length
def parse(key: str) -> dict[str, str] | None:
    """Split a key into known words; return a word of each kind, or None if a part of the key is unknown."""
    if not key:
        return {}
    for kind, pattern in _WORD_KINDS.items():
        for end in range(len(key), 0, -1):
            if pattern.fullmatch(key, 0, end):
                rest = parse(key[end:])
                if rest is not None:
                    return {kind: key[:end], **rest}
    return None
