"""Bytes to pixels and back: codecs, DICOM, intensity, geometry."""
