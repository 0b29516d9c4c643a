"""Two domains as data: common units, labels and columns; labels of the target are hidden."""

import numpy as np
import pandas as pd
import pytest

from ppgen import data
from ppgen.data.domains import load_domains

labels_are_hidden = pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")


@labels_are_hidden
def test_domains_share_units_and_the_target_has_hidden_labels():
    pair = load_domains("moons", "rotated_moons", size=200, scale="standard")
    raw = data.load("rotated_moons", size=200, seed=1, scale="none")
    np.testing.assert_allclose(pair.source.scaler.inverse(pair.target.x), raw.x, atol=1e-6)
    rows = pair.rows("train")
    n, m = len(pair.source.train.x), len(pair.target.train.x)
    assert rows.d.tolist() == [0] * n + [1] * m
    assert (rows.y[n:] == -1).all()
    assert np.array_equal(rows.y[:n], pair.source.train.y)
    assert np.array_equal(rows.x, np.concatenate([pair.source.train.x, pair.target.train.x]))
    assert np.array_equal(pair.target.y, raw.y)
    assert not np.array_equal(pair.source.y, pair.target.y)  # toy data sets do not share their samples


def table(path, labels, columns=("a", "b"), n=40):
    values = np.random.default_rng(len(path.name)).normal(size=(n, len(columns)))
    frame = pd.DataFrame(values, columns=list(columns))
    if labels is not None:
        frame["kind"] = np.resize(labels, n)
    frame.to_csv(path, index=False)
    return str(path)


@labels_are_hidden
def test_labels_are_matched_by_name(tmp_path):
    source = table(tmp_path / "source.csv", ["cat", "dog", "eel"])
    target = table(tmp_path / "target.csv", ["eel", "dog"])
    pair = load_domains(source, target, label="kind")
    names = np.array(pair.source.label_names)
    assert pair.target.label_names == pair.source.label_names
    assert names[np.unique(pair.target.y)].tolist() == ["dog", "eel"]
    assert pair.num_classes == 3


@labels_are_hidden
def test_sparse_tables_get_the_columns_of_the_widest(tmp_path):
    source, target = tmp_path / "source.svmlight", tmp_path / "target.svmlight"
    source.write_text("".join(f"{'-1' if i % 2 else '1'} 0:{i} 2:0.5\n" for i in range(20)))
    target.write_text("".join(f"{'1' if i % 2 else '-1'} 1:{i + 1} 4:2\n" for i in range(20)))
    pair = load_domains(str(source), str(target), scale="none")
    assert pair.event_shape == (5,)
    assert pair.source.label_names == ("-1", "1")
    np.testing.assert_array_equal(pair.source.x[:, 0], range(20))
    np.testing.assert_array_equal(pair.source.y, [1, 0] * 10)
    np.testing.assert_array_equal(pair.target.y, [0, 1] * 10)
    np.testing.assert_array_equal(pair.target.x[3], [0, 4, 0, 0, 2])
    with pytest.raises(ValueError, match="is not a readable svmlight file"):
        data.load(source, features=2)
    (tmp_path / "bad.svmlight").write_text("1 0:x\n")
    with pytest.raises(ValueError, match=r"bad\.svmlight is not a readable svmlight file"):
        data.load(tmp_path / "bad.svmlight")
    with pytest.raises(ValueError, match="features=3 is an option of sparse tables"):
        data.load(table(tmp_path / "plain.csv", None), features=3)


def test_each_sparse_table_is_read_once(tmp_path, monkeypatch):
    import sklearn.datasets

    files = {}
    for number, part in enumerate(("source", "target", "source_test", "target_test")):
        files[part] = tmp_path / f"{part}.svmlight"
        files[part].write_text("".join(f"{i % 2} {number}:{i + 1}\n" for i in range(20)))
    read, original = [], sklearn.datasets.load_svmlight_file
    monkeypatch.setattr(
        sklearn.datasets, "load_svmlight_file", lambda path, **options: read.append(path) or original(path, **options)
    )
    with pytest.warns(UserWarning, match="not trained on"):
        pair = load_domains(**files, scale="none")
    assert sorted(read) == sorted(map(str, files.values()))
    assert pair.event_shape == (4,)  # of the widest, a test file
    for domain, column in (("source", 2), ("target", 3)):
        data_of = getattr(pair, domain)
        np.testing.assert_array_equal(data_of.test.x[:, column], np.arange(20) + 1)
        assert not data_of.train.x[:, column].any()


@labels_are_hidden
def test_a_test_file_replaces_the_test_split(tmp_path):
    source = table(tmp_path / "s.csv", ["cat", "dog"])
    files = {
        "source_test": table(tmp_path / "source_test.csv", ["dog"], n=6),
        "target_test": table(tmp_path / "the_target_test.csv", ["dog", "cat"], n=8),
    }
    alone = load_domains(source, table(tmp_path / "tt.csv", None), label="kind", test=0.0)
    pair = load_domains(source, str(tmp_path / "tt.csv"), label="kind", **files)
    for domain, n in (("source", 6), ("target", 8)):
        held, main, x = getattr(pair, domain), getattr(alone, domain), pd.read_csv(files[f"{domain}_test"])
        np.testing.assert_array_equal(held.train.x, main.train.x)  # in the units of the train rows, which are the same
        np.testing.assert_array_equal(held.validation.x, main.validation.x)
        np.testing.assert_allclose(pair.source.scaler.inverse(held.test.x), x[["a", "b"]], atol=1e-6)
        assert len(held.test.x) == n
    assert pair.source.test.y.tolist() == [1] * 6
    assert pair.target.test.y.tolist() == [1, 0] * 4
    assert (pair.target.train.y == -1).all()
    one = load_domains(source, str(tmp_path / "tt.csv"), label="kind", size=20, source_test=files["source_test"])
    assert (len(one.source.x), len(one.target.test.x)) == (26, 4)  # the target's by its share


