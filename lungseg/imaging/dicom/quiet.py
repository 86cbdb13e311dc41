"""Silence the DICOM libraries, whose warnings and log lines can quote values of a patient."""

import logging
import warnings

_LIBRARIES = ("pydicom", "highdicom", "pylibjpeg", "openjpeg", "rle", "imagecodecs", "PIL")


def silence_libraries() -> None:
    """Silence warnings and log lines of the DICOM libraries and their decoders.

    Repeated for each file, because other code may reset the filters; not undone, because threads share them.
    """
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_LIBRARIES)})(\.|$)")
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # loggers below it inherit the level
