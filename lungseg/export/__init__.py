"""Write predictions as masks, overlays, COCO or DICOM segmentations."""
