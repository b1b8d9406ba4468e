use vfio_user::{Command, Errno};

use crate::support::{Rig, bytes};

const ANSWER: &[u8] = b"{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\
\"max_dma_maps\":65535,\"pgsizes\":4096}}\0";

#[test]
fn version_without_json_is_accepted_and_answered_with_json() {
    let reply = Rig::fresh().ok(Command::VERSION, bytes().u16(0).u16(0));
    assert_eq!(reply[..4], [0, 0, 0, 0]);
    assert_eq!(&reply[4..], ANSWER);
}

#[test]
fn minor_version_is_never_above_the_clients() {
    for (proposed, agreed) in [(0, 0), (1, 1), (9, 1)] {
        let reply = Rig::fresh().ok(Command::VERSION, bytes().u16(0).u16(proposed));
        assert_eq!(u16::from_ne_bytes([reply[2], reply[3]]), agreed);
    }
}

#[test]
fn write_multiple_is_offered_to_a_client_that_offers_it_only() {
    for (json, offered) in [
        (&b"{\"capabilities\":{\"write_multiple\":true}}\0"[..], true),
        (b"{\"capabilities\":{\"write_multiple\":false}}\0", false),
        (b"{\"capabilities\":{}}\0", false),
        (b"{}\0", false),
        (b"\0", false),
    ] {
        let reply = Rig::fresh().ok(Command::VERSION, bytes().u16(0).u16(0).raw(json));
        assert_eq!(reply.last(), Some(&0));
        let text = String::from_utf8(reply[4..].to_vec()).unwrap();
        assert_eq!(text.contains("\"write_multiple\":true"), offered, "{text}");
    }
}

#[test]
fn unknown_capabilities_are_ignored() {
    let json = b"{\"capabilities\":{\"migration\":{\"pgsize\":4096},\"twin_socket\":\
{\"supported\":true}},\"other\":[1,2]}\0";
    let mut rig = Rig::fresh();
    rig.ok(Command::VERSION, bytes().u16(0).u16(1).raw(json));
    assert_eq!(rig.session.negotiated().unwrap().client_max_msg_fds, 1);
}

#[test]
fn malformed_versions_are_refused() {
    let deep = [vec![b'['; 10_000], vec![0]].concat();
    let long = [vec![b' '; 20_000], vec![0]].concat();
    for (what, body) in [
        ("short", bytes().u16(0)),
        ("major", bytes().u16(1).u16(0)),
        ("no nul", bytes().u16(0).u16(0).raw(b"{\"capabilities\":{}}")),
        ("not json", bytes().u16(0).u16(0).raw(b"hello\0")),
        ("not utf-8", bytes().u16(0).u16(0).raw(b"{\"\xff\":1}\0")),
        ("wrong type", bytes().u16(0).u16(0).raw(b"{\"capabilities\":{\"max_msg_fds\":\"8\"}}\0")),
        ("negative", bytes().u16(0).u16(0).raw(b"{\"capabilities\":{\"max_msg_fds\":-1}}\0")),
        ("page size", bytes().u16(0).u16(0).raw(b"{\"capabilities\":{\"pgsizes\":512}}\0")),
        ("depth", bytes().u16(0).u16(0).raw(&deep)),
        ("length", bytes().u16(0).u16(0).raw(&long)),
    ] {
        let mut rig = Rig::fresh();
        assert_eq!(rig.refused(Command::VERSION, body), Errno::EINVAL.0, "{what}");
        assert_eq!(rig.session.negotiated(), None, "{what}");
    }
}

#[test]
fn nothing_is_served_before_version() {
    let mut rig = Rig::fresh();
    assert_eq!(rig.refused(Command::DEVICE_RESET, bytes()), Errno::EINVAL.0);
    assert_eq!(rig.device.resets, 0);
}

#[test]
fn version_again_is_answered_again() {
    let mut rig = Rig::new();
    rig.ok(Command::VERSION, bytes().u16(0).u16(0));
}
