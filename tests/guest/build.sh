#!/bin/bash
# build.sh [image|qemu|systemd]... - builds the Linux guest of the tests out of Debian packages.
# Default: image, and qemu unless the machine's own QEMU has vfio-user-pci.
#   image    guest tree, kernel and initrd      systemd   a guest whose process 1 is systemd
# Packages are unpacked, never installed: no package's script runs, nothing here needs root (but for
# apt on the machine itself, if mmdebstrap, e2fsprogs, kmod, xz or zstd is missing).
# VIREO_DEBIAN_MIRROR names a mirror; by default it is the one that this machine uses.
set -Eeuo pipefail
# shellcheck source=tests/guest/lib.sh
. "$(dirname "$0")/lib.sh"

suite=trixie
# The cloud kernel has NVMe, ext4, PCI hot plug and the Intel IOMMU built in.
kernel_package=linux-image-cloud-amd64
guest_packages=(
    base-files base-passwd libc-bin hostname
    bash coreutils util-linux util-linux-extra bsdextrautils mount procps iproute2 busybox-static
    dash grep sed gawk findutils diffutils tar gzip bc jq python3-minimal
    kmod pciutils strace
    nvme-cli fio e2fsprogs xfsprogs btrfs-progs parted dmsetup blktrace sg3-utils
    "$kernel_package"
)
# dpkg and what maintainer scripts of packages call, for tests that install one.
systemd_packages=(systemd systemd-sysv udev dbus libpam-runtime dpkg init-system-helpers perl-base)

debian_mirror() {
    local found
    found=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null |
        grep -Eo 'https?://[^ ]+/debian/?( |$)' | head -n 1) || true
    found=${found% }
    printf '%s\n' "${VIREO_DEBIAN_MIRROR:-${found:-http://deb.debian.org/debian}}"
}

# unpack DIRECTORY PACKAGE... : the packages and what they depend on, of trixie, QEMU of its backports.
unpack() {
    local directory=$1 mirror
    shift
    mirror=$(debian_mirror)
    # shellcheck disable=SC2016 # $1 is expanded by the shell that runs the hook
    mmdebstrap --quiet --mode=chrootless --skip=check/chrootless --variant=extract \
        --architectures=amd64 \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --aptopt='Acquire::Retries "3"' \
        --setup-hook='mkdir -p "$1/etc/apt/preferences.d"' \
        --setup-hook='printf "%s\n" "Package: qemu* seabios ipxe-qemu" \
            "Pin: release n='"$suite"'-backports" "Pin-Priority: 600" \
            >"$1/etc/apt/preferences.d/qemu"' \
        --include="$(IFS=,; echo "$*")" "$suite" "$directory" \
        "deb $mirror $suite main" "deb $mirror $suite-backports main" 2>"$work/mmdebstrap.log" || {
        cat "$work/mmdebstrap.log" >&2
        die "mmdebstrap cannot unpack $*"
    }
}

build_qemu() {
    unpack "$work/qemu" qemu-system-x86
    publish "$work/qemu" "$guest_qemu"
}

build_image() {
    local tree=$work/tree out=$work/image
    mkdir "$out"
    unpack "$tree" "${guest_packages[@]}"
    finish_tree "$tree"
    take_kernel "$tree" "$out"
    make_initrd "$tree" "$out"
    make_filesystem "$tree" "$out/root.ext4"
    publish "$out" "$guest_image"
}

