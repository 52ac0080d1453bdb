#!/usr/bin/env bash
# usage: check_thin_install.sh BUNDLE: builds the wheel, installs it with the onnx extra alone into a fresh venv outside
# the checkout, shows that torch is absent, and verifies and runs the bundle there.
set -euo pipefail
bundle=$(realpath "$1")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m build --wheel --no-isolation --outdir "$work" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }
python3 -m venv "$work/venv"
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
