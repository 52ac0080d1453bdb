#!/usr/bin/env bash
# usage: [PYTHON=python3] check_thin_install.sh BUNDLE: builds the wheel, installs it with one engine's extra alone into a
# fresh venv outside the checkout, for each engine in turn, shows that torch and the other engine are absent, and uses the
# bundle, which has to hold both targets, and the shipped recipes there. Prints what each install takes in megabytes.
set -euo pipefail
if [ ! -f "${1:-}/manifest.json" ]; then
    echo "there is no bundle at '${1:-}': make demo builds artifacts/bundles/quickstart" >&2
    exit 2
fi
bundle=$(realpath "$1")
cd "$(dirname "$0")/.."
constraints=$PWD/scripts/constraints.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m build --wheel --no-isolation --outdir "$work" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/*.whl)
cp -r "$bundle" "$work/bundle"
cd "$work"

refused() { # what must end with code 6 and name the command that installs what is missing: refused COMMAND WORDS...
    local command=$1 code=0
    shift
    "$@" 2>refusal || code=$?
    cat refusal
    if [ "$code" != 6 ] || ! grep -qF "$command" refusal; then
        echo "'$*' must end with code 6 and '$command', not with code $code" >&2
        exit 1
    fi
}

thin() { # thin EXTRA MODULE OTHER_TARGET OTHER_MODULE
    local extra=$1 module=$2 other=$3 absent=$4
    echo "== $extra alone"
    "${PYTHON:-python3}" -m venv "$extra"
    "$extra/bin/python" -m pip install -q --disable-pip-version-check -c "$constraints" "$wheel[$extra]"
    for name in torch "$absent"; do
        if "$extra/bin/python" -c "import $name" 2>/dev/null; then
            echo "$name is installed here: this is no thin install" >&2
            exit 1
        fi
    done
    "$extra/bin/python" -c "import $module"
    echo "torch and $absent are absent, as they should be; installed: $(du -sm "$extra" | cut -f1) MB"
    "$extra/bin/athe-export" verify bundle
    "$extra/bin/athe-export" verify bundle --json >verify.json
    "$extra/bin/python" - "$extra" "$other" <<'PY'
import json
import sys

import numpy
from PIL import Image

found = json.load(open("verify.json"))
ran, left = {g["target"] for g in found["golden"]}, {n["target"] for n in found["not_run"]}
if (ran, left) != ({sys.argv[1]}, {sys.argv[2]}):
    sys.exit(f"verify ran {ran} and left {left} out; with a bundle of both targets it must run {sys.argv[1]} and name {sys.argv[2]}")
y, x = numpy.mgrid[0:240, 0:320]
disc = (x - 170) ** 2 + (y - 120) ** 2 < 90**2
Image.fromarray(numpy.where(disc[..., None], [230, 30, 30], [20, 30, 60]).astype("uint8")).save("photo.jpg")
PY
    "$extra/bin/athe-export" run bundle photo.jpg
    "$extra/bin/athe-export" run bundle --watch . --duration 1
    refused 'pip install "athe-export[camera]"' "$extra/bin/athe-export" run bundle --camera 0
    "$extra/bin/athe-export" bench bundle
    XDG_CACHE_HOME="$work/cache-$extra" "$extra/bin/athe-export" tune bundle
    refused "pip install \"athe-export[$other]\"" "$extra/bin/athe-export" run bundle photo.jpg --target "$other"
    "$extra/bin/athe-export" recipes list
    refused 'pip install "athe-export[build]"' "$extra/bin/athe-export" recipes copy quickstart "copied-$extra"
    refused 'pip install "athe-export[build]"' "$extra/bin/athe-export" build quickstart.yaml
}

thin litert ai_edge_litert onnx onnxruntime
thin onnx onnxruntime litert ai_edge_litert
