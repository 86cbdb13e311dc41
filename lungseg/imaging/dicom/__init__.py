"""Read DICOM images; write DICOM segmentations."""
