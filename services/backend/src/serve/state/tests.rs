use super::*;
use bdev::channel::AnyChannel;
use bdev::null::NullChannel;
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use ipc::event::EventFd;
use ipc::guest_memory::RegionPolicy;
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use service::control::ConnectionId;
use tokio::sync::oneshot::error::TryRecvError;

const OWNER: Owner = Owner { connection: ConnectionId(1), controller: 7 };
const GEOMETRY: Geometry = Geometry { size: 1 << 20, read_only: false };
/// When a request of the device ends.
const LATENCY: u64 = 1000;

fn region() -> Arc<Region> {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, 4096).unwrap();
    Region::map(fd, 4096, &RegionPolicy::default()).unwrap()
}

/// A state with device 1, each of whose requests takes [`LATENCY`].
fn state() -> State {
    let mut state = State::default();
    let channel = Box::new(AnyChannel::Null(NullChannel::new(GEOMETRY, LATENCY)));
    state.command(Command::AddDevice { device: 1, channel });
    state
}

/// Asks for a ring to device 1; its worker's end.
fn add(state: &mut State, channel: ChannelKey) -> (RingChannel, oneshot::Receiver<()>) {
    let segment = create_segment("test", OWNER.controller, 8).unwrap();
    let mapped = Segment::open(segment.fd().try_clone_to_owned().unwrap()).unwrap();
    let server = Box::new(RingServer::new(segment, EventFd::create().unwrap()).unwrap());
    let (done, told) = oneshot::channel();
    state.command(Command::AddChannel { channel, owner: OWNER, device: 1, server, done });
    (RingChannel::new(mapped, EventFd::create().unwrap(), GEOMETRY).unwrap(), told)
}

fn close(state: &mut State, channel: ChannelKey) -> oneshot::Receiver<()> {
    let (done, told) = oneshot::channel();
    state.command(Command::CloseChannel { channel, done });
    told
}

fn remove(state: &mut State) -> oneshot::Receiver<Option<Arc<Region>>> {
    let (done, told) = oneshot::channel();
    state.command(Command::RemoveRegion { owner: OWNER, id: RegionId(3), done });
    told
}

/// One request through the ring, and a turn in which the device gets it.
fn occupy(state: &mut State, ring: &mut RingChannel, now: u64) {
    let flush = Request::new(Op::Flush, 0, 0, &[], 1);
    assert_eq!(ring.submit(&flush, &RegionTable::new(), 0), Submitted::Pending);
    ring.publish();
    state.turn(now);
}

