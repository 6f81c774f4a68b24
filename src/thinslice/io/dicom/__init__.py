"""DICOM series in and out: `series` finds them, `pixels` reads one, `derived` writes a new one. The door to pydicom."""
