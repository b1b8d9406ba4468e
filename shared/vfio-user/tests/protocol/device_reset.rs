use vfio_user::{Command, Errno};

use crate::support::{Reply, Rig, bytes};

#[test]
fn reset_reaches_the_device() {
    let mut rig = Rig::new();
    assert!(rig.ok(Command::DEVICE_RESET, bytes()).is_empty());
    assert_eq!(rig.device.resets, 1);
}

#[test]
fn deferred_reset_is_answered_when_the_device_is_quiet() {
    let mut rig = Rig::new();
    rig.device.defer = true;
    for (result, errno) in [(Ok(()), None), (Err(Errno::EIO), Some(Errno::EIO.0))] {
        let outcome = rig.send(Command::DEVICE_RESET, 0, bytes(), Vec::new());
        assert_eq!(Reply::of(rig.finish(outcome, result)).errno(), errno);
    }
}

#[test]
fn reset_with_a_body_is_refused() {
    let mut rig = Rig::new();
    assert_eq!(rig.refused(Command::DEVICE_RESET, bytes().u32(1)), Errno::EINVAL.0);
    assert_eq!(rig.device.resets, 0);
}

#[test]
fn reset_that_is_not_advertised_is_not_supported() {
    let mut rig = Rig::new();
    rig.session.description_mut().flags.set_reset(false);
    assert_eq!(rig.refused(Command::DEVICE_RESET, bytes()), Errno::ENOTSUP.0);
}
