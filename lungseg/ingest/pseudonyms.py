"""Read the secret key for pseudonyms."""

import os

from lungseg import storage
from lungseg.errors import InputError, SettingsError

_KEY_VARIABLE, _MIN_KEY_BYTES = "LUNGSEG_PATIENT_KEY", 16


def read_key(path: str) -> bytes | None:
    """Read the secret key for pseudonyms from a file, or from LUNGSEG_PATIENT_KEY if no path is given.

    Raises:
        SettingsError: the file cannot be read, or the key has fewer than 16 bytes.

    """
    if path:
        try:
            key = storage.read_bytes(path).strip()
        except InputError as error:
            raise SettingsError(f"patient_key: {error}") from None
    else:
        key = os.environ.get(_KEY_VARIABLE, "").strip().encode()
        if not key:
            return None
    if len(key) < _MIN_KEY_BYTES:
        raise SettingsError(
            f"patient_key: {path or _KEY_VARIABLE} has {len(key)} bytes, expected {_MIN_KEY_BYTES} or more: make a key "
            "with `openssl rand -hex 32`"
        )
    return key
