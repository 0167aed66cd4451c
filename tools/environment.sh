# Sourced from the project's root by the quickstart and the tests: installs the package into the active virtual
# environment, or into .venv, which it creates. Does nothing when what setup.py and pyproject.toml describe is installed.
if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -e .venv/bin/activate ]; then
    python=python3
    for candidate in python3 python3.12 python3.11 python3.10; do
      if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
        python=$candidate
        break
      fi
    done
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || {
      echo "error: needs Python 3.10, 3.11 or 3.12; $("$python" --version) found" >&2
      exit 2
    }
    "$python" -m venv .venv
  fi
  source .venv/bin/activate
fi
stamp=$VIRTUAL_ENV/.megatron_adapt.$(cat setup.py pyproject.toml csrc/* | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ] || ! python -c 'from megatron_adapt import _C' 2>/dev/null; then
  echo "installing megatron_adapt and what it needs into $VIRTUAL_ENV"
  python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
  touch "$stamp"
fi
