use vfio_user::{Command, Errno};

use crate::support::{Rig, VECTORS, bytes, u32_at};

#[test]
fn each_type_says_what_clients_rely_on() {
    const EVENTFD: u32 = 1;
    const NORESIZE: u32 = 8;
    for (index, flags, count) in [
        (0, 0, 0),
        (1, 0, 0),
        (2, EVENTFD | NORESIZE, VECTORS),
        (3, 0, 0),
        (4, EVENTFD, 1),
        (5, 0, 0),
        (u32::MAX, 0, 0),
    ] {
        let ask = bytes().u32(16).u32(0).u32(index).u32(0);
        let reply = Rig::new().ok(Command::DEVICE_GET_IRQ_INFO, ask);
        assert_eq!([0, 4, 8, 12].map(|at| u32_at(&reply, at)), [16, flags, index, count]);
    }
}

#[test]
fn malformed_requests_are_refused() {
    let mut rig = Rig::new();
    for body in [bytes().u32(16).u32(0), bytes().u32(15).u32(0).u32(2).u32(0)] {
        assert_eq!(rig.refused(Command::DEVICE_GET_IRQ_INFO, body), Errno::EINVAL.0);
    }
}
