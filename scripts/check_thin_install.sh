#!/usr/bin/env bash
# usage: [PYTHON=python3] check_thin_install.sh BUNDLE: builds the wheel, installs it with the onnx extra alone into a
# fresh venv outside the checkout, shows that torch is absent, and uses the bundle and the shipped recipes there.
set -euo pipefail
if [ ! -f "${1:-}/manifest.json" ]; then
    echo "there is no bundle at '${1:-}': make demo builds artifacts/bundles/quickstart" >&2
    exit 2
fi
bundle=$(realpath "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m build --wheel --no-isolation --outdir "$work" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"${PYTHON:-python3}" -m venv "$work/venv"
wheel=$(ls "$work"/*.whl)
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check -c scripts/constraints.txt "$wheel[onnx]"
cp -r "$bundle" "$work/bundle"
cd "$work"
if venv/bin/python -c 'import torch' 2>/dev/null; then
    echo "torch is installed here: this is no thin install" >&2
    exit 1
fi
echo "import torch fails, as it should; installed: $(du -sm venv | cut -f1) MB"
venv/bin/athe-export verify bundle
venv/bin/python - <<'PY'
import numpy
from PIL import Image

y, x = numpy.mgrid[0:240, 0:320]
disc = (x - 170) ** 2 + (y - 120) ** 2 < 90**2
Image.fromarray(numpy.where(disc[..., None], [230, 30, 30], [20, 30, 60]).astype("uint8")).save("photo.jpg")
PY
venv/bin/athe-export run bundle photo.jpg
venv/bin/athe-export recipes list
venv/bin/athe-export recipes copy quickstart .
venv/bin/python -m athe_export.data.make_calibration shapes 32 mine.yaml
code=0
venv/bin/athe-export build recipes/quickstart.yaml 2>refusal || code=$?
cat refusal
if [ "$code" != 6 ] || ! grep -qF 'pip install "athe-export[build]"' refusal; then
    echo "a build without torch must end with code 6 and the command that installs it, not with code $code" >&2
    exit 1
fi
