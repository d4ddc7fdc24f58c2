"""HDF5 files on a full disk: an error with its number, and no crash when the process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py")

SCRIPT = """
import errno, resource, sys
from pathlib import Path
import numpy as np
from densepath.core.hdf5 import new_hdf5

def write(path):
    with new_hdf5(path) as file:
        features = file.create_dataset("features", (40, 1000), "f4", chunks=(8, 1000))
        for row in range(40):
            features[row] = row
        file.create_dataset("names", data=np.zeros(5000))

folder = Path(sys.argv[1])
for limit in (500, 3000, 50_000, 170_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(folder / f"{limit}.h5")
    except OSError as error:
        print(limit, errno.errorcode[error.errno])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write(folder / "whole.h5")
"""


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    import h5py

    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:-1] == [f"{limit} EFBIG" for limit in (500, 3000, 50_000, 170_000)]
    with h5py.File(tmp_path / "whole.h5") as file:
        assert file["features"][:].sum() == 1000 * sum(range(40))
