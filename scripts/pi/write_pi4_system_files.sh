#!/bin/bash
# Writes what a Raspberry Pi 4 answers in /proc/cpuinfo and /sys/devices/system/cpu into a user land: four Cortex-A72
# cores, no AES, SHA or PMULL, no dot product.
#
#   scripts/pi/write_pi4_system_files.sh ROOTFS
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; }
ROOTFS=$1
CPUS=$ROOTFS/sys/devices/system/cpu
mkdir -p "$ROOTFS/proc/device-tree" "$CPUS"

{
    for core in 0 1 2 3; do
        printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n' "$core"
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
    done
    printf 'Revision\t: b03114\nSerial\t\t: 10000000deadbeef\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n'
} >"$ROOTFS/proc/cpuinfo"
printf 'Raspberry Pi 4 Model B Rev 1.4\0' >"$ROOTFS/proc/device-tree/model"

echo 255 >"$CPUS/kernel_max"
for list in possible present online; do echo 0-3 >"$CPUS/$list"; done
: >"$CPUS/offline"
for core in 0 1 2 3; do
    cpu=$CPUS/cpu$core
    mkdir -p "$cpu"/{topology,cpufreq,regs/identification} "$cpu"/cache/index{0,1,2}
    echo 1800000 >"$cpu/cpufreq/cpuinfo_max_freq"
    echo 600000 >"$cpu/cpufreq/cpuinfo_min_freq"
    echo 1800000 >"$cpu/cpufreq/scaling_cur_freq"
    echo 0 >"$cpu/topology/physical_package_id"
    echo 0 >"$cpu/topology/cluster_id"
    echo "$core" >"$cpu/topology/core_id"
    for list in cluster_cpus_list core_siblings_list package_cpus_list; do echo 0-3 >"$cpu/topology/$list"; done
    for list in thread_siblings_list core_cpus_list; do echo "$core" >"$cpu/topology/$list"; done
    echo 0x00000000410fd083 >"$cpu/regs/identification/midr_el1"
    index=0
    for cache in "1 Data 32K $core" "1 Instruction 48K $core" "2 Unified 1024K 0-3"; do
        read -r level kind size shared <<<"$cache"
        echo "$level" >"$cpu/cache/index$index/level"
        echo "$kind" >"$cpu/cache/index$index/type"
        echo "$size" >"$cpu/cache/index$index/size"
        echo "$shared" >"$cpu/cache/index$index/shared_cpu_list"
        echo 64 >"$cpu/cache/index$index/coherency_line_size"
        index=$((index + 1))
    done
done