build_systemd() {
    local tree=$work/systemd-tree out=$work/systemd
    local units=$tree/etc/systemd/system unit
    mkdir "$out"
    unpack "$tree" "${guest_packages[@]}" "${systemd_packages[@]}"
    finish_tree "$tree"
    rm -rf "${tree:?}"/boot/*
    mkdir -p "$units/multi-user.target.wants"
    cat >"$units/vireo-script.service" <<'UNIT'
[Unit]
Description=The test's script
After=basic.target systemd-udev-settle.service

[Service]
Type=oneshot
ExecStart=/sbin/guest-init service
UNIT
    ln -s ../vireo-script.service "$units/multi-user.target.wants/"
    ln -s /usr/lib/systemd/system/multi-user.target "$units/default.target"
    # Nobody logs in, and the first boot asks no questions.
    for unit in fio.service getty.target console-getty.service systemd-firstboot.service \
        systemd-hwdb-update.service systemd-journal-catalog-update.service \
        systemd-networkd.service fstrim.timer e2scrub_all.timer e2scrub_reap.service \
        apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer; do
        ln -s /dev/null "$units/$unit"
    done
    make_filesystem "$tree" "$out/root.ext4"
    publish "$out" "$guest_systemd"
}

# finish_tree TREE : what the packages' own scripts would have done, as far as the guest needs it.
finish_tree() {
    local tree=$1 version
    cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
    cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
    printf 'root:*:19000:0:99999:7:::\n' >"$tree/etc/shadow"
    printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n' >"$tree/etc/nsswitch.conf"
    printf '127.0.0.1 localhost guest\n' >"$tree/etc/hosts"
    echo guest >"$tree/etc/hostname"
    mkdir -p "$tree/mnt"
    echo uninitialized >"$tree/etc/machine-id"
    ln -sf gawk "$tree/usr/bin/awk"
    ln -sf /proc/self/mounts "$tree/etc/mtab"
    ldconfig=$(PATH=$PATH:/usr/sbin:/sbin command -v ldconfig)
    "$ldconfig" -r "$tree" 2>/dev/null
    version=$(ls "$tree/usr/lib/modules")
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$tree" "$version"
    mkdir -p "$tree/usr/lib/vireo"
    install -m 755 "$guest_sources/guest-init" "$tree/usr/sbin/guest-init"
    install -m 644 "$guest_sources/guest-lib.sh" "$tree/usr/lib/vireo/guest-lib.sh"
}

# take_kernel TREE OUT : Debian's bzImage as the ELF inside it, which QEMU enters directly (PVH):
# no firmware, and no decompression, which emulation makes slow. Offsets: the kernel's boot protocol,
# setup_sects 0x1f1, payload_offset 0x248, payload_length 0x24c; the payload's last 4 bytes are its
# unpacked size.
take_kernel() {
    local tree=$1 out=$2 image sectors offset length
    image=$(ls "$tree"/boot/vmlinuz-*)
    sectors=$(od -An -tu1 -j$((0x1f1)) -N1 "$image")
    offset=$(od -An -tu4 -j$((0x248)) -N4 "$image")
    length=$(od -An -tu4 -j$((0x24c)) -N4 "$image")
    dd if="$image" of="$work/payload" bs=1M iflag=skip_bytes,count_bytes status=none \
        skip=$(((sectors + 1) * 512 + offset)) count=$((length - 4))
    case $(od -An -tx1 -N4 "$work/payload" | tr -d ' ') in
    28b52ffd) zstd -dcq "$work/payload" >"$out/vmlinux" ;;
    fd377a58) xz -dc "$work/payload" >"$out/vmlinux" ;;
    *) die "the kernel $image is compressed by neither zstd nor xz" ;;
    esac
    echo "${image##*/vmlinuz-}" >"$out/kernel-version"
    rm -rf "${tree:?}"/boot/*
}

# make_initrd TREE OUT : busybox, the modules of the root disk, and the script that mounts it.
make_initrd() {
    local tree=$1 out=$2 initrd=$work/initrd version module name
    version=$(cat "$out/kernel-version")
    mkdir -p "$initrd"/{bin,proc,sys,dev,root}
    cp "$tree/usr/bin/busybox" "$initrd/bin/"
    PATH=$PATH:/usr/sbin:/sbin modprobe -d "$tree" -S "$version" --show-depends virtio_blk |
        awk '$1 == "insmod" {print $2}' >"$work/modules"
    while read -r module; do
        name=$(basename "${module%%.ko*}").ko
        case $module in
        *.xz) xz -dc "$module" ;;
        *.zst) zstd -dcq "$module" ;;
        *) cat "$module" ;;
        esac >"$initrd/$name"
        echo "insmod /$name"
    done <"$work/modules" >"$initrd/load-modules"
    install -m 755 "$guest_sources/initrd-init" "$initrd/init"
    (cd "$initrd" && find . | "$tree/usr/bin/busybox" cpio -o -H newc 2>/dev/null) >"$out/initrd.cpio"
}

# make_filesystem TREE FILE : the tree as a disk image. In a user namespace the builder's files are
# root's; where there is none they stay the builder's, which a guest that only knows root bears.
make_filesystem() {
    local tree=$1 file=$2 size as_root=()
    if [ "$(id -u)" != 0 ] && unshare --map-root-user true 2>/dev/null; then
        as_root=(unshare --map-root-user)
    fi
    rm -rf "$tree"/var/lib/apt "$tree"/var/cache/apt "${tree:?}"/dev/*
    size=$(($(du -sm "$tree" | cut -f1) * 5 / 4 + 200))
    PATH=$PATH:/usr/sbin:/sbin "${as_root[@]}" \
        mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0 -m 0 -d "$tree" "$file" "${size}M" >/dev/null
}

# publish FROM TO : what is built appears whole. Other recipes' go once nobody booted them for a week.
publish() {
    local from=$1 to=$2
    find "$guest_cache" -mindepth 1 -maxdepth 1 -mtime +7 \
        \( -name 'image-*' -o -name 'qemu-*' -o -name 'systemd-*' -o -name 'kvm-*' \) -exec rm -rf {} +
    mv "$from" "$to"
    touch "$to"
}

# step NAME TARGET : builds what is not there.
step() {
    [ ! -d "$2" ] || return 0
    say "building the $1 into $guest_cache"
    "build_$1"
    say "the $1 stands after $SECONDS s"
}

host_tools() {
    local tool missing=()
    for tool in mmdebstrap:mmdebstrap mke2fs:e2fsprogs depmod:kmod zstd:zstd xz:xz-utils; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
    done
    [ "${#missing[@]}" = 0 ] || "$guest_sources/../../.ci/apt" "${missing[@]}"
}

wanted=("$@")
if [ "${#wanted[@]}" = 0 ]; then
    wanted=(image)
    host_qemu_serves || wanted+=(qemu)
fi
mkdir -p "$guest_cache"
exec 8>"$guest_cache/lock"
flock 8
rm -rf "$guest_cache"/building.* # of a build that was killed
work=$(mktemp -d "$guest_cache/building.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'say "build.sh failed at line $LINENO"' ERR
for part in "${wanted[@]}"; do
    case $part in
    image) target=$guest_image ;;
    qemu) target=$guest_qemu ;;
    systemd) target=$guest_systemd ;;
    *) die "image, qemu or systemd, not '$part'" ;;
    esac
    [ -d "$target" ] || host_tools
    step "$part" "$target"
done
