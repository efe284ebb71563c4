"""Reading scans: NIfTI, the formats of SimpleITK, DICOM series; and writing masks as DICOM segmentations."""
