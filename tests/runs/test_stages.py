"""Images of progressively grown runs, at the end of each stage."""

import pytest
import yaml

from ppgen.runs.cli import main
from ppgen.runs.stages import read_stage_images

SMALL = ["--model.hidden", "[4, 6]", "--loss.hidden", "[4, 6]"]


@pytest.mark.figures
@pytest.mark.parametrize("conditional", ["false", "true"])
def test_a_growing_run_stores_and_reports_its_stages(conditional, quick, tmp_path):
    growth = ["--conditional", conditional, "--fit.growth.fade", "0.2"]
    assert main(["train", "progan", "digits", *quick, *SMALL, *growth]) == 0
    folder = tmp_path / "runs" / "progan-digits"
    assert "<h2>Progressive growing</h2>" in (folder / "report.html").read_text()
    first, last = read_stage_images(folder, 0)
    assert first.shape == last.shape == (12, 1, 8, 8)
    assert (first[..., ::2, ::2].repeat(2, -1).repeat(2, -2) == first).all()
    assert not (last[..., ::2, ::2].repeat(2, -1).repeat(2, -2) == last).all()
    assert yaml.safe_load((folder / "config.yaml").read_text())["fit"]["growth"] == {"fade": 0.2, "stages": None}


@pytest.mark.figures
def test_a_run_that_does_not_grow_has_no_stages(quick, tmp_path):
    assert main(["train", "progan", "digits", *quick, *SMALL, "--fit.growth", "null", "--out", "fixed"]) == 0
    assert read_stage_images(tmp_path / "fixed", 0) == []
    assert "<h2>Progressive growing</h2>" not in (tmp_path / "fixed" / "report.html").read_text()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("moons", ["--data.form", "continuous"], "expected an image's event shape"),
        ("digits", ["--model.hidden", "[4, 4, 4, 4]"], "8 x 8 pixels have no 4 scales"),
        ("digits", ["--fit.growth.stages", "[1, 2, 3]"], "3 stages (1.0, 2.0, 3.0), and the networks have 2 scales"),
    ],
)
def test_a_run_that_cannot_grow_is_refused(source, options, message, capsys):
    assert main(["train", "progan", source, "--fit.steps", "6", *options]) == 2
    assert message in capsys.readouterr().err
