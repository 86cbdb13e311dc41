"""Turn DICOM identifiers into keyed pseudonyms."""

import hashlib
import hmac


def pseudonym(patient_id: str, key: bytes) -> str:
    """Sixteen hexadecimal digits that stand for a patient, and say for whom only to who has the key (HMAC-SHA256)."""
    return hmac.new(key, patient_id.strip().encode(), hashlib.sha256).hexdigest()[:16]
