#!/usr/bin/env bash
# usage: [PYTHON=python3.11] check_tflite_runtime.sh BUNDLE: what a device gets on which tflite-runtime is the only engine, the
# package that ai-edge-litert succeeds. In a fresh venv with tflite-runtime 2.14.0 and numpy 1.26.4 it shows
# - which of the bundle's .tflite graphs open, which ops XNNPACK leaves there, and of a graph that does not open the op that
#   is unknown; as a control, that the message for a graph made too new names its op;
# - that a part of a graph, which an athe-export that knows no parts would give it, is refused and does not crash;
# - how verify goes, and that it refuses a truncated graph before this engine, which would crash on it, sees it.
# In a second venv with numpy 2 it shows the message that names the fix. The wheels of tflite-runtime end at Python 3.11.
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
grep -v '^numpy==' scripts/constraints.txt >"$work/constraints.txt"
# the control: the bundle's first TFLite graph with its fully connected ops at a version that no runtime knows
.venv/bin/python - "$bundle" "$work/too_new.tflite" <<'PY'
import sys
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from athe_export.bundle.reader import open_bundle
from athe_export.targets.litert.graph import pack, unpack

bundle = open_bundle(Path(sys.argv[1]))
entry = next((g for g in bundle.manifest.graphs if g.target == "litert" and g.role != "router"), None)
if entry is None:
    sys.exit("the bundle has no litert target: add targets.litert to its recipe and build it again")
model = unpack(bundle.graph(entry))
for code in model.operatorCodes:
    if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED:
        code.version = 99
Path(sys.argv[2]).write_bytes(pack(model))
PY
wheel=$(ls "$work"/*.whl)
cp -r "$bundle" "$work/bundle"
cd "$work"

ends_with() { # ends_with CODE TEXT COMMAND...: prints what the command says on stderr, which must hold the text
    local wanted=$1 text=$2 code=0
    shift 2
    "$@" 2>said || code=$?
    cat said
    if [ "$code" != "$wanted" ] || ! grep -qF "$text" said; then
        echo "'$*' must end with code $wanted and '$text', not with code $code" >&2
        exit 1
    fi
}

device() { # device NAME NUMPY: a venv with tflite-runtime and no other engine
    "${PYTHON:-python3.11}" -m venv "$1"
    "$1/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt "$wheel" tflite-runtime==2.14.0 "$2"
    echo "== $("$1/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | awk '/^(tflite-runtime|numpy) /{printf "%s %s  ", $1, $2}')"
    for name in ai_edge_litert onnxruntime; do
        if "$1/bin/python" -c "import $name" 2>/dev/null; then
            echo "$name is installed here, so tflite_runtime would not be tried" >&2
            exit 1
        fi
    done
}

device old "numpy==1.26.4"
old/bin/python - <<'PY'
from collections import Counter
from pathlib import Path

from athe_export.bundle.reader import open_bundle
from athe_export.errors import AtheExportError, MissingDependency
from athe_export.runtime.litert_session import LitertSession

bundle = open_bundle(Path("bundle"))
for graph in (g for g in bundle.manifest.graphs if g.target == "litert"):
    try:
        found = LitertSession(bundle.graph(graph)).delegation()
        kinds = Counter(op.split()[0] for op in found.outside)
        outside = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"{graph.file}: opens; XNNPACK takes it in {found.partitions} partitions and leaves {outside or 'nothing'}")
    except AtheExportError as err:
        print(f"{graph.file}: does not open: {err.what}")
for graph in (g for g in bundle.manifest.graphs if g.target == "litert" and g.borrows):
    try:
        LitertSession(bundle.read(graph.file))
    except AtheExportError as err:
        print(f"{graph.file}: no graph by itself: {err.what}")
    else:
        raise SystemExit(f"{graph.file} was taken for a graph")
try:
    LitertSession(Path("too_new.tflite").read_bytes())
except MissingDependency as err:
    print(f"control, a graph made too new: {err.what}")
    assert "FULLY_CONNECTED version 99" in err.what
else:
    raise SystemExit("the control opened, so what is said above means nothing")
PY
code=0
old/bin/athe-export verify bundle || code=$?
echo "verify ends with code $code"
cp -r bundle cut
truncate -s 100000 "$(ls cut/litert/*.tflite | head -1)"
ends_with 5 changed old/bin/athe-export verify cut

device new "numpy>=2"
ends_with 6 'pip install "numpy<2"' new/bin/athe-export verify bundle
