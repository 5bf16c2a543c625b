# What a visitor or CI types; `make` alone lists it. Everything runs in .venv, which scripts/setup.sh makes.

EDGE_LTS := .venv/bin/edge-lts

.PHONY: help demo test test-long check bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## search on this machine for 75 s; ends with the frontier and demo-report.md
	@scripts/setup.sh demo
	$(EDGE_LTS) run --target local --space demo --budget 75s
	@$(EDGE_LTS) report -o md > demo-report.md
	@echo "The report is saved in demo-report.md"

test: ## every test but the longest; what this machine cannot run is skipped with a reason
	@scripts/system_packages.sh
	@scripts/setup.sh dev
	@scripts/arm64_root.sh > /dev/null || echo "no emulated board: its tests are skipped"
	@scripts/arm64_board.sh > /dev/null || echo "no whole emulated board: its tests are skipped"
	.venv/bin/python -m pytest -q --durations=15 tests

test-long: ## what takes half an hour more: power cuts, bad links, serial console, pools, on emulated boards
	@scripts/system_packages.sh
	@scripts/setup.sh dev
	.venv/bin/python -m pytest -q --durations=15 -m long tests/board

check: ## linters and types: ruff, ruff format, mypy --strict, codespell
	@scripts/setup.sh dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/codespell

bench: ## benchmarks, one after the other (benchmarks/README.md)
	@scripts/setup.sh dev
	@set -e; for benchmark in benchmarks/bench_*.py; do echo "$$benchmark"; .venv/bin/python "$$benchmark"; done

clean: ## remove .venv and caches from this checkout; runs and cached boards stay
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-report.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
