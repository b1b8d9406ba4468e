#!/bin/bash
# Runs in the systemd guest: installs the package beside this script and uses it as an administrator would.
# The test sets LIMIT before it: the highest exposure, in tenths, that a unit of the data plane may have by
# `systemd-analyze security`.
# shellcheck disable=SC2154 # LIMIT is set by the test

data_plane=(vireo-frontend@f0.service vireo-worker@w0.service vireo-backend@b0.service)
units=("${data_plane[@]}" vireo-manager.service)
failed() {
    systemctl --no-pager --full status "${units[@]}" vireo-manager.socket vireo.target
    journalctl --no-pager -o short-monotonic -n 150
}
trap '[ $? = 0 ] || failed' EXIT

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
property() { systemctl show --value -p "$2" "$1"; }
processes() { pgrep -x -l 'vireo-(frontend|worker|backend|manager)'; }
active() {
    local unit
    for unit in "${units[@]}"; do
        [ "$(property "$unit" ActiveState)" = active ] || return 1
    done
}
served() { active && vireo status >/dev/null 2>&1; }
# io PATTERN: writes and reads what it wrote, or (pattern read) reads what the last one wrote; every block is checked.
io() {
    vireo perf vfio-user:/run/vireo/vm0 --pattern "$1" --verify crc32c --block-size 64KiB --size 2MiB \
        --time 300ms --warm-up 0s >/run/vireo-io.log 2>&1 || {
        cat /run/vireo-io.log
        return 1
    }
}
# restarted UNIT PROCESS: another process than this one is ready in its place.
restarted() {
    local now
    now=$(property "$1" MainPID)
    [ "$now" != 0 ] && [ "$now" != "$2" ] && [ "$(property "$1" ActiveState)" = active ]
}

step "install"
# The guest was made without dpkg, which therefore knows of no other package.
dpkg --force-depends -i ./vireo_1.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
id vireo
[ "$(stat -c '%U:%G %a' /run/vireo)" = "vireo:vireo 750" ]
! processes # nobody asked for them yet
vireo check --config /etc/vireo/vireo.toml
test -s /usr/share/man/man1/vireo.1.gz -a -s /usr/share/man/man8/vireo-worker.8.gz
test -s /usr/share/bash-completion/completions/vireo

step "verify the units"
verified=$(systemd-analyze verify --man=no --recursive-errors=no "${units[@]}" vireo-manager.socket vireo.target 2>&1) ||
    { echo "$verified"; exit 1; }
[ -z "$verified" ] || { echo "$verified"; exit 1; }

step "start"
mkdir -p /etc/systemd/system/vireo-worker@.service.d
printf '[Service]\nWatchdogSec=3\n' >/etc/systemd/system/vireo-worker@.service.d/watchdog.conf
systemctl enable vireo.target
systemctl daemon-reload
systemctl start --no-block vireo.target
within 60 served
for unit in "${units[@]}"; do
    [ "$(property "$unit" Type)/$(property "$unit" NotifyAccess)" = notify/main ]
    [ "$(property "$unit" User)" = vireo ]
    [ "$(property "$unit" WatchdogUSec)" != infinity ]
    [ "$(property "$unit" NRestarts)" = 0 ]
done

step "look at their exposure"
for unit in "${data_plane[@]}"; do
    systemd-analyze security --no-pager --threshold="$LIMIT" "$unit" >/run/security.log ||
        { cat /run/security.log; exit 1; }
    tail -n 1 /run/security.log
done
for unit in "${data_plane[@]}"; do
    [ "$(property "$unit" FileDescriptorStoreMax)" = 4096 ]
    [ "$(property "$unit" FileDescriptorStorePreserve)" = yes ]
    [ "$(property "$unit" Restart)/$(property "$unit" RestartUSec)" = always/0 ]
    [ "$(property "$unit" StartLimitIntervalUSec)" = 0 ]
    for peer in "${data_plane[@]}"; do
        ! systemctl show -p Requires -p BindsTo -p PartOf -p Requisite "$unit" | grep -F "$peer"
    done
done

step "I/O"
io randwrite
[ "$(property vireo-backend@b0.service NFileDescriptorStore)" -ge 1 ]

step "a worker that hangs is killed by its watchdog"
process=$(property vireo-worker@w0.service MainPID)
kill -STOP "$process"
within 60 restarted vireo-worker@w0.service "$process"
journalctl -u vireo-worker@w0.service | grep -q 'Watchdog timeout'
within 60 served
io read

step "whatever is killed is back at once"
for unit in "${units[@]}"; do
    process=$(property "$unit" MainPID)
    kill -KILL "$process"
    within 60 restarted "$unit" "$process"
done
within 60 served
within 60 io read # the backend's memory outlived it in the descriptor store

step "a half edited configuration stops nothing"
cp /etc/vireo/vireo.toml /run/right.toml
echo '[[worker' >>/etc/vireo/vireo.toml
process=$(property vireo-worker@w0.service MainPID)
kill -KILL "$process"
within 60 restarted vireo-worker@w0.service "$process"
journalctl -u vireo-worker@w0.service | grep -q 'going on with the last good one'
cat /run/right.toml >/etc/vireo/vireo.toml

step "reload: a change of the administrator's, on a disk image"
cat >>/etc/vireo/vireo.toml <<'CONFIGURATION'
[[bdev]]
name = "disk"
driver = "file"
path = "/var/lib/vireo/disk.img"
create = true
size = "8MiB"

[[subsystem]]
name = "s1"

[[subsystem.namespace]]
nsid = 1
bdev = "disk"

[[endpoint]]
name = "vm1"
subsystem = "s1"
CONFIGURATION
systemctl reload vireo-manager.service
vireo perf vfio-user:/run/vireo/vm1 --pattern write --verify crc32c --block-size 64KiB --size 1MiB --time 300ms \
    --warm-up 0s >/dev/null
[ "$(stat -c '%U %s' /var/lib/vireo/disk.img)" = "vireo $((8 << 20))" ]

step "upgrade"
before=$(for unit in "${data_plane[@]}"; do property "$unit" MainPID; done)
manager=$(property vireo-manager.service MainPID)
cksum /etc/vireo/vireo.toml >/run/cksum
cksum /var/lib/vireo/manager.json >>/run/cksum
dpkg --force-depends --force-confold -i ./vireo_2.deb >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
within 60 restarted vireo-manager.service "$manager"
[ "$(for unit in "${data_plane[@]}"; do property "$unit" MainPID; done)" = "$before" ]
within 60 served
{ cksum /etc/vireo/vireo.toml && cksum /var/lib/vireo/manager.json; } | cmp - /run/cksum
io read

step "remove"
dpkg -r vireo >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
! processes
[ ! -e /usr/bin/vireo ]
{ cksum /etc/vireo/vireo.toml && cksum /var/lib/vireo/manager.json; } | cmp - /run/cksum
test -s /var/lib/vireo/disk.img

step "purge"
dpkg -P vireo >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
[ ! -e /etc/vireo/vireo.toml ]
test -s /var/lib/vireo/disk.img
step "done"
