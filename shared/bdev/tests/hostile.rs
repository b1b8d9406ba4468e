//! A ring whose other end writes what it likes: errors, never a panic, a loop without end or a foreign address.

mod rig;

use bdev::channel::AnyChannel;
use bdev::channel::{Channel, Geometry, Submitted};
use bdev::fault::{Effect, FaultChannel, Plan, Rule, When};
use bdev::null::NullChannel;
use bdev::request::{ErrorKind, Op, Request};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, RegionId, RegionTable};
use ipc::layout::SegmentHeader;
use ipc::layout::channel::ChannelLayout;
use ipc::segment::Segment;
use nix::sys::uio::pwrite;
use proptest::prelude::*;
use rig::{Rig, guest, range};

const GEOMETRY: Geometry = Geometry { size: 1 << 16, read_only: false };
/// Bytes after the header: the depth, both rings' control words and entries, the first lists.
const SCRIBBLED: usize = 64 << 10;

fn both(depth: usize) -> (RingChannel, RingServer, Segment<ChannelLayout>) {
    let segment = create_segment("test", 7, depth).unwrap();
    let open = || Segment::open(segment.fd().try_clone_to_owned().unwrap()).unwrap();
    let (theirs, third) = (open(), open());
    let client = RingChannel::new(theirs, EventFd::create().unwrap(), GEOMETRY).unwrap();
    (client, RingServer::new(segment, EventFd::create().unwrap()).unwrap(), third)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn scribbled_segments_end_in_errors(
        scribbles in prop::collection::vec(
            (size_of::<SegmentHeader>()..SCRIBBLED, prop::sample::select(vec![
                vec![0_u8; 8], vec![0xff; 8], vec![1, 0, 0, 0], vec![2], vec![0, 0, 0, 0x80],
                vec![4, 4, 0xff, 0xff, 3, 0, 0, 0], vec![1, 4, 0, 4, 0, 0, 0, 0],
            ])),
            1..60,
        ),
        control in prop::collection::vec((0..6_usize, any::<u32>()), 0..4),
    ) {
        let (mut client, mut server, raw) = both(16);
        let (table, _region) = guest();
        let mut device = bdev::malloc::MallocChannel::owner(
            std::sync::Arc::new(ipc::device_memory::DeviceMemory::create("t", 1 << 16).unwrap()),
            false,
            Default::default(),
        );
        let ranges = range(0, 512);
        let mut ended = 0;
        for (index, (offset, bytes)) in scribbles.iter().enumerate() {
            let request = Request::new(Op::Write, 0, 512, &ranges, index as u32);
            let submitted = client.submit(&request, &table, 0);
            prop_assert!(submitted != Submitted::Done(Ok(())));
            client.publish();
            pwrite(raw.fd(), bytes, *offset as i64).unwrap();
            if let Some((place, value)) = control.get(index) {
                // The six control words, 128 bytes apart after the depth's line.
                let at = 128 * (1 + place) as i64;
                pwrite(raw.fd(), &value.to_le_bytes(), at).unwrap();
            }
            let taken = server.serve(&mut device, &table, 0, 0);
            prop_assert!(taken <= 16, "one turn took {taken}");
            server.publish();
            let _ = server.park();
            server.unpark();
            ended += client.poll(0, &mut |_, _| {});
            let _ = client.park();
            client.unpark();
            prop_assert!(client.outstanding() <= 16);
        }
        client.set_gone();
        ended += client.poll(0, &mut |_, _| {});
        prop_assert_eq!(client.outstanding(), 0);
        prop_assert!(ended <= scribbles.len());
    }
}

#[test]
fn a_depth_that_is_none_is_refused() {
    for depth in [0_u32, 3, 512, u32::MAX] {
        let segment = create_segment("test", 7, 16).unwrap();
        segment.depth.store(depth, std::sync::atomic::Ordering::Relaxed);
        assert!(RingServer::new(segment, EventFd::create().unwrap()).is_err(), "{depth}");
        assert!(depth == 512 || create_segment("test", 7, depth as usize).is_err());
    }
}

