"""Digests of data: one pass, any chunks, every byte counts."""

import numpy as np
import pytest
import torch

from ppgen.data.digest import RowDigest, digest_of_rows
from ppgen.data.streamed_files import open_stream


def in_chunks(cuts, *parts):
    digest = RowDigest()
    for rows in np.split(np.arange(len(parts[0])), cuts):
        digest.add(*(part[rows] for part in parts))
    return digest.hexdigest()


def test_the_digest_does_not_depend_on_chunks_containers_or_byte_order():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.integers(5, size=50)
    expected = digest_of_rows(x, y)
    assert in_chunks([], x, y) == in_chunks([1, 7, 7, 40], x, y) == expected
    assert digest_of_rows(torch.as_tensor(x), torch.as_tensor(y)) == expected
    assert digest_of_rows(x.astype(">f8"), y) == digest_of_rows(np.asfortranarray(x), y) == expected


def test_every_value_type_and_shape_counts():
    x = np.zeros((40_000, 30))
    changed = x.copy()
    changed[-1, -1] = 1e-300
    different = [x, changed, x[:-1], x.astype(np.float32), x.reshape(40_000, 5, 6), x.reshape(-1, 15)]
    digests = {digest_of_rows(part) for part in different} | {digest_of_rows(x, x), digest_of_rows()}
    assert len(digests) == len(different) + 2


def test_a_file_on_disk_has_the_digest_of_its_rows(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 4))
    np.save(tmp_path / "x.npy", x)
    assert digest_of_rows(open_stream(tmp_path / "x.npy", None).x) == digest_of_rows(x)


def test_bfloat16_and_scalars_in_rows():
    x = torch.randn(5)
    assert digest_of_rows(x.bfloat16()) != digest_of_rows(x)
    assert digest_of_rows(x.bfloat16()) == digest_of_rows(x.bfloat16())


def test_chunks_of_other_rows_are_refused():
    digest = RowDigest()
    digest.add(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="expected rows of"):
        digest.add(np.zeros((2, 4)))
