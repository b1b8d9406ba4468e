use vfio_user::{Command, Errno};

use crate::support::{Rig, bytes, u32_at};

#[test]
fn device_is_a_pci_function_that_can_be_reset() {
    for argsz in [16, 32] {
        let reply =
            Rig::new().ok(Command::DEVICE_GET_INFO, bytes().u32(argsz).u32(0).u32(0).u32(0));
        assert_eq!(reply.len(), 16);
        assert_eq!([0, 4, 8, 12].map(|at| u32_at(&reply, at)), [16, 3, 9, 5]);
    }
}

#[test]
fn malformed_requests_are_refused() {
    let mut rig = Rig::new();
    for body in [bytes(), bytes().u32(16).u32(0), bytes().u32(15).u32(0).u32(0).u32(0)] {
        assert_eq!(rig.refused(Command::DEVICE_GET_INFO, body), Errno::EINVAL.0);
    }
}