#[test]
fn ranges_that_do_not_add_up_or_lie_outside_are_refused_by_the_server() {
    let mut rig = Rig::malloc(1 << 16, true);
    let one = |region, len, offset| MemRange { region: RegionId(region), len, offset };
    let cases: [(&[MemRange], ErrorKind); 6] = [
        (&[], ErrorKind::Invalid),
        (&[one(0, 511, 0)], ErrorKind::Invalid),
        (&[one(0, 512, 0), one(0, 512, 0)], ErrorKind::Invalid),
        (&[one(1, 512, 0)], ErrorKind::Fault),
        (&[one(u32::MAX, 512, 0)], ErrorKind::Fault),
        (&[one(0, 512, u64::MAX - 100)], ErrorKind::Fault),
    ];
    for (ranges, kind) in cases {
        let outcome = rig.run(&Request::new(Op::Write, 0, 512, ranges, 3));
        assert_eq!(outcome, Err(kind), "{ranges:?}");
    }
    let too_many = vec![one(0, 1, 0); ipc::layout::channel::MAX_REQUEST_RANGES + 1];
    let request = Request::new(Op::Write, 0, too_many.len() as u64, &too_many, 3);
    assert_eq!(rig.run(&request), Err(ErrorKind::Invalid));
    let most = vec![one(0, 4, 0); ipc::layout::channel::MAX_REQUEST_RANGES];
    assert_eq!(rig.run(&Request::new(Op::Write, 0, most.len() as u64 * 4, &most, 3)), Ok(()));
    for offset in [1 << 16, u64::MAX - 511, u64::MAX] {
        let outcome = rig.run(&Request::new(Op::Write, offset, 512, &range(0, 512), 3));
        assert_eq!(outcome, Err(ErrorKind::OutOfRange), "{offset:#x}");
    }
}

#[test]
fn a_full_ring_says_so_and_takes_more_after_a_poll() {
    let (mut client, mut server, _) = both(4);
    let (table, mut device) = (RegionTable::new(), NullChannel::new(GEOMETRY, 0));
    let flush = |tag| Request::new(Op::Flush, 0, 0, &[], tag);
    for tag in 0..4 {
        assert_eq!(client.submit(&flush(tag), &table, 0), Submitted::Pending);
    }
    assert_eq!(client.submit(&flush(4), &table, 0), Submitted::Full);
    client.publish();
    server.serve(&mut device, &table, 0, 0);
    server.publish();
    let mut told = Vec::new();
    client.poll(0, &mut |tag, _| told.push(tag));
    assert_eq!(told, [0, 1, 2, 3]);
    assert_eq!(client.submit(&flush(4), &table, 0), Submitted::Pending);
}

/// A device that has no room.
struct Crowded;

impl Channel for Crowded {
    fn geometry(&self) -> Geometry {
        Geometry { size: 1 << 20, read_only: false }
    }

    fn submit(&mut self, _request: &Request<'_>, _memory: &RegionTable, _now: u64) -> Submitted {
        Submitted::Full
    }

    fn poll(
        &mut self,
        _now: u64,
        _complete: &mut impl FnMut(u32, bdev::request::Outcome),
    ) -> usize {
        0
    }

    fn outstanding(&self) -> usize {
        1
    }
}

#[test]
fn a_request_that_waits_for_room_does_not_keep_the_backend_awake() {
    let (mut client, mut server, _segment) = both(4);
    let (table, _region) = guest();
    assert!(server.park(), "nothing to do");
    server.unpark();
    let flush = Request::new(Op::Flush, 0, 0, &[], 7);
    assert_eq!(client.submit(&flush, &table, 0), Submitted::Pending);
    client.publish();
    assert!(!server.park(), "a request to take");
    server.unpark();
    assert_eq!(server.serve(&mut Crowded, &table, 0, 0), 0);
    assert!(server.park(), "nothing can be done before the device ends something");
    server.unpark();
    let mut device = NullChannel::new(Geometry { size: 1 << 20, read_only: false }, 0);
    assert_eq!(server.serve(&mut device, &table, 0, 0), 1, "and then it is");
}

