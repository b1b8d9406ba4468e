use vfio_user::server::Outcome;
use vfio_user::{Command, Errno, Header};

use crate::support::{NO_REPLY, REPLY, Reply, Rig, bytes, memfd};

#[test]
fn messages_that_are_not_served_say_so() {
    let mut rig = Rig::new();
    for command in [
        Command::DEVICE_GET_REGION_IO_FDS,
        Command::DIRTY_PAGES,
        Command::DEVICE_FEATURE,
        Command::MIG_DATA_READ,
        Command::MIG_DATA_WRITE,
    ] {
        let body = bytes().u32(16).u32(0).u32(0).u32(0);
        assert_eq!(rig.refused(command, body), Errno::ENOTSUP.0, "{command:?}");
    }
}

#[test]
fn unknown_commands_and_the_servers_own_are_invalid() {
    let mut rig = Rig::new();
    for command in [0, 11, 12, 19, 0xffff] {
        let reply = rig.call_with(Command(command), bytes().raw(&[1; 100]), vec![memfd(0)]);
        assert_eq!(reply.errno(), Some(Errno::EINVAL.0), "{command}");
    }
    let silent = rig.send(Command(99), NO_REPLY, bytes(), Vec::new());
    assert!(matches!(silent, Outcome::Silent));
}

#[test]
fn message_ids_are_echoed_and_may_repeat() {
    let mut rig = Rig::new();
    for id in [0, 0, 0xffff, 5, 5] {
        let header = bytes().u16(id).u16(13).u32(16).u32(0).u32(0);
        assert_eq!(Reply::of(rig.raw(&header.0, &[], Vec::new())).header.id, id);
    }
}

#[test]
fn reply_is_not_answered_and_a_message_of_unknown_type_is_refused() {
    let mut rig = Rig::new();
    assert!(matches!(rig.send(Command::DEVICE_RESET, REPLY, bytes(), vec![]), Outcome::Silent));
    let refused = Reply::of(rig.send(Command::DEVICE_RESET, 2, bytes(), vec![]));
    assert_eq!(refused.errno(), Some(Errno::EINVAL.0));
    assert_eq!(rig.device.resets, 0);
}

#[test]
fn header_has_its_place_for_each_field() {
    let header = bytes().u16(0x1122).u16(9).u32(16).u32(0x31).u32(5);
    let parsed = Header::parse(&header.0).unwrap();
    assert_eq!((parsed.id, parsed.command, parsed.size), (0x1122, Command(9), 16));
    assert!(parsed.is_reply() && parsed.flags.no_reply() && parsed.flags.error());
    assert_eq!(parsed.error, 5);
    assert_eq!(Header::parse(&header.0[..15]), None);
}
