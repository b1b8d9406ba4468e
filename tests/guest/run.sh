#!/bin/bash
# run.sh [options] SCRIPT [FILE...] - boots the test guest and runs SCRIPT (bash) in it.
#
# FILEs lie beside the script, in /run/vireo. Its output is ours; its exit code too, except
#   124  the time limit passed          125  the guest ended without an exit code, or cannot start
# With a code other than 0 the end of the guest's kernel log follows on stderr.
#
#   --drive DIR        a vfio-user drive, served at the socket DIR/cntrl (repeatable; the first is
#                      nvme0)
#   --memory MIB       guest memory, 1024 unless given; --cpus N  virtual CPUs, 1 unless given
#   --accel auto|kvm|tcg    auto unless given: KVM where it boots a guest, emulation elsewhere
#   --kernel ARGS      more of the kernel's command line (nvme_core.multipath=N stands there already)
#   --iommu            an Intel IOMMU in front of every drive, used by the guest's kernel
#   --qemu ARG         one more argument for QEMU (repeatable; option and value are two)
#   --time SECONDS     time limit, 300 unless given
#   --out DIR          what the script leaves in /run/vireo/out comes here
#   --control SOCKET   a Unix stream socket on which the caller listens: QEMU connects to it before
#                      the guest starts. Lines sent there are read by await, told by tell (guest-lib.sh)
#   --pid-file FILE    the QEMU process's id, while it runs
#   --console FILE     the guest's kernel console, kept
#   --systemd          the guest whose process 1 is systemd (build.sh systemd)
set -euo pipefail
# shellcheck source=tests/guest/lib.sh
. "$(dirname "$0")/lib.sh"

usage() {
    sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 125
}

memory=1024 cpus=1 wanted_accel=auto kernel='' iommu='' seconds=300
out='' control='' pid_file='' console='' root=$guest_image/root.ext4
drives=() more=()
while [ $# -gt 0 ]; do
    case $1 in
    --iommu) iommu=yes && shift && continue ;;
    --systemd) root=$guest_systemd/root.ext4 kernel+=" vireo.init=/sbin/init" && shift && continue ;;
    --*) [ $# -ge 2 ] || usage ;;
    *) break ;;
    esac
    case $1 in
    --drive) drives+=("$2") ;;
    --memory) memory=$2 ;;
    --cpus) cpus=$2 ;;
    --accel) wanted_accel=$2 ;;
    --kernel) kernel+=" $2" ;;
    --qemu) more+=("$2") ;;
    --time) seconds=$2 ;;
    --out) out=$2 ;;
    --control) control=$2 ;;
    --pid-file) pid_file=$2 ;;
    --console) console=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[ $# -ge 1 ] || usage

if [ ! -f "$root" ] || [ ! -f "$guest_image/vmlinux" ]; then
    die "no guest in $guest_cache; build it with: make guest"
fi
find_qemu
choose_accel "$wanted_accel"
touch -c "$guest_image" "$guest_qemu"

work=$(mktemp -d "${TMPDIR:-/tmp}/vireo-guest.XXXXXX")
runner=''
# shellcheck disable=SC2317 # called by the trap
cleanup() {
    [ -z "$runner" ] || kill -KILL "$runner" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir "$work/in"
cp "$1" "$work/in/script"
shift
[ $# = 0 ] || cp -a "$@" "$work/in/"
tar cf "$work/in.tar" -C "$work/in" .
console=${console:-$work/console}

command=("${qemu[@]}" "${qemu_base[@]}" -name vireo-guest)
if [ -n "$iommu" ]; then
    # Interrupt remapping wants the split interrupt chip; the IOMMU stands before what it serves.
    [ "$accel" != kvm ] || guest_machine+=,kernel-irqchip=split
    command+=(-device "intel-iommu,intremap=on,caching-mode=on")
    kernel+=" intel_iommu=on"
fi
# shellcheck disable=SC2054 # the commas are QEMU's
command+=(
    -machine "$guest_machine,memory-backend=memory" -accel "$accel" -cpu "$cpu"
    -smp "$cpus" -m "$memory" -object "memory-backend-memfd,id=memory,size=${memory}M,share=on"
    -kernel "$guest_image/vmlinux" -initrd "$guest_image/initrd.cpio"
    -append "$kernel_base nvme_core.multipath=N$kernel"
    -chardev "file,id=console,path=$console" -serial chardev:console
    -device "virtio-serial-pci,max_ports=8"
    -chardev stdio,id=output,signal=off -device virtconsole,chardev=output,nr=0
    -chardev "file,id=code,path=$work/code" -device virtserialport,chardev=code,name=vireo.code,nr=1
    -chardev "file,id=out,path=$work/out.tar" -device virtserialport,chardev=out,name=vireo.out,nr=2
    -drive "file=$root,format=raw,if=none,id=root,snapshot=on,cache=unsafe"
    -device virtio-blk-pci,drive=root
    -drive "file=$work/in.tar,format=raw,if=none,id=in,readonly=on"
    -device virtio-blk-pci,drive=in)
# shellcheck disable=SC2054
[ -z "$control" ] || command+=(-chardev "socket,id=control,path=$control"
    -device virtserialport,chardev=control,name=vireo.control,nr=3)
[ -z "$pid_file" ] || command+=(-pidfile "$pid_file")
for drive in "${drives[@]}"; do
    case $drive in *[\"\\]*) die "a drive's path holds neither quotes nor backslashes: $drive" ;; esac
    command+=(-device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"'"$drive/cntrl"'"}}')
done
command+=("${more[@]}")

# Each dies with its parent, so that a killed test leaves no machine behind.
with_parent=(setpriv --pdeathsig KILL)
# boot : runs the machine to its end; sets the status of QEMU and the exit code that the script left, if any.
boot() {
    status=0 SECONDS=0
    : >"$work/code"
    TMPDIR=$work "${with_parent[@]}" timeout -k 2 "$seconds" "${with_parent[@]}" "${command[@]}" \
        </dev/null &
    runner=$!
    wait "$runner" 2>/dev/null || status=$? # silent about how it died: the status says it
    runner=''
    code=$(tr -dc 0-9 <"$work/code")
}
# Where several processors are emulated, one may come upon a breakpoint that another has just taken out of the kernel's
# code (text_poke), and the kernel ends in the middle of a no-operation. Nothing else looks like that.
ended_by_emulation() {
    [ "$accel" != kvm ] && [ -z "$control$code" ] && grep -q 'Code:.* 0f <1f> 44 00 00' "$console"
}
boot
for again in 1 2; do
    ended_by_emulation || break
    say "the emulation failed the guest's kernel: booted again ($again)"
    boot
done
if [ -n "$out" ]; then
    mkdir -p "$out"
    [ ! -s "$work/out.tar" ] || tar xf "$work/out.tar" -C "$out"
fi
if [ -z "$code" ]; then
    code=125
    say "no exit code from the guest (QEMU's status is $status)"
    case $status in 124 | 137) [ "$SECONDS" -lt "$seconds" ] || code=124 ;; esac
fi
if [ "$code" != 0 ] && [ -s "$console" ]; then
    say "the end of its kernel log:"
    tail -n 60 "$console" >&2
fi
exit "$code"