def numbered(path, labels):
    return table(path, np.array(labels))


NEGATIVE = {
    "of a source": (
        "source",
        [0, 1, -1, -1],
        r"source\.csv: 20 of 40 labels of the source are below 0, the least is -1",
    ),
    "of a source's test": (
        "source_test",
        [0, 1, 1, -1],
        r"source_test\.csv: 10 of 40 rows have labels .* not have: -1",
    ),
    "of a target": (
        "target",
        [0, -2, 1, -1],
        r"target\.csv: 10 of 40 rows have labels that the source .* have: -2; it",
    ),
    "of a target's test": ("target_test", [-2, -1], r"target_test\.csv: 20 of 40 rows have labels .* not have: -2"),
}


@labels_are_hidden
@pytest.mark.parametrize("case", NEGATIVE)
def test_negative_labels_are_reported_with_their_file(case, tmp_path):
    part, labels, message = NEGATIVE[case]
    given = {"source": [0, 1], "target": [1], "source_test": [0, 1], "target_test": [1]} | {part: labels}
    files = {name: numbered(tmp_path / f"{name}.csv", values) for name, values in given.items()}
    with pytest.raises(ValueError, match=message):
        load_domains(**files, label="kind")


@labels_are_hidden
def test_minus_one_is_an_unknown_label_of_the_target(tmp_path):
    source = numbered(tmp_path / "source.csv", [0, 1, 2])
    pair = load_domains(source, numbered(tmp_path / "some.csv", [2, -1, 0, -1]), label="kind")
    assert pair.target.y.tolist() == [2, -1, 0, -1] * 10
    assert load_domains(source, numbered(tmp_path / "none.csv", [-1]), label="kind").target.y is None


def test_a_warning_says_that_target_labels_are_not_trained_on():
    with pytest.warns(UserWarning, match="rotated_moons: the target's labels are not trained on"):
        load_domains("moons", "rotated_moons", size=50)


def test_incompatible_domains_are_reported_with_their_files(tmp_path):
    plain = table(tmp_path / "plain.csv", None)
    labeled = table(tmp_path / "labeled.csv", ["cat", "dog"])
    other = table(tmp_path / "other.csv", ["cat", "cow"])
    wide = table(tmp_path / "wide.csv", ["cat", "dog"], columns=("a", "b", "c"))
    renamed = table(tmp_path / "renamed.csv", ["cat", "dog"], columns=("a", "c"))
    with pytest.raises(ValueError, match=r"plain\.csv: the source needs labels"):
        load_domains(plain, plain)
    for target, message in (
        (wide, r"rows of one shape, got \(2,\) of .*labeled.csv and \(3,\) of .*wide.csv"),
        (renamed, r"the same columns, got \('a', 'b'\) and \('a', 'c'\)"),
        (other, "other.csv: 20 of 40 rows have labels that the source does not have: cow; it has cat, dog"),
    ):
        with pytest.raises(ValueError, match=message):
            load_domains(labeled, target, label="kind")


@pytest.mark.filterwarnings("ignore:.*the target's labels are not trained on")
def test_counts_of_words_are_not_standardized(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("source", "target"):
        lines = [
            f"{i % 2} " + " ".join(f"{j}:1" for j in np.sort(rng.choice(200, 4, replace=False))) for i in range(60)
        ]
        (tmp_path / f"{name}.svmlight").write_text("\n".join(lines) + "\n")
    files = tmp_path / "source.svmlight", tmp_path / "target.svmlight"
    domains = load_domains(*files)
    assert set(np.unique(domains.source.train.x)) == set(np.unique(domains.target.train.x)) == {0.0, 1.0}
    with pytest.warns(UserWarning, match="constant in the training rows"):
        assert np.abs(load_domains(*files, scale="standard").source.train.x).max() > 5


def test_both_domains_are_split_by_group(tmp_path):
    """A test file has the column too, whose rows are test rows whatever their group."""
    paths = {}
    for part in ("source", "target", "target_test"):
        frame = pd.read_csv(table(tmp_path / f"{part}.csv", ["u", "v"] if part == "source" else None))
        frame["site"] = [f"{part}{i % 10}" for i in range(40)]
        frame.to_csv(paths.setdefault(part, str(tmp_path / f"{part}.csv")), index=False)
    pair = load_domains(**paths, label="kind", split="group:site")
    assert pair.source.columns == pair.target.columns == ("a", "b")
    parts = [set(pair.source.rows[part] % 10) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 10
    assert pair.target.rows["test"].tolist() == list(range(40, 80))
    parts = [set(pair.target.rows[part] % 10) for part in ("train", "validation")]
    assert sum(map(len, parts)) == 10
