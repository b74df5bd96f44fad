"""No shared object is loaded because an input file, or the environment, names one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dumps.samples import write_plain_dump

ROOT = Path(__file__).parents[2]
READ = (
    "import sys\n{before}from turbocode.dumps import open_dump\nfrom turbocode.errors import DataError\n"
    "try: open_dump(sys.argv[1])\nexcept DataError: sys.exit(65)\n"
)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("before", ["", "import h5py\n"], ids=["first", "after h5py"])
def test_plugin_path_is_not_searched(tmp_path: Path, before: str) -> None:
    import h5py

    marker, source = tmp_path / "marker", tmp_path / "plugin.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void) "
        f'{{ FILE *f = fopen("{marker}", "w"); if (f) fclose(f); }}\n'
        "int H5PLget_plugin_type(void) { return 0; }\nconst void *H5PLget_plugin_info(void) { return 0; }\n"
    )
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    library = plugins / "libplugin.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)

    def change(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 1, 12, 8))
        plist.set_filter(307, h5py.h5z.FLAG_OPTIONAL, ())
        del file["layers/000/keys"]
        space = h5py.h5s.create_simple((2, 2, 12, 8))
        h5py.h5d.create(file.id, b"layers/000/keys", h5py.h5t.IEEE_F16LE, space, plist)

    write_plain_dump(tmp_path / "dump.h5", change)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HDF5_PLUGIN_PATH": str(plugins)}
    environment.pop("HDF5_PLUGIN_PRELOAD", None)
    ended = subprocess.run(
        [sys.executable, "-c", READ.format(before=before), str(tmp_path / "dump.h5")], env=environment, check=False
    )
    assert ended.returncode == 65
    assert not marker.exists()
    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})"], check=True)
    assert marker.exists(), "the marker would not have shown anything"
