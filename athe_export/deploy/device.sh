# What `athe-export deploy` runs on a device as `sh -c THIS sh TOKEN DIR PYTHON`. It reads requests from stdin, a line each with
# fields set apart by tabs, and answers with lines of text and then `TOKEN STATUS`. The first request that fails ends it.
# POSIX sh, coreutils and flock; nothing of it stays on the device.
#
# DIR/versions/ID        a bundle; not changed once it is there. ID ends in the KEY of its runtime
# DIR/venv-KEY           a runtime; not changed once DIR/venv-KEY/complete is there, and held against DIR/venv-KEY/digests
# DIR/current, previous  links to two of the versions
# DIR/athe-export        runs the athe-export of the current version
# DIR/incoming           what arrives; gone when this ends, however it ends
# DIR/.athe-export       the lock, and the mark that DIR was made by this
set -u
LC_ALL=C
PYTHONSAFEPATH=1 # else -m and -c look into the current folder first, for modules of Python's own too
export LC_ALL PYTHONSAFEPATH
unset PYTHONPATH PYTHONHOME PIP_USER
token=$1 dir=$2 python=$3
case $dir in
/*) ;;
*) dir=$PWD/$dir ;;
esac
locked='' new_runtime='' new_version='' # what this has brought, until it is in use
exec 3<&0 </dev/null

leave() {
    if [ -n "$locked" ]; then
        rm -rf "$dir/incoming" ${new_runtime:+"$new_runtime"} ${new_version:+"$new_version"}
    fi
}
trap leave EXIT
heed() { trap 'exit 1' HUP INT TERM; }
heed
trap '' PIPE # after a cut the next read ends this in good order

state() {
    if [ -e "$dir/.athe-export" ]; then
        echo ours
    elif [ ! -e "$dir" ] && [ ! -L "$dir" ]; then
        echo absent
    elif [ ! -d "$dir" ]; then
        echo file
    elif [ -n "$(ls -A "$dir")" ]; then
        echo foreign
    else
        echo empty
    fi
}

ancestor() { # of DIR, the nearest that exists
    place=$dir
    while [ ! -e "$place" ]; do place=$(dirname "$place"); done
    echo "$place"
}

fact() { # NAME VALUE...: one line
    name=$1
    shift
    printf '%s\t%s\n' "$name" "$(printf '%s ' "$@" | tr '\n\t\0' '   ' | sed 's/ *$//')"
}

memory() { sed -n "s/^$1: *\([0-9]*\) kB.*/\1/p" /proc/meminfo; }

clock() { # NAME: the greatest over CPUs, in kHz
    cat /sys/devices/system/cpu/cpu*/cpufreq/"$1" | sort -n | tail -n 1
}

facts() { # what a device does not tell stays empty; nothing is written
    fact directory "$dir"
    fact state "$(state)"
    if [ -w "$(ancestor)" ]; then fact writable yes; else fact writable no; fi
    fact machine "$(uname -m)"
    fact kernel "$(uname -sr)"
    fact libc "$(getconf GNU_LIBC_VERSION)"
    fact bits "$(getconf LONG_BIT)"
    fact board "$(tr -d '\0' </proc/device-tree/model)"
    fact disk_kb "$(df -Pk "$(ancestor)" | awk 'END { print $4 }')"
    fact memory_kb "$(memory MemTotal)"
    fact available_kb "$(memory MemAvailable)"
    fact governor "$(cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor | sort -u)"
    fact khz "$(clock scaling_cur_freq)"
    fact max_khz "$(clock cpuinfo_max_freq)"
    fact throttled "$(vcgencmd get_throttled)"
    fact epoch "$(date +%s)"
    for tool in flock sha256sum head awk sed readlink; do command -v "$tool" >/dev/null || fact lacking "$tool"; done
    fact current "$(readlink "$dir/current")"
    fact previous "$(readlink "$dir/previous")"
    fact venvs "$(cd "$dir" && ls -d venv-*/complete)"
    "$python" -I -c '
import importlib.util, platform, struct, sys
def fact(name, value):
    print(name + "\t" + str(value))
fact("python", platform.python_version())
fact("python_bits", 8 * struct.calcsize("P"))
fact("implementation", platform.python_implementation())
fact("venv", "yes" if all(map(importlib.util.find_spec, ("venv", "ensurepip"))) else "no")
'
    return 0
} 2>/dev/null

begin() {
    case $(state) in
    file | foreign)
        echo "$dir is there already and was not made by athe-export deploy"
        return 10
        ;;
    esac
    mkdir -p "$dir" && touch "$dir/.athe-export" || return
    exec 9>>"$dir/.athe-export"
    flock -n 9 || return 11
    locked=yes
    rm -rf "$dir/incoming"
    for venv in "$dir"/venv-*; do # what a power cut has left
        [ -e "$venv/complete" ] || rm -rf "$venv"
    done
    mkdir -p "$dir/incoming/bundle" "$dir/incoming/wheels" "$dir/incoming/tmp" "$dir/versions"
}

