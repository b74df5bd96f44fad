#!/usr/bin/env bash
# Runs the tests that need a language model with the oldest and the newest transformers that are supported, each in a
# virtual environment of its own. Arguments: versions of transformers instead of these two.
# TORCH is what pip installs for torch; a plain `torch` is the build with CUDA.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
oldest=$(sed -n 's/^OLDEST_TRANSFORMERS = (\([0-9]*\), \([0-9]*\))$/\1.\2/p' turbocode/integrations/hf_packages.py)

[ $# -gt 0 ] || set -- "$oldest.0" newest

for version in "$@"; do
    python3 -m venv "$work/$version"
    pip="$work/$version/bin/python -m pip install --quiet"
    $pip --upgrade pip
    $pip "${TORCH:-torch==2.13.0}"
    if [ "$version" = newest ]; then wanted='transformers<6'; else wanted="transformers==$version"; fi
    $pip "$wanted" -e . pytest pytest-xdist hypothesis
    "$work/$version/bin/python" -c "import transformers; print('transformers', transformers.__version__)"
    "$work/$version/bin/python" -m pytest tests/integrations tests/evaluation/test_model_evaluation.py \
        tests/cli/test_model_commands.py
done
