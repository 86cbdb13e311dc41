"""Turn DICOM identifiers into keyed pseudonyms."""

import hashlib
import hmac


def pseudonym(patient_id: str, key: bytes) -> str:
    """Return 16 hexadecimal digits of HMAC-SHA256; linking them to the patient requires the key."""
    return hmac.new(key, patient_id.strip().encode(), hashlib.sha256).hexdigest()[:16]
