"""Scans in files: NIfTI, what SimpleITK reads, DICOM series; and masks as DICOM segmentations."""
