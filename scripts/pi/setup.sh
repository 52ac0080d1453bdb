#!/bin/bash
# Builds a Raspberry Pi 4 user land (Debian arm64, Python, aarch64 wheels) and the instruction counter in DIR.
#
#   scripts/pi/setup.sh DIR [bookworm|trixie] [REQUIREMENT...]
#
# Afterwards
#   DIR/pi script.py             runs a Python script on the emulated Cortex-A72
#   DIR/pip download|install …   is pip for this Pi: `DIR/pip install --target FOLDER REQUIREMENT` unpacks aarch64 wheels, which
#                                `SITE=FOLDER DIR/pi` then uses in place of those in DIR/site
# Requirements are the two engines unless said, and a wheel of this project works too: dist/athe_export-….whl[litert].
# Versions are those of scripts/constraints.txt; only wheels are taken, since a Pi should compile nothing. Needs a Debian
# host with pip, and gcc for counting; root only where qemu-user and mmdebstrap have to be installed first. No guest code runs
# until the checks at the end. Ends with 7 where emulator or Debian packages cannot be had, with 1 where what was set up does
# not work.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2; }
DIR=$(realpath -m "$1")
SUITE=${2:-bookworm}
shift $(($# < 2 ? $# : 2))
REQUIREMENTS=("$@")
[ ${#REQUIREMENTS[@]} -gt 0 ] || REQUIREMENTS=(numpy onnxruntime ai-edge-litert)
HERE=$(dirname "$(realpath "$0")")
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "setup.sh: there is no ${PYTHON:-python3}" >&2; exit 2; }

case $SUITE in # its Python, and the newest glibc that a wheel may ask for
bookworm) VERSION=3.11 GLIBC=36 ;;
trixie) VERSION=3.13 GLIBC=41 ;;
*) echo "setup.sh: unknown release '$SUITE'; take bookworm or trixie" >&2; exit 2 ;;
esac

not_run() { echo "setup.sh: not run: $1" >&2; exit 7; }
failed() { echo "setup.sh: $1" >&2; exit 1; }
step() { echo "[${SECONDS}s] $*"; }

apt() { apt-get -qq -o DPkg::Lock::Timeout=300 "$@"; }
if ! command -v qemu-aarch64 >/dev/null || ! command -v mmdebstrap >/dev/null; then
    { apt update && apt install -y --no-install-recommends qemu-user mmdebstrap; } >/dev/null ||
        not_run "qemu-user and mmdebstrap are missing and cannot be installed; on Debian, as root: apt-get install qemu-user mmdebstrap"
fi
QEMU=$(qemu-aarch64 --version | head -1)
step "$QEMU"

mkdir -p "$DIR"
rm -rf "$DIR/pi" "$DIR/pip" "$DIR/land.json" "$DIR/rootfs" "$DIR/site" "$DIR/instruction_counter.so" # land.json comes back last: without it a land is not whole
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
cat >"$DIR/pip" <<END
#!/bin/bash
# DIR/pip download -d FOLDER REQUIREMENT... · DIR/pip install --target FOLDER REQUIREMENT...: this Pi's wheels, and wheels alone.
command=\$1
shift
[ "\$command" != install ] || set -- --no-compile --root-user-action=ignore "\$@" # bytecode is the guest's business
exec "$PYTHON" -m pip --disable-pip-version-check "\$command" -q --only-binary=:all: --implementation cp \\
    --python-version $VERSION ${PLATFORMS[*]} "\$@"
END
chmod +x "$DIR/pip"
"$DIR/pip" install --target "$DIR/site" -c "$HERE/../constraints.txt" "${REQUIREMENTS[@]}" 2>"$DIR/pip.log" ||
    { cat "$DIR/pip.log" >&2; failed "no aarch64 wheels of ${REQUIREMENTS[*]} for Python $VERSION"; }
rm "$DIR/pip.log"
step "wheels: ${REQUIREMENTS[*]}"

# What would make counts differ from run to run: addresses drawn at random, the seed of libc's tables, hashes of strings, and
# more than one thread. onnxruntime since 1.29 starts another one for telemetry, whose instructions would be counted.
FIXED="setarch -R"
$FIXED true 2>/dev/null || { FIXED=; echo "setup.sh: addresses cannot be fixed here; counts may differ by a few hundred" >&2; }
cat >"$DIR/pi" <<END
#!/bin/bash
# Runs the guest's Python on the emulated Cortex-A72. COUNTS=FILE appends instruction counts of marked regions to FILE; SITE is
# the folder of its packages; PI_CPU is another processor, for controls alone.
exec $FIXED qemu-aarch64 -cpu "\${PI_CPU:-cortex-a72}" -seed 1 \${COUNTS:+-plugin "$DIR/instruction_counter.so,out=\$COUNTS"} \\
    -L "$DIR/rootfs" -E PYTHONPATH="\${SITE:-$DIR/site}" -E PYTHONDONTWRITEBYTECODE=1 -E PYTHONHASHSEED=0 \\
    -E OMP_NUM_THREADS=1 -E OPENBLAS_NUM_THREADS=1 -E ORT_DISABLE_TELEMETRY=1 "$DIR/rootfs/usr/bin/python$VERSION" "\$@"
END
chmod +x "$DIR/pi"
"$DIR/pi" -c 'import platform; assert platform.machine() == "aarch64"' || failed "the guest's Python does not start"
if ! { gcc -O2 -Wall -Wextra -shared -fPIC "$HERE/instruction_counter.c" -o "$DIR/instruction_counter.so" &&
    COUNTS=$DIR/counts.tmp "$DIR/pi" -c 'pass'; } 2>"$DIR/counter.log"; then
    echo "setup.sh: instructions cannot be counted here: $(head -1 "$DIR/counter.log"). This needs gcc, and a qemu that loads" \
        "plugins of interface version 1 (Debian 12: qemu-user 7.2); all else works" >&2
    rm -f "$DIR/instruction_counter.so"
fi
rm -f "$DIR/counts.tmp" "$DIR/counter.log"

"$PYTHON" - "$DIR" "$SUITE" "$VERSION" "$QEMU" <<'END'
import importlib.metadata, json, pathlib, sys
folder, suite, python, qemu = sys.argv[1:]
found = importlib.metadata.distributions(path=[folder + "/site"])
packages = dict(sorted((d.metadata["Name"].lower().replace("_", "-"), d.version) for d in found))
land = {"suite": suite, "python": python, "cpu": "cortex-a72", "emulator": qemu, "packages": packages}
(pathlib.Path(folder) / "land.json").write_text(json.dumps(land, indent=2) + "\n")
END
step "ready: $DIR"
