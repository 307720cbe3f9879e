# Everything runs in ./.venv; each target does its own set-up. Needs Python 3.11 and make, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo dev storefront test bench check generate lock released clean

.venv/.installed: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/.installed ## walk the main job on a scratch stack
	$(BIN)/cardvault demo

dev: .venv/.installed ## a server that stays up, with its state in ./.cardvault
	$(BIN)/cardvault dev

storefront: .venv/.installed ## a web shop on it, to be clicked through; its state is in ./.cardvault-storefront
	$(BIN)/python -m examples.storefront

# Two processes share the files, for tests wait more than they work. What comes last counts: PYTEST_ARGS="-n 0 --pdb".
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test: .venv/.installed ## the whole suite, on real OpenBao, SQLite and PostgreSQL; PYTEST_ARGS=tests/unit for a part
	# They start a thousand processes. Where Python may write no bytecode, each of these would compile everything anew.
	$(BIN)/python -m compileall -q vault tests examples
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

bench: .venv/.installed ## ratios to an empty RPC and to bare Vault; QUICK=1 for less than a minute
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH_ARGS)

check: .venv/.installed ## lint, format, types, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vault tests tools benchmarks examples
	$(BIN)/python tools/generate.py --check
	$(BIN)/python -m tools.api_docs --check

generate: .venv/.installed ## vault/v1 and docs/api.md from protos/
	$(BIN)/python tools/generate.py
	$(BIN)/python -m tools.api_docs

PIN := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

lock: ## pin every dependency with hashes, without naming where they come from
	$(PIN) --all-extras --group dev pyproject.toml -o requirements/dev.txt
	# What an image carries: no OpenBao of its own. And what builds its wheel.
	$(PIN) --extra otel pyproject.toml -o requirements/run.txt
	$(PIN) --group build -o requirements/build.txt

released: ## at a release: what `buf breaking` holds later protos against; needs npm install
	npx --no-install buf build protos --exclude-source-info -o build/released.json
	$(BIN)/python -m json.tool --indent 1 --sort-keys build/released.json protos/released.json

clean:
	rm -rf .venv .test-artifacts .pytest_cache .mypy_cache .ruff_cache
