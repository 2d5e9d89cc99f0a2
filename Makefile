# The whole project in two commands: `make repro` and `make test`.
# PYTHON=/path/to/python chooses the interpreter; otherwise the first Python 3.11 to 3.13 is taken.
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Stages call `python`: it must be the project's own.
RUN := PATH="$(BIN):$$PATH"

# Container images often set this. Then every stage would compile torch and transformers again, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help repro test lint identity site-cache bench deviations portable clean-cache

help:
	@echo "make repro        install what is needed and run the pipeline (dvc repro)"
	@echo "make test         ruff and pytest; RARL_DATA_ROOT=<folder of releases> adds the tests on real files"
	@echo "make lint         ruff alone, with the formatting"
	@echo "make bench        the RL step, SFT and inference against the stock ones (20 minutes; metrics/bench/)"
	@echo "make deviations   the largest deviations from stock transformers, family by family (metrics/bench/)"
	@echo "make portable     the same work on emulated processors of two vendors, bit for bit (metrics/bench/)"
	@echo "make clean-cache  delete resumable work in progress (.cache/, except paid responses and the costs of experiments)"

repro: identity $(VENV)/.installed
	@$(MAKE) --no-print-directory site-cache
	@$(RUN) dvc repro

test: lint
	@# A process for each core, up to four: a file of tests stays together, with what its tests share.
	@$(RUN) python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=10

lint: $(VENV)/.installed-dev
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

# DVC keeps experiments as git commits, so `dvc exp run` needs a name: this clone gets one when there is none.
identity:
	@git rev-parse --git-dir >/dev/null || { \
	  echo "DVC needs a git repository: clone the project, or run 'git init && git add -A && git commit -m start'." >&2; exit 1; }
	@git config user.name >/dev/null || { \
	  git config user.name "RARL user"; echo "git has no user.name: 'RARL user' is used in this clone"; }
	@git config user.email >/dev/null || { \
	  git config user.email "rarl@localhost"; echo "git has no user.email: 'rarl@localhost' is used in this clone"; }

# DVC notes the names of data files, which may name patients, in /var/tmp/dvc, where everybody can read them. It takes the
# folder of its config from where a command is run, so the path is absolute, and kept where git does not look.
site-cache:
	@grep -qsF 'site_cache_dir = $(CURDIR)/' .dvc/config.local \
	  || $(RUN) dvc config --quiet --local core.site_cache_dir '$(CURDIR)/.dvc/tmp/site'

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing the packages (about 2 GB, some minutes the first time) ..."
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e .
	@# Python compiles what is imported: a fifth of what pip would compile in a minute, and while the first stages run.
	@nice "$(BIN)/python" -c 'import rarl.training.rl, rarl.training.sft' >/dev/null 2>&1 &
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the test tools ..."
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/bin/python:
	@python="$(PYTHON)"; \
	for name in python3 python3.13 python3.12 python3.11; do \
	  [ -z "$$python" ] || break; \
	  "$$name" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	    && python="$$name"; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11 to 3.13 with the venv module was found (looked for python3, python3.13, python3.12, python3.11)." >&2; \
	  echo "Install one (Debian, Ubuntu: python3 and python3-venv), or name it: make $(or $(MAKECMDGOALS),repro) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)

bench: $(VENV)/.installed
	@$(RUN) rarl bench

deviations: $(VENV)/.installed-dev
	@RARL_DEVIATIONS=metrics/bench/deviations.json $(RUN) python -m pytest -q tests/tiny/test_shared_families.py

portable: $(VENV)/.installed
	@$(RUN) rarl portable

clean-cache:
	@# Not work in progress: responses of judges that were paid for, and the costs of experiments, which 'rarl compare' reads.
	rm -rf $(filter-out .cache/llm .cache/cost,$(wildcard .cache/* .cache/.[!.]*))
	@echo "DVC's own cache is kept; 'dvc gc --workspace' deletes what the present results do not use."
