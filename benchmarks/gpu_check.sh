#!/usr/bin/env bash
# Checks sfd on a machine with a GPU in at most 9 minutes: what it computes there against the CPU, and how fast. It installs nothing.
#
#   benchmarks/gpu_check.sh                          # everything that the installed packages allow; the table goes to stdout
#   benchmarks/gpu_check.sh --json gpu.json          # and all numbers to a file
#   benchmarks/gpu_check.sh --wheels FOLDER          # packages from a folder that `pip install --target FOLDER pydantic ...` filled elsewhere
#   benchmarks/gpu_check.sh --only network,train     # some parts
#   benchmarks/gpu_check.sh --cpu                    # tiny sizes, and the CPU in the GPU's place: tests this script itself
#
# torch is enough for the backbone and its samplers. Each further part needs packages, which its line names where they are missing.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$here/gpu_check.py" "$@"
