#!/bin/bash
# Shows that a user land emulates the processor of a Raspberry Pi 4 and no other.
#
#   scripts/pi/check_cpu_model.sh LAND
#
# onnxruntime 1.21.0 uses an instruction that the Cortex-A72 does not have: importing it must die of SIGILL there (exit code
# 132), and must work on a Cortex-A76, or the wheel itself would be what is wrong. Ends with 1 where either is otherwise.
set -euo pipefail
[ $# -eq 1 ] && [ -x "$1/pi" ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
LAND=$(realpath "$1")
CONTROL=$(mktemp -d)
trap 'rm -rf "$CONTROL"' EXIT
"$LAND/pip" install --target "$CONTROL" --no-deps onnxruntime==1.21.0 2>/dev/null ||
    { echo "check_cpu_model.sh: the wheel of the control, onnxruntime 1.21.0, cannot be fetched" >&2; exit 1; }

imported_on() { # the exit code of importing the control on a processor
    local code=0
    (cd "$CONTROL" && PI_CPU=$1 SITE=$CONTROL:$LAND/site "$LAND/pi" -c 'import onnxruntime; assert onnxruntime.__version__ == "1.21.0"') \
        >/dev/null 2>&1 || code=$?
    echo "$code"
}
a72=$(imported_on cortex-a72) a76=$(imported_on cortex-a76)
if [ "$a72" != 132 ] || [ "$a76" != 0 ]; then
    echo "check_cpu_model.sh: onnxruntime 1.21.0 must die on the Cortex-A72 (132) and run on a Cortex-A76 (0), not $a72 and $a76;" \
        "what runs in $LAND says nothing about a Pi 4" >&2
    exit 1
fi
echo "control: onnxruntime 1.21.0 dies on this Cortex-A72 (exit code 132), as on a Pi 4, and runs on a Cortex-A76"
