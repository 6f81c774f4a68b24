"""DICOM series in and out, the door to pydicom.

`series` finds them, `pixels` reads one, `derived` writes a new one; `groups` finds those that belong together, and
`combined` writes what became of several.
"""