#[test]
fn null_answers_after_its_latency() {
    let mut null = NullChannel::new(GEOMETRY, 1000);
    let table = RegionTable::new();
    assert_eq!(null.submit(&Request::new(Op::Flush, 0, 0, &[], 9), &table, 50), Submitted::Pending);
    assert_eq!(null.deadline(), Some(1050));
    assert_eq!(null.poll(1049, &mut |_, _| panic!("too early")), 0);
    assert_eq!(null.poll(1050, &mut |tag, outcome| assert_eq!((tag, outcome), (9, Ok(())))), 1);
    assert_eq!(null.outstanding(), 0);
}

fn faulty(op: Option<Op>, when: When, effect: Effect) -> Rig {
    let rule = Rule { op, range: Some(0..4096), when, effect };
    let plan = Plan { seed: 7, rules: vec![rule] };
    let wrap = |channel| AnyChannel::Fault(FaultChannel::new(channel, plan));
    Rig::malloc(1 << 16, true).wrap(wrap)
}

#[test]
fn faults_hit_what_their_rule_says() {
    let mut rig = faulty(Some(Op::Read), When::Nth(2), Effect::Fail(ErrorKind::Medium));
    let read = |rig: &mut Rig, at| rig.run(&Request::new(Op::Read, at, 512, &range(0, 512), 1));
    assert_eq!(read(&mut rig, 8192), Ok(()), "outside the range, not counted");
    assert_eq!(read(&mut rig, 0), Ok(()));
    assert_eq!(read(&mut rig, 3584), Err(ErrorKind::Medium));
    assert_eq!(read(&mut rig, 0), Ok(()));

    let mut rig = faulty(None, When::Always, Effect::Lose);
    rig.write(0, &[1; 512]).unwrap();
    assert_eq!(rig.read(0, 512), [0; 512]);

    let mut rig = faulty(None, When::Always, Effect::Tear);
    rig.write(0, &[1; 4096]).unwrap();
    let data = rig.read(0, 4096);
    let written = data.iter().take_while(|&&byte| byte == 1).count();
    assert!(written < 4096 && written % 512 == 0 && data[written..].iter().all(|&byte| byte == 0));

    let mut rig = faulty(None, When::Always, Effect::Misplace(8192));
    rig.write(0, &[1; 512]).unwrap();
    assert_eq!((rig.read(0, 512), rig.read(8192, 512)), (vec![0; 512], vec![1; 512]));
}

#[test]
fn delayed_requests_end_late_and_a_seed_repeats_its_faults() {
    let mut rig = faulty(None, When::Always, Effect::Delay(100));
    assert_eq!(rig.submit(&Request::new(Op::Read, 0, 512, &range(0, 512), 1)), Submitted::Pending);
    assert_eq!(rig.turn(0), []);
    assert_eq!(rig.device.deadline(), Some(100));
    assert_eq!(rig.turn(99), []);
    assert_eq!(rig.turn(100), [(1, Ok(()))]);

    let pattern = || {
        let mut rig = faulty(None, When::PerMillion(300_000), Effect::Fail(ErrorKind::Medium));
        let read = Request::new(Op::Verify, 0, 512, &[], 1);
        (0..200).map(|_| rig.run(&read).is_err()).collect::<Vec<bool>>()
    };
    let hits = pattern().iter().filter(|&&hit| hit).count();
    assert!((30..90).contains(&hits), "{hits} of 200 at three in ten");
    assert_eq!(pattern(), pattern());
}
