"""The way through a hospital's archive: stored there, fetched, computed, stored back, and found beside its source."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_files import stack
from thinslice.cli import main
from thinslice.plan import Plan

pytestmark = pytest.mark.hospital

SERVERS = ("Orthanc", "/usr/sbin/Orthanc")
PLUGINS = Path("/usr/share/orthanc/plugins")


def free_port():
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return there.getsockname()[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The address of a DICOMweb server that lives as long as the tests of this module."""
    dicomweb = pytest.importorskip("dicomweb_client", reason="pip install dicomweb-client")
    server = next((found for found in map(shutil.which, SERVERS) if found), None)
    if server is None or not list(PLUGINS.glob("libOrthancDicomWeb*")):
        pytest.skip("no Orthanc with DICOMweb here; next: apt install orthanc orthanc-dicomweb")
    home, port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "Name": "test",
        "StorageDirectory": str(home / "store"),
        "IndexDirectory": str(home / "store"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGINS)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (home / "orthanc.json").write_text(json.dumps(settings))
    with open(home / "log", "wb") as log:
        process = subprocess.Popen([server, str(home / "orthanc.json")], stdout=log, stderr=log)
    try:
        client = dicomweb.api.DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web")
        for _ in range(100):
            try:
                client.search_for_studies()
                break
            except Exception:
                if process.poll() is not None:
                    pytest.skip(f"Orthanc does not start: {(home / 'log').read_text()[-300:]}")
                time.sleep(0.1)
        else:
            pytest.fail(f"Orthanc does not answer: {(home / 'log').read_text()[-1000:]}")
        yield client
    finally:
        process.terminate()
        process.wait(20)


def test_a_series_goes_through_an_archive_and_its_computed_one_is_found_beside_it(archive, tmp_path):
    values = stack(tmp_path / "scanner", series=4, description="T2 TSE tra")
    archive.store_instances(datasets=[dcmread(file) for file in (tmp_path / "scanner").iterdir()])

    (tmp_path / "fetched").mkdir()
    for number, ds in enumerate(archive.retrieve_series("1.2.3.4", "1.2.3.4.4")):
        ds.save_as(tmp_path / "fetched" / f"{number}.dcm", enforce_file_format=True)
    code = main(["enhance", "-i", str(tmp_path / "fetched"), "-o", str(tmp_path / "thin"), "--factor", "4"])
    assert code == 0

    thin = [dcmread(file) for file in sorted((tmp_path / "thin").glob("*.dcm"))]
    archive.store_instances(datasets=thin)

    found = archive.search_for_series("1.2.3.4")
    number, uid = "00200011", "0020000E"
    assert {series[number]["Value"][0] for series in found} == {4, 4001}
    new = next(series for series in found if series[number]["Value"][0] == 4001)
    assert new[uid]["Value"] == [thin[0].SeriesInstanceUID]
    assert len(archive.search_for_studies()) == 1
    assert len(archive.search_for_instances("1.2.3.4", thin[0].SeriesInstanceUID)) == 32

    back = sorted(archive.retrieve_series("1.2.3.4", thin[0].SeriesInstanceUID), key=lambda ds: ds.InstanceNumber)
    assert len(back) == 32
    for sent, got in zip(thin, back, strict=True):
        assert np.array_equal(sent.pixel_array, got.pixel_array)
        assert sent.ImagePositionPatient == got.ImagePositionPatient
        assert sent.PatientID == got.PatientID == "4711"
        assert "COMPUTED" in got.SeriesDescription
    plan = Plan.from_json(json.dumps(json.loads((tmp_path / "thin" / "thinslice.json").read_text())["plan"]))
    again = np.tensordot(plan.acquisition().matrix(), np.stack([ds.pixel_array for ds in back]).astype(float), axes=1)
    assert np.abs(again - values).max() < 0.1 * values.max()


def test_storing_the_same_answer_twice_leaves_one(archive, tmp_path):
    """Its identifiers are the same, so an archive knows it."""
    stack(tmp_path / "in", series=9)
    for out in ("a", "b"):
        assert main(["enhance", "-i", str(tmp_path / "in"), "-o", str(tmp_path / out), "--model", "linear"]) == 0
        archive.store_instances(datasets=[dcmread(file) for file in (tmp_path / out).glob("*.dcm")])
    found = [series["00200011"]["Value"][0] for series in archive.search_for_series("1.2.3.4")]
    assert found.count(9001) == 1
    uid = dcmread(tmp_path / "a" / "IM0001.dcm").SeriesInstanceUID
    assert len(archive.search_for_instances("1.2.3.4", uid)) == 36
