"""Files: every kind is read as it was written, and bad ones are refused with their name."""

import gzip

import numpy as np
import pandas as pd
import pytest
from data_files import CLASSES, CODES, COLOR, GRAY, LABELS, NAMES, TABLE, class_folders, frame, idx, same, save_images
from PIL import Image

from ppgen import data

# file name: (how to write it, label, x, y, label_names, levels)
FILES = {
    "a.csv": (lambda p: frame(NAMES).to_csv(p, index=False), "kind", TABLE, CODES, CLASSES, None),
    "b.csv": (lambda p: frame(LABELS).to_csv(p, index=False), "kind", TABLE, LABELS, None, None),
    "c.csv": (lambda p: pd.DataFrame(TABLE).to_csv(p, index=False), None, TABLE, None, None, None),
    "d.parquet": (lambda p: frame(NAMES).to_parquet(p), "kind", TABLE, CODES, CLASSES, None),
    "e.npy": (lambda p: np.save(p, TABLE), None, TABLE, None, None, None),
    "f.npy": (lambda p: np.save(p, GRAY), None, GRAY[:, None], None, None, 256),
    "g.npy": (lambda p: np.save(p, COLOR), None, COLOR, None, None, 256),
    "h.npy": (lambda p: np.save(p, GRAY > 99), None, (GRAY > 99)[:, None], None, None, 2),
    "i.npy": (lambda p: np.save(p, GRAY / 2), None, GRAY[:, None] / 2, None, None, None),
    "j.npz": (lambda p: np.savez(p, x=TABLE, y=LABELS), None, TABLE, LABELS, None, None),
    "k.npz": (lambda p: np.savez(p, x=TABLE, y=NAMES), None, TABLE, CODES, CLASSES, None),
    "l.npz": (lambda p: np.savez_compressed(p, things=GRAY), None, GRAY[:, None], None, None, 256),
    "m.idx3": (lambda p: p.write_bytes(idx(GRAY, 0x08)), None, GRAY[:, None], None, None, 256),
    "n-idx3-ubyte.gz": (
        lambda p: p.write_bytes(gzip.compress(idx(GRAY, 0x08))),
        None, GRAY[:, None], None, None, 256,
    ),
    "o.idx": (lambda p: p.write_bytes(idx(TABLE, 0x0E)), None, TABLE, None, None, None),
    "p": (lambda p: save_images(p, GRAY), None, GRAY[:, None], None, None, 256),
    "q": (lambda p: save_images(p, COLOR, ".PNG"), None, COLOR, None, None, 256),
    "r": (class_folders, None, GRAY[[2, 3, 4, 5, 0, 1]][:, None], [0] * 4 + [1] * 2, ("cat", "dog"), 256),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_written(name, tmp_path):
    write, label, x, y, label_names, levels = FILES[name]
    path = tmp_path / name
    write(path)
    form = "continuous" if levels is None else "integer"
    d = data.load(path, form=form, scale="none", label=label)
    assert d.x.dtype == (np.float32 if levels is None else np.int64)
    assert same(d.x, x)
    assert same(d.y, y) if y is not None else d.y is None
    assert (d.name, d.label_names, d.levels, d.event_shape) == (name, label_names, levels, x.shape[1:])
    by_string = data.load(str(path), form=form, scale="none", label=label)
    assert same(by_string.x, x)
    assert by_string.name == name


def test_images_are_upright(tmp_path):
    """A camera that was held sideways stores that in EXIF's tag 274: 6 says to rotate by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[274] = 6
    for i, image in enumerate(GRAY):
        Image.fromarray(image).save(tmp_path / f"{i}.png", exif=exif)
    assert same(data.load(tmp_path, form="integer").x, np.rot90(GRAY, -1, axes=(1, 2))[:, None])


def bad_images(folder):
    save_images(folder, GRAY[:2])
    (folder / "2.png").write_bytes(b"not an image")


def mixed_sizes(folder):
    save_images(folder, [GRAY[0], GRAY[1, :3]])


def mixed_depth(folder):
    class_folders(folder)
    save_images(folder, GRAY[:1])


# file name: (how to write it, the message)
BAD_FILES = {
    "a.npy": (lambda p: np.save(p, np.zeros(3)), r"expected a table .* got an array of shape \(3,\)"),
    "b.npy": (lambda p: np.save(p, np.zeros((2,) * 5)), r"expected a table .* got an array of shape"),
    "c.npy": (lambda p: np.save(p, np.zeros((2, 5, 5, 3))), "channels seem to come last"),
    "d.npy": (lambda p: p.write_bytes(b"\x93NUMPY"), "not a readable file of NumPy arrays"),
    "e.npy": (lambda p: p.write_bytes(b""), "not a readable file of NumPy arrays"),
    "f.npy": (lambda p: np.save(p, np.array([[{}]])), "not a readable file of NumPy arrays"),
    "g.npz": (lambda p: np.savez(p, x=TABLE, z=TABLE), "expected arrays 'x' and perhaps 'y', .* got 'x', 'z'"),
    "h.npz": (lambda p: np.savez(p, x=TABLE, y=LABELS[1:]), r"one label per row, shape \(12,\), got .* \(11,\)"),
    "i.npz": (lambda p: np.savez(p, x=TABLE, y=LABELS + 0.5), "labels, row 0 .*: expected a label"),
    "j.npz": (lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "not a readable file of NumPy arrays"),
    "k.idx": (lambda p: p.write_bytes(b"\0\1\x08\3" + bytes(20)), "not an IDX file: .* got 00 01 08 03"),
    "l.idx": (lambda p: p.write_bytes(b"\0\0"), "not an IDX file"),
    "m.idx": (lambda p: p.write_bytes(idx(GRAY, 0x08)[:-1]), "it has 136 bytes, but the file has 135"),
    "n.idx": (lambda p: p.write_bytes(idx(GRAY, 0x08) + b"1"), "it has 136 bytes, but the file has 137"),
    "o.idx": (lambda p: p.write_bytes(idx(GRAY, 0x08)[:7]), "rank 3 .* but the file has 7"),
    "p-ubyte.gz": (lambda p: p.write_bytes(gzip.compress(idx(GRAY, 0x08))[:-9]), "not a complete gzip file"),
    "q.idx1": (lambda p: p.write_bytes(idx(LABELS.astype(np.uint8), 0x08)), r"expected a table .* \(12,\)"),
    "r": (lambda p: p.mkdir(), "hold no images"),
    "s": (bad_images, "2.png is not a readable image"),
    "t": (mixed_sizes, r"\(1, 4, 5\) in .*0.png and \(1, 3, 5\) in .*1.png"),
    "u": (mixed_depth, "beside its subfolders and inside 'cat', 'dog'"),
    "v": (lambda p: save_images(p, [GRAY[0].astype(np.uint16)]), "expected an image with 8 bits"),
    "w.parquet": (lambda p: p.write_bytes(b"PAR1"), "not a readable Parquet file"),
    "x.parquet": (lambda p: frame(NAMES).to_parquet(p), "row 0 .*column 'kind': .* got 'b'"),
    "y.xlsx": (lambda p: p.write_bytes(b""), r"expected a file \.csv, .*\.svmlight, \.libsvm, IDX"),
    "z.npy": (lambda p: np.save(p, np.full((4, 2), np.nan)), "8 of 8 values, in 4 of 4 rows .*columns 0, 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_with_their_name(name, tmp_path):
    write, message = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
        data.load(tmp_path / name)
