"""DICOM files to test with: classic stacks, enhanced multi-frame images, and the same in other transfer syntaxes."""

from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.valuerep import DSfloat

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

COMPRESSED = {
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG lossless, any predictor": uid.JPEGLossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}
PLAIN = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big-endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}


def oblique(degrees=20.0):
    """Rows and columns turned about two axes."""
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn = about_z @ about_x
    return tuple(float(f"{v:.12f}") for v in (*turn[:, 0], *turn[:, 1]))


def normal_of(orientation):
    return np.cross(orientation[:3], orientation[3:])


def decimal(value):
    """As many digits as a decimal string holds."""
    return DSfloat(float(value), auto_format=True)


def blobs(count, rows, columns, top=1000, seed=0):
    """[count, rows, columns] whole numbers 0 .. top: smooth, and different along every axis."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (count, rows, columns)), indexing="ij")
    image = np.exp(-2 * ((x - 0.3) ** 2 + (y + 0.2) ** 2 + (z - 0.1) ** 2)) + 0.2 * (x > 0.5) + 0.1 * y
    image = image + np.random.default_rng(seed).normal(0, 0.01, image.shape)
    return np.rint(np.clip(image / 1.4, 0, 1) * top).astype(int)


def header(modality="MR", series=1, description="T2 TSE", orientation=AXIAL, spacing=(0.8, 0.9), **more):
    """What all slices of a classic stack share."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = uid.MRImageStorage if modality == "MR" else uid.CTImageStorage
    ds.Modality = modality
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Muster^Erika", "4711", "19640812", "F"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", f"1.2.3.4.{series}"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = "1.2.3.9", ""
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200102", "101112", "7", "A1"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.InstitutionName = "Arzt^A", "Maker", "Hospital"
    ds.SeriesNumber, ds.SeriesDescription, ds.PatientPosition = series, description, "HFS"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"] if modality == "MR" else ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageOrientationPatient, ds.PixelSpacing = [decimal(v) for v in orientation], list(spacing)
    if modality == "MR":
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "SK", "", "2D"
        ds.EchoTime, ds.RepetitionTime, ds.EchoTrainLength, ds.EchoNumbers = 90, 3000, 8, 1
    else:
        ds.KVP, ds.AcquisitionNumber, ds.RescaleSlope, ds.RescaleIntercept = 120, 1, 1, -1024
        ds.RescaleType = "HU"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.WindowCenter, ds.WindowWidth = 400, 900
    block = ds.private_block(0x0029, "SIEMENS SECRET", create=True)
    block.add_new(0x10, "LO", "Muster^Erika")
    for name, value in more.items():
        setattr(ds, name, value)
    return ds


def stack(
    folder,
    *,
    modality="MR",
    count=8,
    rows=20,
    columns=24,
    step_mm=4.0,
    thickness_mm=3.5,
    orientation=AXIAL,
    spacing=(0.8, 0.9),
    origin=(-10.5, -20.25, 30.125),
    drift_mm=0.0,
    series=1,
    description="T2 TSE",
    bits=12,
    signed=False,
    values=None,
    change=None,
    skip=(),
    syntax=uid.ExplicitVRLittleEndian,
    named="IM",
    **more,
):
    """Write a classic stack, one slice a file, in no order; returns the stored values [count, rows, columns].

    Args:
        drift_mm: by how much each slice is shifted along its rows (a tilted gantry).
        change: called with each dataset and its index before it is written.
        skip: indices of slices that are not written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = blobs(count, rows, columns, min(1000, 2 ** (bits - 1) - 1)) if values is None else np.asarray(values)
    for name, index in enumerate(np.random.default_rng(1).permutation(count)):
        if index in skip:
            continue
        ds = header(modality, series, description, orientation, spacing, **more)
        ds.SOPInstanceUID = f"1.2.3.4.{series}.{index + 1}"
        ds.InstanceNumber = int(index) + 1
        position = np.array(origin) + index * (step_mm * normal_of(orientation) + drift_mm * np.array(orientation[:3]))
        ds.ImagePositionPatient = [decimal(v) for v in position]
        ds.SliceLocation = f"{position @ normal_of(orientation):.10g}"
        if thickness_mm is not None:
            ds.SliceThickness = thickness_mm
        ds.AcquisitionTime = f"10{index % 60:02d}00"
        set_pixels(ds, values[index], bits, signed)
        if change is not None:
            change(ds, int(index))
        save(ds, folder / f"{named}{name:03d}", syntax)
    return values


def set_pixels(ds, values, bits=12, signed=False):
    """Stored values [rows, columns] or [frames, rows, columns] into a dataset."""
    ds.Rows, ds.Columns = values.shape[-2:]
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    kind = f"{'i' if signed else 'u'}{ds.BitsAllocated // 8}"
    ds.PixelData = np.asarray(values).astype("<" + kind).tobytes()
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"


def save(ds, path, syntax=uid.ExplicitVRLittleEndian):
    """Write a dataset with little-endian voxels in a transfer syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax if syntax in PLAIN.values() else uid.ExplicitVRLittleEndian
    if syntax == uid.ExplicitVRBigEndian and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
    ds.save_as(path, enforce_file_format=True)
    if syntax in COMPRESSED.values():
        compress(path, syntax)


def compress(path, syntax):
    """Rewrite a file in a compressed transfer syntax."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def enhanced(path, *, count=6, rows=20, columns=24, step_mm=4.0, echoes=1, origin=(1.0, 2.0, 3.0), modality="MR"):
    """Write one enhanced multi-frame image; returns the stored values [frames, rows, columns].

    The frames run from the last slice to the first, echo by echo.
    """
    ds = header(modality, 3, "3D ENH")
    for name in ("ImageOrientationPatient", "PixelSpacing", "EchoTime", "EchoNumbers", "WindowCenter", "WindowWidth"):
        if name in ds:
            delattr(ds, name)
    ds.SOPClassUID = uid.EnhancedMRImageStorage if modality == "MR" else uid.EnhancedCTImageStorage
    ds.SOPInstanceUID, ds.InstanceNumber = "1.2.3.4.3.1", 1
    frames = [(echo, index) for echo in range(echoes) for index in reversed(range(count))]
    values = np.stack([blobs(count, rows, columns)[index] // (echo + 1) for echo, index in frames])
    ds.NumberOfFrames = len(frames)
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([_item(ImageOrientationPatient=list(AXIAL))])
    shared.PixelMeasuresSequence = Sequence([_item(PixelSpacing=[0.8, 0.9], SliceThickness=3.5)])
    shared.PixelValueTransformationSequence = Sequence(
        [_item(RescaleSlope="2.5", RescaleIntercept="-10", RescaleType="US")]
    )
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for echo, index in frames:
        group = Dataset()
        position = [origin[0], origin[1], origin[2] + index * step_mm]
        group.PlanePositionSequence = Sequence([_item(ImagePositionPatient=position)])
        group.MREchoSequence = Sequence([_item(EffectiveEchoTime=10.0 * (echo + 1))])
        group.FrameVOILUTSequence = Sequence([_item(WindowCenter=300 + index, WindowWidth=600)])
        kind = _item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])
        setattr(group, "MRImageFrameTypeSequence" if modality == "MR" else "CTImageFrameTypeSequence", Sequence([kind]))
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for name in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
        if name in ds:
            delattr(ds, name)
    set_pixels(ds, values)
    save(ds, path)
    return values


def _item(**values):
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
