#!/usr/bin/env bash
# usage: check_pi.sh BUNDLE [FOLDER]: this checkout and a bundle of both targets on an emulated Raspberry Pi 4, under Debian
# bookworm (Python 3.11) and trixie (Python 3.13). For each release it
# - makes the user land, and shows with a control that its processor is a Cortex-A72 and nothing newer;
# - for each engine takes the wheel built from this checkout with that extra alone, says what it weighs, verifies and runs the
#   bundle with it, and holds the answers to more than verify does (scripts/pi/check_bundle.py);
# - verifies the oldest bundle that is kept.
# Then it counts the instructions of every graph and of a routed image, and holds them against scripts/pi/instructions.json.
# The user lands are thrown away, or stay in FOLDER. Ends with 7, and says so, where qemu or Debian's packages cannot be had.
set -euo pipefail
if [ ! -f "${1:-}/manifest.json" ]; then
    echo "there is no bundle at '${1:-}': make demo builds artifacts/bundles/quickstart" >&2
    exit 2
fi
bundle=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
lands=$(realpath -m "${2:-$work/lands}")
cd "$(dirname "$0")/.."
PYTHON=$PWD/.venv/bin/python
export PYTHON
"$PYTHON" -m build --wheel --no-isolation --outdir "$work" . >"$work/build.log" || { cat "$work/build.log"; exit 1; }
wheel=$(ls "$work"/*.whl)

not_run() {
    cat >&2 <<'END'
********************************************************************************
*  NOT RUN: the emulated Raspberry Pi 4. Nothing is known of this checkout on   *
*  a Cortex-A72. On a Debian host with the network of its package mirrors:      *
*      sudo apt-get install qemu-user mmdebstrap gcc                            *
*      make demo && scripts/check_pi.sh artifacts/bundles/quickstart            *
********************************************************************************
END
    exit 7
}

set_up() { # set_up SUITE: the user land with the wheel and both engines, for counting and the oldest bundle
    local code=0
    scripts/pi/setup.sh "$lands/$1" "$1" "$wheel[litert,onnx]" || code=$?
    [ "$code" != 7 ] || not_run
    return "$code"
}

for suite in bookworm trixie; do
    echo "== Raspberry Pi 4, emulated, $suite"
    set_up "$suite"
    land=$lands/$suite
    scripts/pi/check_cpu_model.sh "$land"
    for extra in litert onnx; do
        echo "-- $suite, athe-export[$extra] alone"
        "$land/pip" download -d "$work/$suite-$extra" -c scripts/constraints.txt "$wheel[$extra]" 2>"$work/pip.log" ||
            { cat "$work/pip.log" >&2; exit 1; }
        "$PYTHON" scripts/pi/measure_install.py "$work/$suite-$extra"
        "$land/pip" install --no-deps --target "$work/site-$suite-$extra" "$work/$suite-$extra"/*.whl 2>"$work/pip.log" ||
            { cat "$work/pip.log" >&2; exit 1; }
        "$PYTHON" scripts/pi/check_bundle.py "$land" "$bundle" --site "$work/site-$suite-$extra" --extra "$extra"
    done
    echo "-- $suite, the oldest bundle"
    "$PYTHON" scripts/pi/check_bundle.py "$land" tests/bundles/v1/tiny
done
echo "== instructions, bookworm"
"$PYTHON" scripts/pi/count_instructions.py "$lands/bookworm" "$bundle" --baseline scripts/pi/instructions.json
