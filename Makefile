# The commands that CONTRIBUTING.md names. They use the virtual environment in .venv, which `make setup` creates.
.PHONY: setup lint format types test slow docs site tutorials bench ci
python := .venv/bin/python

setup:
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[test]"

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

types:
	.venv/bin/mypy

test:
	$(python) -m pytest

slow:
	$(python) -m pytest -m slow

docs: # runs every tutorial and renders its page below docs/tutorials
	$(python) docs/render.py

site: # builds the site in build/site, from the rendered pages
	.venv/bin/pip install -q -c constraints.txt -e ".[docs]"
	.venv/bin/sphinx-build -W --keep-going -b html docs build/site
	$(python) docs/check_site.py build/site

tutorials: # runs every tutorial without rendering it
	for tutorial in tutorials/*.py; do (cd tutorials && MPLBACKEND=agg ../$(python) "$$(basename $$tutorial)") || exit 1; done

bench:
	$(python) tests/benchmarks/imports.py
	$(python) tests/benchmarks/steps.py

ci:
	.ci/run