#[test]
fn a_channel_waits_for_its_predecessor_and_can_be_given_up_meanwhile() {
    let mut state = state();
    let (mut first, mut told) = add(&mut state, 1);
    state.turn(0);
    assert_eq!(told.try_recv(), Ok(()));
    occupy(&mut state, &mut first, 0);
    let mut closed = close(&mut state, 1);
    let (_second, mut waits) = add(&mut state, 2);
    let (_third, mut told) = add(&mut state, 3);
    let (_fourth, forgotten) = add(&mut state, 4);
    state.turn(LATENCY - 1);
    assert_eq!(closed.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(waits.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(close(&mut state, 2).try_recv(), Ok(()), "nothing of it is under way");
    drop(forgotten);
    state.turn(LATENCY);
    state.turn(LATENCY);
    assert_eq!(closed.try_recv(), Ok(()));
    assert_eq!(waits.try_recv(), Err(TryRecvError::Closed));
    assert_eq!(told.try_recv(), Ok(()));
    let keys: Vec<_> = state.channels.iter().flatten().map(|served| served.key).collect();
    assert_eq!(keys, [3], "what was given up is not served");
}

#[test]
fn memory_in_use_is_not_told_to_be_gone_however_often_that_is_asked() {
    let mut state = state();
    let region = region();
    let (done, mut added) = oneshot::channel();
    let add = Command::AddRegion { owner: OWNER, id: RegionId(3), region: region.clone(), done };
    state.command(add);
    assert_eq!(added.try_recv(), Ok(true));
    let in_use = region;
    // Whoever asked first has given up; the two others get an answer, one of them the memory.
    drop(remove(&mut state));
    let (mut second, mut third) = (remove(&mut state), remove(&mut state));
    state.turn(0);
    assert!(matches!(second.try_recv(), Err(TryRecvError::Empty)));
    drop(in_use);
    state.turn(0);
    assert!(second.try_recv().unwrap().is_some());
    assert!(third.try_recv().unwrap().is_none());
    assert!(remove(&mut state).try_recv().unwrap().is_none());
    assert!(state.memory.is_empty(), "nothing is left of a controller without memory");
}

#[test]
fn a_connection_has_no_endless_number_of_controllers() {
    let mut state = state();
    let region = region();
    let mut add = |connection, controller| {
        let owner = Owner { connection: ConnectionId(connection), controller };
        let (done, mut told) = oneshot::channel();
        let (id, region) = (RegionId(0), region.clone());
        state.command(Command::AddRegion { owner, id, region, done });
        told.try_recv().unwrap()
    };
    assert!((0..MAX_OWNERS as u128).all(|controller| add(1, controller)));
    assert!(!add(1, MAX_OWNERS as u128));
    assert!(add(1, 0), "one that is known");
    assert!(add(2, MAX_OWNERS as u128), "another connection's");
    state.command(Command::Disconnect { connection: ConnectionId(1) });
    assert_eq!(state.memory.len(), 1);
}

#[test]
fn errands_under_way_are_told_apart() {
    let mut state = state();
    let ask = |state: &mut State| {
        let (done, told) = oneshot::channel();
        state.command(Command::Maintain { device: 1, op: Op::Flush, done });
        told
    };
    let mut asked: Vec<_> = (0..MAX_ERRANDS).map(|_| ask(&mut state)).collect();
    assert_eq!(ask(&mut state).try_recv(), Ok(Err(ErrorKind::Busy)));
    state.turn(LATENCY);
    assert!(asked.iter_mut().all(|told| told.try_recv() == Ok(Ok(()))));
    // Another round's numbers are the same.
    let mut told = ask(&mut state);
    state.turn(2 * LATENCY);
    assert_eq!(told.try_recv(), Ok(Ok(())));
}

/// What a dead worker's ring had begun goes on; whoever waits for its end waits for that, and for nothing of others.
#[test]
fn the_end_of_a_worker_s_requests_is_told_when_it_has_come() {
    let mut state = state();
    let (mut ring, mut served) = add(&mut state, 1);
    state.turn(0);
    assert_eq!(served.try_recv(), Ok(()));
    occupy(&mut state, &mut ring, 0);
    let ask = |state: &mut State, connection, controller| {
        let (done, told) = oneshot::channel();
        let connections = vec![ConnectionId(connection)];
        state.command(Command::AwaitDrained { connections, controller, done });
        state.turn(1);
        told
    };
    let mut early = ask(&mut state, 1, Some(OWNER.controller));
    state.command(Command::Disconnect { connection: OWNER.connection });
    let mut waits = ask(&mut state, 1, None);
    assert_eq!(ask(&mut state, 1, Some(8)).try_recv(), Ok(()), "another controller");
    assert_eq!(ask(&mut state, 2, Some(7)).try_recv(), Ok(()), "another worker");
    drop(ask(&mut state, 1, None));
    state.turn(LATENCY - 1);
    assert_eq!(early.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(waits.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(state.drains.len(), 2, "who gave up is forgotten");
    state.turn(LATENCY);
    assert_eq!(early.try_recv(), Ok(()));
    assert_eq!(waits.try_recv(), Ok(()));
    assert_eq!(ask(&mut state, 1, None).try_recv(), Ok(()));
}
