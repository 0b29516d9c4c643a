"""Data files of any bytes: an array, or a refusal with the name of the file; never code, a hang or much memory."""

import gzip
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
from hostile import MANY_MUTATIONS, MUTATIONS, hostile_bytes, outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppgen import data
from ppgen.data.streamed_files import open_stream

TABLE = np.arange(12.0).reshape(6, 2) / 7
GRAY = np.arange(120, dtype=np.uint8).reshape(6, 4, 5)


def written(write, *arguments, **options) -> bytes:
    """What a function writes into a file."""
    file = io.BytesIO()
    write(file, *arguments, **options)
    return file.getvalue()


def image(kind: str) -> bytes:
    return written(lambda file: Image.fromarray(GRAY[0]).save(file, kind))


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def npy(header: str, content: bytes = b"") -> bytes:
    """A .npy file with any header."""
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def claim(shape: str, dtype: str = "<f8") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"


FRAME = pd.DataFrame(TABLE, columns=["a", "b"])
VALID = {
    ".csv": FRAME.to_csv(index=False).encode(),
    ".parquet": written(lambda file: FRAME.to_parquet(file)),
    ".npy": written(np.save, TABLE),
    ".npz": written(np.savez_compressed, x=GRAY, y=np.arange(6)),
    ".svmlight": b"".join(b"%d 0:%d 3:%d\n" % (i % 2, i, i + 1) for i in range(6)),
    "-idx3-ubyte": idx(GRAY.shape, GRAY.tobytes()),
    "-idx3-ubyte.gz": gzip.compress(idx(GRAY.shape, GRAY.tobytes())),
}
IMAGES = {".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".jpg": "JPEG", ".webp": "WEBP", ".pgm": "PPM"}


STREAMED = (".npy", ".parquet")


def read(folder, name: str, content: bytes, *, stream: bool = False) -> None:
    """Reads bytes under a name, all rows of them; images in a folder of their own."""
    path = folder / f"any{name}"
    path.write_bytes(content)
    source = folder if name in IMAGES else path
    outcome(lambda: data.load(source, scale="none", stream=stream).x[:], source)


@pytest.mark.filterwarnings("ignore:(?s).* is read with separator")
@pytest.mark.parametrize("name", VALID)
def test_any_bytes_are_data_or_refused(name, tmp_path):
    @MUTATIONS
    @given(hostile_bytes(VALID[name]))
    def check(content):
        read(tmp_path, name, content)

    check()


@pytest.mark.parametrize("name", STREAMED)
def test_any_bytes_are_streamed_or_refused(name, tmp_path):
    @MUTATIONS
    @given(hostile_bytes(VALID[name]))
    def check(content):
        read(tmp_path, name, content, stream=True)

    check()


@MUTATIONS
@given(st.sampled_from(list(IMAGES)), st.data())
def test_any_bytes_are_images_or_refused(tmp_path_factory, name, draw):
    folder = tmp_path_factory.mktemp("images")
    read(folder, name, draw.draw(hostile_bytes(image(IMAGES[name]))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(?s).* is read with separator")
@pytest.mark.parametrize(
    ("name", "stream"), [*((name, False) for name in (*VALID, *IMAGES)), *((name, True) for name in STREAMED)]
)
def test_many_bytes_are_data_or_refused(name, stream, tmp_path):
    @MANY_MUTATIONS
    @given(hostile_bytes(image(IMAGES[name]) if name in IMAGES else VALID[name]))
    def check(content):
        read(tmp_path, name, content, stream=stream)

    check()


def zip_of(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def zip_that_claims(size: int) -> bytes:
    """A zip file whose directory claims a size for its only part."""
    content = bytearray(zip_of("x.npy", npy(claim(f"({size // 8}, 1)")) + bytes(80)))
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", min(size, 2**32 - 2))
    return bytes(content)


def png(width: int, height: int) -> bytes:
    """A PNG image whose header claims a size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, b"IDAT", b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


TERABYTES = {
    "shape.npy": (npy(claim("(1000000000000, 10)"), bytes(80)), "but there are 208"),
    "negative.npy": (npy(claim("(-1, -1)"), bytes(80)), "claims an array of shape"),
    "empty.npy": (npy(claim("(1000000, 1000000)", "<U0"), bytes(80)), "claims an array of shape"),
    "object.npy": (npy(claim("(2, 2)", "|O"), b"cos\nsystem\n(S'echo'\ntR."), "Python objects, which only pickle"),
    "object.npz": (zip_of("x.npy", npy(claim("(2, 2)", "|O"), b"cos\nsystem\n(S'echo'\ntR.")), "Python objects"),
    "claims.npz": (zip_that_claims(2**40), "claims 4294967294 bytes, more than it can hold"),
    "header.npz": (zip_of("x.npy", npy(claim("(1000000000000, 10)"), bytes(80))), "but there are 208"),
    "other.npz": (zip_of("x.npy", npy(claim("(2, 5)"), bytes(80)), zipfile.ZIP_LZMA), "compressed in another way"),
    "sizes.idx": (idx((2**32 - 1, 2**32 - 1), bytes(80)), "it has .* bytes, but the file has 92"),
    "axes.idx": (idx((1,) * 200, b"1"), "a rank of at most 8"),
    "sizes.idx.gz": (gzip.compress(idx((2**32 - 1, 2**32 - 1), bytes(80))), "it has .* bytes, but"),
    "column.svmlight": (b"1 0:1\n1 1000000000000:1\n", "column.svmlight"),
    "columns.svmlight": (b"1 0:1\n1 2000000000:1\n" * 1000, r"it claims 32 TB|svmlight"),
}


@pytest.mark.parametrize("name", TERABYTES)
def test_a_claim_that_the_file_cannot_hold_is_refused(name, tmp_path):
    content, message = TERABYTES[name]
    (tmp_path / name).write_bytes(content)
    for stream in (False, True) if name.endswith(STREAMED) else (False,):
        with pytest.raises(ValueError, match=message) as raised:
            data.load(tmp_path / name, stream=stream)
        assert name in str(raised.value)


def test_a_row_group_that_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    frame, path = pd.DataFrame({"a": np.zeros(200_000), "b": 0}), tmp_path / "bomb.parquet"
    frame.to_parquet(path)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("ppgen.utils.regular_files.memory", lambda: 500_000)
    with pytest.raises(ValueError, match=r"bomb\.parquet: it claims 3 MB .* smaller row groups, .*row_group_size"):
        data.load(path, stream=True)
    frame.to_parquet(path, row_group_size=10_000)
    assert data.load(path, stream=True, scale="none", form="unit").x.shape == (200_000, 2)
    with pytest.raises(ValueError, match=r"bomb\.parquet: it claims 2 MB"):  # labels are read whole
        data.load(path, stream=True, label="b")


def test_a_row_group_of_another_length_than_it_claims_is_refused(tmp_path):
    FRAME.to_parquet(tmp_path / "x.parquet")
    opened = open_stream(tmp_path / "x.parquet", None).x
    pd.DataFrame(TABLE[:4], columns=["a", "b"]).to_parquet(tmp_path / "x.parquet")  # in the meantime
    worker = pickle.loads(pickle.dumps(opened))
    with pytest.raises(ValueError, match=r"x\.parquet: row group 0 claims 6 rows, and has 4"):
        worker.read(np.arange(6))


def tiff(width: int, height: int) -> bytes:
    """A TIFF image of 5 x 4 pixels whose header claims another size."""
    content = image("TIFF")
    for tag, found, claimed in ((256, 5, width), (257, 4, height)):
        entry = struct.pack("<HHII", tag, 4, 1, found)
        assert content.count(entry) == 1
        content = content.replace(entry, struct.pack("<HHII", tag, 4, 1, claimed))
    return content


@pytest.mark.parametrize(("width", "height"), [(5, 16_777_220), (5, 5), (4000, 4)])
def test_a_tiff_image_of_which_parts_are_missing_is_refused(width, height, tmp_path):
    """Pillow reads what is missing as black, and takes seconds for large claims."""
    (tmp_path / "a.tif").write_bytes(tiff(5, 4))
    assert np.array_equal(data.load(tmp_path, form="integer", validation=0, test=0).x[0, 0], GRAY[0])
    (tmp_path / "a.tif").write_bytes(tiff(width, height))
    with pytest.raises(ValueError, match=r"a\.tif is not a readable image"):
        data.load(tmp_path)


def test_what_decompresses_to_more_than_fits_into_memory_is_refused(tmp_path, monkeypatch):
    bomb = np.zeros((1000, 1000), np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", x=bomb)
    (tmp_path / "bomb.idx.gz").write_bytes(gzip.compress(idx(bomb.shape, bomb.tobytes())))
    pd.DataFrame({"a": np.zeros(200_000)}).to_parquet(tmp_path / "bomb.parquet")
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 10_000
    monkeypatch.setattr("ppgen.utils.regular_files.memory", lambda: 500_000)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=r"it claims . MB of data, and this process can have 500 kB: ") as raised:
            data.load(path)
        assert path.name in str(raised.value)
        assert "stream=True" in str(raised.value)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_claims_too_many_pixels_is_refused(width, height, tmp_path):
    (tmp_path / "a.png").write_bytes(png(width, height))
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        data.load(tmp_path)


def test_a_format_that_starts_a_program_is_no_image(tmp_path):
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(postscript)
    with pytest.raises(ValueError, match="cannot identify image file"):
        data.load(tmp_path)


@pytest.mark.parametrize("name", [*VALID])
def test_pipes_and_folders_are_no_files(name, tmp_path):
    os.mkfifo(tmp_path / f"pipe{name}")
    (tmp_path / f"folder{name}").mkdir()
    for path in tmp_path.iterdir():
        for stream in (False, True):
            with pytest.raises(ValueError, match=path.name):
                data.load(path, stream=stream)


CHILD = """
import resource, sys
from pathlib import Path
import pandas, pyarrow.parquet, sklearn.datasets, torch
from PIL import Image
from ppgen import data
Image.init()
data.load("moons", size=20)  # imports what is left
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        data.load(path)
    except ValueError as error:
        assert path.name in str(error), error
    else:
        raise SystemExit(f"{path} was read")
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs the size of the address space")
def test_refusals_take_little_memory(tmp_path):
    """In a process that can have 300 MB more than its libraries take."""
    for name, (content, _) in TERABYTES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a.png").write_bytes(png(9_000, 9_000))
    subprocess.run([sys.executable, "-c", CHILD, tmp_path], check=True, timeout=120)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20  # kB
