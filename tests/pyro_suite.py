"""Runs Pyro's own tests with stock SVI and with ppgen's in its place, and lists each test whose outcome differs.

    python tests/pyro_suite.py CHECKOUT [--compile interpreter|inductor] [--seconds S] [--save FOLDER] [for pytest]

CHECKOUT is a source checkout of Pyro, at the version that is installed. Its tests run from a temporary copy without the
package, so that they test the installed Pyro. Without paths (relative to the checkout, such as
``tests/infer/test_enum.py``) those of `FILES` run. Outcomes are stored in FOLDER as JSON, and those that are there
already are not computed again. A test that takes more than S seconds of CPU time is left out.

By default ppgen's steps run eagerly. With ``--compile`` they are compiled as soon as possible: by an interpreter of the
recorded operations, which is quick, or by inductor. The exit status is 1 if a row differs that `EXPLAINED` does not
name.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyro.poutine import runtime

FILES = [
    "tests/infer/test_valid_models.py",
    "tests/infer/test_autoguide.py",
    "tests/infer/test_enum.py",
    "tests/infer/test_predictive.py",
    "tests/infer/test_gradient.py",
    "tests/infer/test_inference.py",
    "tests/infer/test_abstract_infer.py",
    "tests/infer/test_elbo_mapdata.py",
    "tests/infer/test_multi_sample_elbos.py",
    "tests/infer/autoguide",
    "tests/infer/reparam",
    "tests/nn",
    "tests/optim",
    "tests/contrib/easyguide",
    "tests/contrib/tracking/test_em.py",
    "tests/poutine/test_poutines.py",
    "tests/poutine/test_counterfactual.py",
    "tests/distributions/test_nanmasked.py",
    "tests/distributions/test_sine_skewed.py",
]

WARNINGS = [
    "the loss depends on no trainable parameter",
    "model and guide both have a parameter",
    "the step is not compiled, and runs eagerly",
]
"""The beginnings of warnings that ppgen gives where stock is silent."""

EXPLAINED = {"test_information_criterion": "num_steps and run, deprecated in Pyro, do not exist"}
"""Parts of names of tests whose outcomes differ, and why, as docs/drop_in.md says it."""


# The plugin, which runs in the process of the tests


def replace_svi(compile: str) -> None:
    """Puts ppgen's SVI in the place of Pyro's, in every module of Pyro that holds it."""
    from pyro import infer

    import ppgen

    stock = infer.SVI
    if compile == "interpreter":
        from support import known_as

        from ppgen.infer.compile.building import Build

        Build.known = known_as()
    ours = functools.wraps(ppgen.SVI, updated=())(functools.partial(ppgen.SVI, compile=compile != "no"))
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "pyro":
            for attribute in [key for key, value in vars(module).items() if value is stock]:
                setattr(module, attribute, ours)


TOO_SLOW = "too slow"


class _TooSlow(BaseException):
    """Is raised wherever the test is."""


def _interrupt(*_: Any) -> None:
    raise _TooSlow


class Outcomes:
    """Records the outcome of each test, and the message of its failure; ends tests that take longer than `seconds`."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.rows = path, seconds, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        signal.signal(signal.SIGVTALRM, _interrupt)
        signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)
        try:
            return (yield)
        except _TooSlow:
            runtime._PYRO_STACK.clear()  # of handlers, which a test that is interrupted may leave there
            runtime._DIM_ALLOCATOR._stack.clear()
            pytest.fail(TOO_SLOW, pytrace=False)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        expected = {"skipped": "xfailed", "passed": "xpassed"} if hasattr(report, "wasxfail") else {}
        crash = getattr(report.longrepr, "reprcrash", None)
        message = (crash.message if crash else str(report.longrepr or "")).strip().split("\n")[0]
        if TOO_SLOW in message:
            self.rows[report.nodeid] = [TOO_SLOW, ""]
            return
        self.rows[report.nodeid] = [expected.get(report.outcome, report.outcome), message]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.rows, indent=1))


def pytest_configure(config: Any) -> None:
    svi = os.environ["PYRO_SUITE_SVI"]
    if svi != "stock":
        replace_svi(svi)
        for message in WARNINGS:
            config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")
    config.pluginmanager.register(
        Outcomes(Path(os.environ["PYRO_SUITE_OUTCOMES"]), float(os.environ["PYRO_SUITE_SECONDS"]))
    )


# The script


def outcomes(checkout: Path, svi: str, path: Path, seconds: float, arguments: list[str]) -> dict[str, list[str]]:
    """Runs the tests with one SVI, unless `path` has their outcomes."""
    here = Path(__file__).resolve().parent
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(checkout / "tests", Path(folder) / "tests")
            shutil.copy(checkout / "setup.cfg", folder)  # its warnings are errors, on which some tests rely
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
                "PYRO_SUITE_SVI": svi,
                "PYRO_SUITE_OUTCOMES": str(path.resolve()),
                "PYRO_SUITE_SECONDS": str(seconds),
            }
            command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "pyro_suite", "-p", "no:cacheprovider"]
            subprocess.run([*command, *arguments], cwd=folder, env=environment, check=False)
    return json.loads(path.read_text())


def compare(stock: dict[str, list[str]], ours: dict[str, list[str]]) -> int:
    """Prints the rows that differ and returns how many of them are not explained."""
    absent = ["did not run", ""]
    rows = {name: (stock.get(name, absent), ours.get(name, absent)) for name in sorted(stock.keys() | ours.keys())}
    different = {k: row for k, row in rows.items() if row[0][0] != row[1][0] and TOO_SLOW not in (row[0][0], row[1][0])}
    open_rows = 0
    for name, ((before, _), (after, message)) in different.items():
        reason = next((reason for part, reason in EXPLAINED.items() if part in name), "")
        open_rows += not reason
        print(f"{name}\n    stock {before}, ppgen {after}: {reason or message}")
    for title, outcome in (("stock", stock), ("ppgen", ours)):
        print(title, dict(Counter(kind for kind, _ in outcome.values())))
    print(f"{len(different)} of {len(rows)} rows differ, {open_rows} of them unexplained")
    return open_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--compile", choices=["no", "interpreter", "inductor"], default="no")
    parser.add_argument("--seconds", type=float, default=0, help="the longest time of a test; 0 for any")
    parser.add_argument("--save", type=Path, help="the folder of outcomes; a temporary one if left out")
    options, arguments = parser.parse_known_args()
    if not any(argument.startswith("tests") for argument in arguments):
        arguments = [*FILES, *arguments]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.save or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        ours_path, run = folder / f"ppgen_{options.compile}.json", functools.partial(outcomes, options.checkout)
        stock = run("stock", folder / "stock.json", options.seconds, arguments)
        ours = run(options.compile, ours_path, options.seconds, arguments)
        sys.exit(compare(stock, ours) > 0)


if __name__ == "__main__":
    main()
