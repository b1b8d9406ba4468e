//! Several guests, several controllers; guests and processes that die.

use vireo_tests::guest::Guest;
use vireo_tests::target::Target;

use crate::{FUNCTIONS, two_devices};

#[test]
fn a_guest_that_is_killed_leaves_the_other_s_verified_io_alone() {
    let target = Target::start(&two_devices("", ""));
    let survivor = r#"
within 60 namespace 1
tell ready
end=$((SECONDS + 200))
while ! read -t 0.01 -r -u 9 line; do
    verify "$(namespace 1)" 4M
    [ "$SECONDS" -lt "$end" ]
done
expect finish "$line"
verify "$(namespace 1)" 8M
! dmesg | grep -iE 'nvme nvme[0-9]+: .*(timeout|abort|failed|unusual)'
"#;
    let victim = r#"
within 60 namespace 1 && within 60 namespace 2
fio --name=load --filename="$(namespace 1):$(namespace 2)" --ioengine=libaio --direct=1 --iodepth=64 --rw=randwrite --bs=16k \
    --offset=64M --size=32M --time_based --runtime=200 --output=/dev/null &
sleep 1
tell busy
wait
"#;
    let survivor = format!("{FUNCTIONS}{survivor}");
    let victim = format!("{FUNCTIONS}{victim}");
    let mut survivor = Guest::new(&survivor).drive(target.endpoint("vm0")).controlled().start();
    let mut victim = Guest::new(&victim).drive(target.endpoint("vm1")).controlled().start();
    survivor.expect_line("ready");
    victim.expect_line("busy");
    victim.kill();
    // The endpoint of the dead one serves the next guest.
    let next =
        format!("{FUNCTIONS}within 60 namespace 1\nverify \"$(namespace 1)\" 2M --offset=64M\n");
    Guest::new(&next).drive(target.endpoint("vm1")).run();
    survivor.tell("finish");
    survivor.finish();
    assert!(target.stop().success());
}

#[test]
fn two_controllers_of_one_subsystem_share_their_namespaces() {
    let target = Target::start(&two_devices("", ""));
    let script = r#"
within 60 namespace 1 nvme0 && within 60 namespace 1 nvme1
one=$(namespace 1 nvme0) other=$(namespace 1 nvme1)
[ "$one" != "$other" ]
expect "$(cat /sys/class/nvme/nvme0/subsysnqn)" "$(cat /sys/class/nvme/nvme1/subsysnqn)"
[ "$(cat /sys/class/nvme/nvme0/cntlid)" != "$(cat /sys/class/nvme/nvme1/cntlid)" ]
expect "$(cat /sys/block/"${one#/dev/}"/uuid /sys/block/"${one#/dev/}"/wwid)" "$(cat /sys/block/"${other#/dev/}"/uuid /sys/block/"${other#/dev/}"/wwid)"
dd if=/dev/urandom of=/tmp/data bs=1M count=4 status=none
dd if=/tmp/data of="$one" bs=1M oflag=direct status=none
cmp /tmp/data <(dd if="$other" bs=1M count=4 iflag=direct status=none)
# Both at once, each its half; then each reads what the other wrote.
(verify "$one" 8M --offset=16M) & (verify "$other" 8M --offset=64M) & wait -n && wait -n
sum() { dd if="$1" bs=1M skip="$2" count=8 iflag=direct status=none | sha256sum; }
expect "$(sum "$one" 64)" "$(sum "$other" 64)"
expect "$(sum "$one" 16)" "$(sum "$other" 16)"
# A format by one is seen by the other.
nvme format /dev/nvme0 --namespace-id=1 --lbaf=1 --force
within 60 sh -c "[ \$(blockdev --getss $other) = 4096 ]"
verify "$other" 4M
# A reset of one leaves the other alone.
(verify "$other" 8M) &
nvme reset /dev/nvme0
wait $!
verify "$one" 2M
! dmesg | grep -iE 'nvme nvme[0-9]+: .*(timeout|abort|failed|unusual)'
"#;
    let script = format!("{FUNCTIONS}{script}");
    Guest::new(&script).drive(target.endpoint("vm0")).drive(target.endpoint("vm1")).run();
    assert!(target.stop().success());
}

#[test]
fn a_worker_that_dies_costs_a_guest_a_reset_and_a_backend_not_even_that() {
    let target = Target::start(&two_devices("", ""));
    let script = r#"
within 60 namespace 1
verify "$(namespace 1)" 2M
tell ready
expect backend "$(await)"
verify "$(namespace 1)" 4M
tell lived
expect worker "$(await)"
# The driver notices a failed controller, resets it, and goes on.
alive() { dd if="$(namespace 1)" of=/dev/null bs=4k count=1 iflag=direct status=none; }
within 60 alive
verify "$(namespace 1)" 4M
tell done
"#;
    let script = format!("{FUNCTIONS}{script}");
    let mut guest = Guest::new(&script)
        .drive(target.endpoint("vm0"))
        .kernel("nvme_core.io_timeout=5")
        .controlled()
        .start();
    guest.expect_line("ready");
    target.kill_and_await_successor("b0");
    guest.tell("backend");
    guest.expect_line("lived");
    target.kill_and_await_successor("w0");
    guest.tell("worker");
    guest.expect_line("done");
    guest.finish();
    assert!(target.stop().success());
}
