//! Arbitrary bytes: no panic, no reply past its bound, and the session goes on.

use proptest::collection::vec;
use proptest::prelude::*;
use vfio_user::framing::{FramingError, MAX_MESSAGE_SIZE, check};
use vfio_user::server::Outcome;
use vfio_user::{Command, Header};

use crate::support::{Rig, bytes, event};

#[test]
fn sizes_that_leave_no_boundary_are_damage_and_all_others_are_not() {
    let header = |size| Header { size, ..Header::default() };
    for size in [0, 1, 15] {
        assert!(matches!(check(&header(size)), Err(FramingError::TooSmall { .. })), "{size}");
    }
    let limit = MAX_MESSAGE_SIZE as u32;
    for size in [16, 17, 4096, limit] {
        assert_eq!(check(&header(size)), Ok(size as usize));
    }
    for size in [limit + 1, u32::MAX] {
        assert!(matches!(check(&header(size)), Err(FramingError::TooLarge { .. })), "{size}");
    }
}

/// Bodies that are near enough to real ones to get past the first check.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(0_u32),
        Just(16),
        Just(20),
        Just(24),
        Just(32),
        Just(0x21),
        Just(0x22),
        Just(0x24),
        Just(u32::MAX),
        0..64_u32,
        any::<u32>(),
    ];
    let words = vec(word, 0..16)
        .prop_map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>());
    prop_oneof![4 => words, 1 => vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_message_is_answered_within_bounds(
        messages in vec((0..20_u16, any::<u32>(), body(), 0..4_usize, any::<bool>()), 1..20),
    ) {
        let mut rig = Rig::fresh();
        rig.ok(Command::VERSION, bytes().u16(0).u16(0)
            .raw(b"{\"capabilities\":{\"write_multiple\":true}}\0"));
        for (command, flags, body, fds, defer) in messages {
            rig.device.defer = defer;
            let no_reply = flags & 0x10 != 0;
            let is_reply = flags & 0xf == 1;
            let fds = (0..fds).map(|_| event()).collect();
            let count = body.len();
            let mut outcome = rig.send(Command(command), flags, bytes().raw(&body), fds);
            let mut steps = 0;
            while matches!(outcome, Outcome::Deferred(_)) {
                steps += 1;
                prop_assert!(steps <= 1 + count / 24);
                outcome = rig.finish(outcome, Ok(()));
            }
            match outcome {
                Outcome::Reply(reply) => {
                    prop_assert!(!no_reply && !is_reply);
                    prop_assert!(reply.bytes.len() <= MAX_MESSAGE_SIZE && reply.fds.len() <= 1);
                    let header = Header::parse(&reply.bytes).unwrap();
                    prop_assert_eq!(header.size as usize, reply.bytes.len());
                    prop_assert_eq!(header.command, Command(command));
                }
                Outcome::Silent => prop_assert!(no_reply || is_reply),
                Outcome::Deferred(_) => unreachable!("finished above"),
            }
        }
    }

    #[test]
    fn any_version_body_is_answered(body in vec(any::<u8>(), 0..300)) {
        let mut rig = Rig::fresh();
        let answered = matches!(
            rig.send(Command::VERSION, 0, bytes().raw(&body), Vec::new()), Outcome::Reply(_));
        prop_assert!(answered);
    }

    #[test]
    fn any_json_like_version_is_answered(text in "[\\[\\]{}\":,a-z0-9 ]{0,200}") {
        let mut rig = Rig::fresh();
        let body = bytes().u16(0).u16(1).raw(text.as_bytes()).raw(&[0]);
        let answered = matches!(
            rig.send(Command::VERSION, 0, body, Vec::new()), Outcome::Reply(_));
        prop_assert!(answered);
    }

    #[test]
    fn any_region_info_reply_is_walked_to_an_end(
        body in vec(any::<u8>(), 32..200), cap_offset in 0..220_u32, next in 0..220_u32,
    ) {
        use vfio_user::message::RegionInfo;
        use vfio_user::region::{RegionFlags, parse_sparse_areas};
        let mut body = body;
        let flags = RegionFlags::new().with_caps(true);
        let info = RegionInfo { flags, cap_offset, ..RegionInfo::default() };
        if let Some(at) = body.get_mut(cap_offset as usize + 4..cap_offset as usize + 8) {
            at.copy_from_slice(&next.to_ne_bytes());
        }
        prop_assert!(parse_sparse_areas(&info, &body).len() <= body.len() / 16);
    }
}
