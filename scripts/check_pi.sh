#!/usr/bin/env bash
# usage: check_pi.sh BUNDLE [FOLDER]: this checkout and a bundle of both targets on an emulated Raspberry Pi 4, under Debian
# bookworm (Python 3.11) and trixie (Python 3.13). For each release it
# - makes the user land, and shows with a control that its processor is a Cortex-A72 and nothing newer;
# - for each engine collects the wheels that `deploy --offline` would send, says what they weigh, verifies and runs the bundle
#   with them, and holds the answers to more than verify does (scripts/pi/check_bundle.py);
# - does so once more with OpenCV, and classifies the frames of a video;
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

or_not_run() { # or_not_run WHAT COMMAND...: where it ends with 7, says so and ends
    local what=$1 code=0
    shift
    "$@" || code=$?
    if [ "$code" = 7 ]; then
        cat >&2 <<END
********************************************************************************
   NOT RUN: $what
   To run it, on Debian 12 with its package mirrors at hand:
       sudo apt-get install qemu-user mmdebstrap gcc
       make pi
********************************************************************************
END
    fi
    [ "$code" = 0 ] || exit "$code"
}

collect() { # collect SUITE EXTRAS: what deploy --offline would send, installed in site-SUITE-EXTRAS, commas left out
    local wheels=$work/$1-${2//,/}
    "$PYTHON" scripts/pi/collect_wheels.py "$lands/$1" "$2" "$wheels" --constraint scripts/constraints.txt
    "$lands/$1/pip" install --no-deps --target "$work/site-$1-${2//,/}" "$wheels"/*.whl 2>"$work/$1.log" ||
        { cat "$work/$1.log"; exit 1; }
}

check() { # check SUITE: all but counting, in a user land that is there
    local suite=$1 land=$lands/$1 extra
    scripts/pi/check_cpu_model.sh "$land"
    for extra in litert onnx; do
        echo "-- $suite, athe-export[$extra] alone"
        collect "$suite" "$extra"
        "$PYTHON" scripts/pi/measure_install.py "$work/$suite-$extra"
        "$PYTHON" scripts/pi/check_bundle.py "$land" "$bundle" --site "$work/site-$suite-$extra" --extra "$extra"
    done
    echo "-- $suite, athe-export[litert,camera]"
    collect "$suite" litert,camera
    "$PYTHON" scripts/pi/check_bundle.py "$land" "$bundle" --site "$work/site-$suite-litertcamera" --extra litert --camera
    echo "-- $suite, the oldest bundle"
    "$PYTHON" scripts/pi/check_bundle.py "$land" tests/bundles/v1/tiny
}

for suite in bookworm trixie; do
    or_not_run "the emulated Raspberry Pi 4. Nothing is known of this checkout on a Cortex-A72." \
        scripts/pi/setup.sh "$lands/$suite" "$suite" "$wheel[litert,onnx]"
done
check trixie >"$work/trixie.said" 2>&1 & # beside the other
trixie=$! code=0
echo "== Raspberry Pi 4, emulated, bookworm"
(check bookworm) & # in a process of its own, as the other: that way a command that fails ends it
wait $! || code=$?
wait "$trixie" || code=$?
echo "== Raspberry Pi 4, emulated, trixie"
cat "$work/trixie.said"
[ "$code" = 0 ] || exit "$code"
echo "== instructions, bookworm"
or_not_run "instruction counts. What stands above was run." \
    "$PYTHON" scripts/pi/count_instructions.py "$lands/bookworm" "$bundle" --baseline scripts/pi/instructions.json
