#!/bin/bash
# Builds a Raspberry Pi 4 user land (Debian arm64, Python, aarch64 wheels) and the instruction counter in DIR.
#
#   scripts/pi/setup.sh DIR [bookworm|trixie] [REQUIREMENT...]
#
# Afterwards `DIR/pi script.py` runs a Python script on the emulated Cortex-A72, and scripts/pi/count_instructions.py
# counts what graphs cost there. Needs a Debian host with gcc and pip; root only where qemu-user and mmdebstrap have to be
# installed first. No guest code runs until the check at the end. Ends with 7 where the emulator cannot be had.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
DIR=$(realpath -m "$1")
SUITE=${2:-bookworm}
shift $(($# < 2 ? $# : 2))
REQUIREMENTS=("$@")
[ ${#REQUIREMENTS[@]} -gt 0 ] || REQUIREMENTS=(numpy==2.4.6 onnxruntime==1.32.0 ai-edge-litert==2.3.0)
HERE=$(dirname "$(realpath "$0")")
PYTHON=${PYTHON:-python3}

case $SUITE in # its Python, and the newest glibc that a wheel may ask for
bookworm) VERSION=3.11 GLIBC=36 ;;
trixie) VERSION=3.13 GLIBC=41 ;;
*) echo "setup.sh: unknown release '$SUITE'; take bookworm or trixie" >&2; exit 2 ;;
esac

not_run() { echo "setup.sh: not run: $1" >&2; exit 7; }
step() { echo "[${SECONDS}s] $*"; }

if ! command -v qemu-aarch64 >/dev/null || ! command -v mmdebstrap >/dev/null; then
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends qemu-user mmdebstrap; } >/dev/null ||
        not_run "qemu-user and mmdebstrap are missing and cannot be installed; on Debian, as root: apt-get install qemu-user mmdebstrap"
fi
command -v gcc >/dev/null || not_run "gcc is missing (Debian: apt-get install gcc)"
step "$(qemu-aarch64 --version | head -1)"

mkdir -p "$DIR"
rm -rf "$DIR/pi" "$DIR/land.json" "$DIR/rootfs" "$DIR/site" # land.json comes back last: without it a land is not whole
mmdebstrap -q --architectures=arm64 --variant=extract \
    --include=python3-minimal,python3,libpython3-stdlib,libstdc++6,libgomp1,libatomic1,coreutils,bash,dash \
    "$SUITE" "$DIR/rootfs" </dev/null || not_run "the packages of $SUITE for arm64 cannot be fetched"
rm -rf "$DIR"/rootfs/usr/share/{doc,man,locale,info} "$DIR"/rootfs/var/cache/*
step "user land of $SUITE"

# Engines read the host's /proc/cpuinfo and /sys to choose kernels, and crash on what they find there. qemu's -L looks into
# the user land first, so the Pi's own answers are put there.
bash "$HERE/write_pi4_system_files.sh" "$DIR/rootfs"

PLATFORMS=(--platform manylinux2014_aarch64)
for minor in $(seq "$GLIBC" -1 17); do PLATFORMS+=(--platform "manylinux_2_${minor}_aarch64"); done
"$PYTHON" -m pip --disable-pip-version-check install -q --only-binary=:all: --implementation cp \
    --python-version "$VERSION" "${PLATFORMS[@]}" --target "$DIR/site" "${REQUIREMENTS[@]}" ||
    not_run "aarch64 wheels of ${REQUIREMENTS[*]} for Python $VERSION cannot be fetched"
step "wheels: ${REQUIREMENTS[*]}"

gcc -O2 -Wall -Wextra -shared -fPIC "$HERE/instruction_counter.c" -o "$DIR/instruction_counter.so"

# One thread for everything: onnxruntime since 1.29 starts another one for telemetry, whose instructions would be counted.
cat >"$DIR/pi" <<END
#!/bin/bash
# Runs the guest's Python on the emulated Cortex-A72. COUNTS=FILE appends instruction counts of marked regions to FILE.
exec qemu-aarch64 -cpu cortex-a72 \${COUNTS:+-plugin "$DIR/instruction_counter.so,out=\$COUNTS"} -L "$DIR/rootfs" \\
    -E PYTHONPATH="$DIR/site\${PYTHONPATH:+:\$PYTHONPATH}" -E PYTHONDONTWRITEBYTECODE=1 -E PYTHONHASHSEED=0 \\
    -E OMP_NUM_THREADS=1 -E OPENBLAS_NUM_THREADS=1 -E ORT_DISABLE_TELEMETRY=1 "$DIR/rootfs/usr/bin/python$VERSION" "\$@"
END
chmod +x "$DIR/pi"
"$DIR/pi" -c 'import platform; assert platform.machine() == "aarch64"' || not_run "the guest's Python does not start"
COUNTS=$DIR/counts.tmp "$DIR/pi" -c 'pass' 2>"$DIR/plugin.log" ||
    not_run "qemu does not load the instruction counter: $(head -1 "$DIR/plugin.log"). It was written for the plugin interface version 1 (Debian 12: qemu-user 7.2)"
rm -f "$DIR/counts.tmp" "$DIR/plugin.log"

"$PYTHON" - "$DIR" "$SUITE" "$VERSION" "$(qemu-aarch64 --version | head -1)" "${REQUIREMENTS[@]}" <<'END'
import json, pathlib, sys
folder, suite, python, qemu, *packages = sys.argv[1:]
found = {"suite": suite, "python": python, "cpu": "cortex-a72", "emulator": qemu, "packages": packages}
(pathlib.Path(folder) / "land.json").write_text(json.dumps(found, indent=2) + "\n")
END
step "ready: $DIR"
