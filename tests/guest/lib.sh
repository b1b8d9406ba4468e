# Where the guest lives and which QEMU boots it; sourced by build.sh and run.sh, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034 # set here for the scripts that source this

guest_sources=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest_cache=${VIREO_GUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vireo/guest}

say() { printf 'guest: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 125
}

# The recipe is the stamp: what is built lies in a folder named by a hash of all that shapes it,
# so that a changed recipe is a new folder and half of one never looks like a whole.
recipe_hash() { (cd "$guest_sources" && cat "$@") | sha256sum | cut -c1-12; }

guest_recipe=$(recipe_hash build.sh guest-init guest-lib.sh initrd-init)
guest_image=$guest_cache/image-$guest_recipe
guest_systemd=$guest_cache/systemd-$guest_recipe
guest_qemu=$guest_cache/qemu-$(recipe_hash build.sh)

# True if the machine's own QEMU can be a vfio-user client (10.1 and later).
host_qemu_serves() {
    command -v qemu-system-x86_64 >/dev/null &&
        qemu-system-x86_64 -device help 2>&1 | grep '"vfio-user-pci"' >/dev/null
}

# Sets qemu=(...): the machine's own QEMU, or the one in the cache. The latter runs by the dynamic
# loader and the libraries of its own Debian release: no chroot, no root, the machine's libc is not
# touched, and paths mean the same inside and outside.
find_qemu() {
    local lib=$guest_qemu/usr/lib/x86_64-linux-gnu
    if [ -x "$guest_qemu/usr/bin/qemu-system-x86_64" ]; then
        qemu=(env "QEMU_MODULE_DIR=$lib/qemu" "$guest_qemu/usr/lib64/ld-linux-x86-64.so.2"
            --argv0 qemu-system-x86_64 --library-path "$lib"
            "$guest_qemu/usr/bin/qemu-system-x86_64"
            -L "$guest_qemu/usr/share/qemu" -L "$guest_qemu/usr/share/seabios")
    elif host_qemu_serves; then
        qemu=(qemu-system-x86_64)
    else
        die "no QEMU with vfio-user-pci; build it with: make guest"
    fi
}

# Options that every boot shares, the probe for KVM too.
qemu_base=(-nodefaults -no-user-config -display none -no-reboot)
guest_machine=q35,smm=off,vmport=off,i8042=off,hpet=off
kernel_base="console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on"

# Sets accel and cpu for "auto", "kvm" or "tcg". Whether KVM carries a Debian kernel is found out by
# booting one (a nested or crippled /dev/kvm may not), once per machine, kernel and recipe.
choose_accel() {
    local wanted=$1 verdict
    case $wanted in
    auto)
        if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
            verdict="no"
            say "no access to /dev/kvm: the guest is emulated (TCG), correct but slow"
        else
            kvm_verdict
            [ "$verdict" = yes ] ||
                say "KVM does not boot a Debian kernel here: the guest is emulated (TCG), correct but slow"
        fi
        if [ "$verdict" = yes ]; then choose_accel kvm; else choose_accel tcg; fi
        ;;
    kvm) accel=kvm cpu=host ;;
    tcg) accel=tcg,thread=multi cpu=max ;;
    *) die "acceleration is auto, kvm or tcg, not '$wanted'" ;;
    esac
}

# Sets verdict to yes or no, from the cache or by a boot of at most ten seconds.
kvm_verdict() {
    local file=$guest_cache/kvm-$guest_recipe host
    host="$(uname -r) $(grep -m1 '^model name' /proc/cpuinfo)"
    if [ -f "$file" ] && [ "$(sed -n 2p "$file")" = "$host" ]; then
        verdict=$(sed -n 1p "$file")
        return
    fi
    verdict=no
    if timeout -k 1 10 "${qemu[@]}" "${qemu_base[@]}" -machine "$guest_machine" -accel kvm \
        -cpu host -m 512 -kernel "$guest_image/vmlinux" -initrd "$guest_image/initrd.cpio" \
        -append "$kernel_base vireo.probe" -serial stdio </dev/null 2>/dev/null |
        grep vireo-probe-passed >/dev/null; then
        verdict=yes
    fi
    printf '%s\n%s\n' "$verdict" "$host" >"$file.$$" && mv "$file.$$" "$file"
}