digests() { # ID: of every file of that version
    [ ! -d "$dir/versions/$1" ] || (cd "$dir/versions/$1" && find . ! -type d -exec sha256sum {} +)
}

put() { # PATH BYTES SHA256: so many bytes follow on stdin
    mkdir -p "$(dirname "$dir/incoming/$1")" && head -c "$2" <&3 >"$dir/incoming/$1" || return
    [ "$(sha256sum <"$dir/incoming/$1")" = "$3  -" ] || return 12
}

whole() { # KEY: says `whole` of a runtime that is there as it was installed; else `absent`, after which there is room for it
    if [ -e "$dir/venv-$1/complete" ]; then
        if (cd "$dir/venv-$1" && sha256sum --quiet --check digests); then
            echo whole
            return
        fi
        case $(readlink "$dir/current") in *-"$1") return 13 ;; esac
        mv "$dir/venv-$1" "$dir/incoming/damaged-$1" || return
    fi
    echo absent
}

install() { # KEY REQUIREMENT OPTIONS...: pip's
    [ ! -e "$dir/venv-$1/complete" ] || return 0
    new_runtime=$dir/venv-$1
    venv=$new_runtime requirement=$2
    shift 2
    # in two steps, since the first would keep to itself why the second fails
    "$python" -m venv --without-pip "$venv" && "$venv/bin/python" -m ensurepip --default-pip || return
    ( # bytecode of all files would be a fifth more; Python writes that of those in use
        cd "$dir/incoming" && TMPDIR=$dir/incoming/tmp "$venv/bin/python" -m pip install --disable-pip-version-check \
            --no-input --no-cache-dir --no-compile --progress-bar off --only-binary=:all: "$@" "$requirement"
    ) || return
    "$venv/bin/python" -m pip --disable-pip-version-check list --format=freeze >"$dir/incoming/packages" || return
    (cd "$venv" && find . -type f ! -name '*.pyc' -exec sha256sum {} +) >"$dir/incoming/digests" || return
    mv "$dir/incoming/digests" "$venv/digests" || return
    sync
    mv "$dir/incoming/packages" "$venv/complete"
}

packages() { # KEY
    cat "$dir/venv-$1/complete"
}

verify() { # KEY PATH
    "$dir/venv-$1/bin/python" -m athe_export.cli verify "$dir/$2" --json 2>"$dir/incoming/said"
    status=$?
    [ $status = 0 ] || cat "$dir/incoming/said"
    return $status
}

keep() { # ID: what has arrived becomes that version; a damaged one makes room, which takes two renames
    sync
    trap '' HUP INT TERM
    if [ -e "$dir/versions/$1" ]; then
        mv "$dir/versions/$1" "$dir/incoming/damaged" || return
        mv "$dir/incoming/bundle" "$dir/versions/$1" || { mv "$dir/incoming/damaged" "$dir/versions/$1"; return 1; }
    else
        new_version=$dir/versions/$1
        mv "$dir/incoming/bundle" "$new_version" || return
    fi
    heed
}

switch() { # ID
    cat >"$dir/incoming/launcher" <<'END' || return
#!/bin/sh
# Runs the athe-export that belongs to the current bundle. Written by `athe-export deploy`.
here=$(dirname "$(readlink -f "$0")")
version=$(readlink "$here/current")
exec "$here/venv-${version##*-}/bin/python" -I -m athe_export.cli "$@"
END
    chmod 755 "$dir/incoming/launcher" && mv -f "$dir/incoming/launcher" "$dir/athe-export" || return
    now=$(readlink "$dir/current")
    if [ "$now" = "versions/$1" ]; then
        new_runtime='' new_version=''
        return
    fi
    [ -z "$now" ] || ln -s "$now" "$dir/incoming/previous" || return
    ln -s "versions/$1" "$dir/incoming/current" || return
    sync
    # Renames put links in place, so that there is always one. What was current becomes previous only once it is not current any
    # more: a switch that fails leaves a version to go back to.
    trap '' HUP INT TERM
    mv -fT "$dir/incoming/current" "$dir/current" || return
    new_runtime='' new_version=''
    [ -z "$now" ] || mv -fT "$dir/incoming/previous" "$dir/previous" || return
    heed
    sync
}

prune() { # versions that are neither current nor the one before, and runtimes of none
    failed=0
    for version in "$dir"/versions/*; do
        name=versions/${version##*/}
        [ "$name" = "$(readlink "$dir/current")" ] || [ "$name" = "$(readlink "$dir/previous")" ] || rm -rf "$version" || failed=1
    done
    for venv in "$dir"/venv-*; do
        ls -d "$dir"/versions/*-"${venv##*/venv-}" >/dev/null 2>&1 || rm -rf "$venv" || failed=1
    done
    return $failed
}

printf '\n%s 0\n' "$token"
while IFS= read -r line <&3; do
    IFS='	'
    set -f
    # shellcheck disable=SC2086 # fields, as they were joined
    set -- $line
    set +f
    IFS=' 	
'
    "$@" 2>&1
    status=$?
    printf '\n%s %s\n' "$token" "$status"
    [ $status = 0 ] || exit 1
done
