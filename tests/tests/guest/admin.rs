//! What `nvme-cli` sees and sets.

use vireo_tests::guest::Guest;
use vireo_tests::target::Target;

use crate::{FUNCTIONS, two_devices};

#[test]
fn nvme_cli_finds_what_is_configured_and_sets_what_can_be_set() {
    let target = Target::start(&two_devices("", ""));
    let script = r#"
within 60 namespace 1 && within 60 namespace 2
memory=$(namespace 1)

nvme id-ctrl /dev/nvme0 -o json >/tmp/ctrl
expect "GUEST0001" "$(jq -r '.sn' /tmp/ctrl | sed 's/ *$//')"
expect 8 "$(jq .mdts /tmp/ctrl)"
expect 256 "$(jq .nn /tmp/ctrl)"
nvme id-ns /dev/nvme0 -n 1 -o json >/tmp/ns
expect $((128 * 2048)) "$(jq .nsze /tmp/ns)"
expect "0 9 0 12" "$(jq -r '[.lbafs[:2][] | .ms, .ds] | join(" ")' /tmp/ns)"
expect 0 "$(nvme id-ns /dev/nvme0 -n 9 -o json | jq .nsze)"
nvme id-ns /dev/nvme0 -n 999 && exit 1
nvme list-ns /dev/nvme0 -o json | jq -e '[.nsid_list[].nsid] == [1, 2]'
nvme ns-descs /dev/nvme0 -n 1
nvme list-subsys

# SMART tells what was done.
before=$(nvme smart-log /dev/nvme0 -o json | jq .host_write_commands)
dd if=/dev/zero of="$memory" bs=4k count=100 oflag=direct status=none
after=$(nvme smart-log /dev/nvme0 -o json | jq .host_write_commands)
[ $((after - before)) -ge 100 ]
expect 0 "$(nvme smart-log /dev/nvme0 -o json | jq .critical_warning)"

# A command that fails is in the error log.
errors=$(nvme smart-log /dev/nvme0 -o json | jq .num_err_log_entries)
nvme read "$memory" --start-block=99999999 --block-count=0 --data-size=512 && exit 1
[ "$(nvme smart-log /dev/nvme0 -o json | jq .num_err_log_entries)" -gt "$errors" ]
nvme error-log /dev/nvme0 -o json | jq -e '.errors[0].error_count > 0'
nvme fw-log /dev/nvme0
nvme effects-log /dev/nvme0 --csi=0
nvme changed-ns-list-log /dev/nvme0
nvme get-log /dev/nvme0 --log-id=0 --log-len=1024 >/dev/null
nvme get-log /dev/nvme0 --log-id=18 --log-len=1024 >/dev/null
nvme get-log /dev/nvme0 --log-id=200 --log-len=512 && exit 1

for feature in 1 2 4 6 7 8 9 10 11 14 22 25; do nvme get-feature /dev/nvme0 --feature-id=$feature; done
nvme get-feature /dev/nvme0 --namespace-id=1 --feature-id=5
nvme set-feature /dev/nvme0 --feature-id=4 --value=0x150
nvme get-feature /dev/nvme0 --feature-id=4 | grep -qi 0x0*150
nvme set-feature /dev/nvme0 --feature-id=8 --value=0x0107
verify "$memory" 4M
nvme set-feature /dev/nvme0 --feature-id=8 --value=0
nvme set-feature /dev/nvme0 --feature-id=6 --value=0
verify "$memory" 2M
nvme set-feature /dev/nvme0 --feature-id=6 --value=1

# Write protection: writes are refused, reads are not; and it goes again.
dd if=/dev/urandom of="$memory" bs=1M count=1 oflag=direct status=none
sum=$(dd if="$memory" bs=1M count=1 iflag=direct status=none | sha256sum)
nvme set-feature /dev/nvme0 --namespace-id=1 --feature-id=0x84 --value=1
dd if=/dev/zero of="$memory" bs=1M count=1 oflag=direct status=none && exit 1
nvme write-zeroes "$memory" --start-block=0 --block-count=7 && exit 1
expect "$sum" "$(dd if="$memory" bs=1M count=1 iflag=direct status=none | sha256sum)"
verify "$(namespace 2)" 2M
nvme set-feature /dev/nvme0 --namespace-id=1 --feature-id=0x84 --value=0
nvme ns-rescan /dev/nvme0
within 60 sh -c "[ \$(blockdev --getro $memory) = 0 ]"
verify "$memory" 2M

# I/O commands by hand.
head -c 4096 /dev/urandom >/tmp/data
nvme write "$memory" --start-block=8 --block-count=7 --data-size=4096 --data=/tmp/data
nvme compare "$memory" --start-block=8 --block-count=7 --data-size=4096 --data=/tmp/data
nvme read "$memory" --start-block=8 --block-count=7 --data-size=4096 --data=/tmp/read
cmp /tmp/data /tmp/read
nvme compare "$memory" --start-block=9 --block-count=7 --data-size=4096 --data=/tmp/data && exit 1
nvme copy "$memory" --sdlba=100 --blocks=7 --slbs=8
nvme compare "$memory" --start-block=100 --block-count=7 --data-size=4096 --data=/tmp/data
nvme verify "$memory" --start-block=8 --block-count=7
nvme write-zeroes "$memory" --start-block=8 --block-count=7
nvme dsm "$memory" --ad --slbs=100 --blocks=8
nvme flush "$memory"
nvme read "$memory" --start-block=100 --block-count=7 --data-size=4096 --data=/tmp/read
cmp -n 4096 /dev/zero /tmp/read
! dmesg | grep -iE 'nvme nvme[0-9]+: .*(timeout|abort|failed|unusual)'
"#;
    let script = format!("{FUNCTIONS}{script}");
    Guest::new(&script).drive(target.endpoint("vm0")).run();
    assert!(target.stop().success());
}
