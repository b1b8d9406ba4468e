//! A backend behind its real socket, used by a worker that is this test.

use bdev::channel::{AnyChannel, Channel, Geometry, Submitted};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::request::{ErrorKind, Op, Outcome, Request};
use bdev::ring::client::RingChannel;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, Region, RegionId, RegionPolicy, RegionTable};
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use service::control::{ControlError, Server, Session};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vireo_backend::backend::Backend;
use vireo_backend::registry::Registry;
use vireo_backend::serve::{self, Command, Handle};
use vireo_backend::store::Store;
use vireo_proto::handoff::{
    AddRegion, ApplyBdevs, ApplyResult, Bdev, BdevInfo, ChannelGrant, ChannelKind,
    ChannelPreference, CloseChannel, DescribeBdev, EraseBdev, FileDriver, FlushBdev, GetStatus,
    MallocDriver, NullDriver, OpenChannel, RemoveRegion, bdev as pb, reply, request,
};
use vireo_proto::{ErrorCode, id_to_bytes};

const CONTROLLER: u128 = 0x1234;
const GUEST: u64 = 1 << 20;
const DEVICE: u64 = 4 << 20;

struct Running {
    directory: TempDir,
    serve: Handle,
    _server: tokio::task::JoinHandle<()>,
}

fn start() -> Running {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = Server::bind(&directory.path().join("b.sock")).unwrap();
    let (loop_, serve) = serve::new().unwrap();
    std::thread::spawn(move || loop_.run());
    let registry = Registry::new(serve.clone(), Store::from_environment().unwrap());
    let backend = Arc::new(Backend::new("b0".into(), serve.clone(), registry));
    Running { directory, serve, _server: tokio::spawn(server.serve(backend)) }
}

impl Running {
    fn connect(&self) -> Session {
        Session::connect(&self.directory.path().join("b.sock"), "worker-test").unwrap()
    }

    fn bdevs(&self, size: u64) -> Vec<Bdev> {
        let bdev = |name: &str, driver| Bdev {
            name: name.into(),
            size_bytes: size,
            block_size: 512,
            channel: ChannelPreference::Unspecified.into(),
            driver: Some(driver),
        };
        let path = self.directory.path().join("disk").display().to_string();
        vec![
            bdev("null0", pb::Driver::Null(NullDriver { latency_ns: 0 })),
            bdev("mem0", pb::Driver::Malloc(MallocDriver {})),
            bdev(
                "file0",
                pb::Driver::File(FileDriver { path, create: true, direct: true, read_only: false }),
            ),
        ]
    }
}

async fn apply(session: &Session, bdevs: Vec<Bdev>) -> ApplyResult {
    match session.call(request::Body::ApplyBdevs(ApplyBdevs { bdevs }), &[]).await.unwrap().body {
        reply::Body::ApplyResult(result) => result,
        other => panic!("{other:?}"),
    }
}

async fn describe(session: &Session, bdev: &str) -> BdevInfo {
    let ask = request::Body::DescribeBdev(DescribeBdev { bdev: bdev.into() });
    match session.call(ask, &[]).await.unwrap().body {
        reply::Body::BdevInfo(info) => info,
        other => panic!("{other:?}"),
    }
}

async fn open(
    session: &Session,
    bdev: &str,
    force_ring: bool,
) -> Result<(AnyChannel, ChannelGrant), ControlError> {
    let event = EventFd::create().unwrap();
    let ask = request::Body::OpenChannel(OpenChannel {
        controller_id: id_to_bytes(CONTROLLER),
        bdev: bdev.into(),
        force_ring,
    });
    let answer = session.call(ask, &[event.as_fd()]).await?;
    let reply::Body::ChannelGrant(grant) = answer.body else { panic!("{:?}", answer.body) };
    let geometry = Geometry { size: grant.size_bytes, read_only: grant.read_only };
    let mut fds = answer.fds.into_iter();
    let ring = |fds: &mut dyn Iterator<Item = OwnedFd>| {
        let segment = Segment::open(fds.next().unwrap()).unwrap();
        let kick = EventFd::from_client(fds.next().unwrap()).unwrap();
        RingChannel::new(segment, kick, geometry).unwrap()
    };
    let channel = match grant.kind() {
        ChannelKind::LeaseNull => AnyChannel::Null(NullChannel::new(geometry, grant.latency_ns)),
        ChannelKind::LeaseMalloc => {
            let memory = Arc::new(DeviceMemory::open(fds.next().unwrap()).unwrap());
            let number = grant.lease_number as usize;
            let ring = Some(ring(&mut fds));
            AnyChannel::Malloc(MallocChannel::lease(memory, false, number, ring).unwrap())
        }
        ChannelKind::Ring => AnyChannel::Ring(ring(&mut fds)),
        ChannelKind::Unspecified => panic!("no kind"),
    };
    assert!(fds.next().is_none());
    Ok((channel, grant))
}

struct Guest {
    table: RegionTable,
    region: Arc<Region>,
    fd: OwnedFd,
}

fn guest() -> Guest {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, GUEST as i64).unwrap();
    let mapped = fd.try_clone().unwrap();
    let region = Region::map(mapped, GUEST, &RegionPolicy::default()).unwrap();
    let mut table = RegionTable::new();
    table.insert(RegionId(3), region.clone()).unwrap();
    Guest { table, region, fd }
}

async fn add_region(session: &Session, guest: &Guest) {
    let add = AddRegion { controller_id: id_to_bytes(CONTROLLER), region_id: 3, size: GUEST };
    session.tell(request::Body::AddRegion(add), &[guest.fd.as_fd()]).await.unwrap();
}

async fn remove_region(session: &Session) {
    let remove = RemoveRegion { controller_id: id_to_bytes(CONTROLLER), region_id: 3 };
    session.tell(request::Body::RemoveRegion(remove), &[]).await.unwrap();
}

/// Runs one request; the runtime's thread is not blocked meanwhile.
async fn run(channel: &mut AnyChannel, guest: &Guest, request: &Request<'_>) -> Outcome {
    match channel.submit(request, &guest.table, 0) {
        Submitted::Done(outcome) => return outcome,
        Submitted::Pending => channel.publish(),
        Submitted::Full => panic!("no room for one request"),
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut ended = None;
        channel.poll(0, &mut |_, outcome| ended = Some(outcome));
        if let Some(outcome) = ended {
            return outcome;
        }
        assert!(Instant::now() < deadline, "never ended: {request:?}");
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
}

/// One range of the guest's memory, as long-lived as requests want it; a test has few.
fn range(offset: u64, len: u32) -> &'static [MemRange] {
    Box::leak(Box::new([MemRange { region: RegionId(3), len, offset }]))
}

async fn write_and_read_back(channel: &mut AnyChannel, guest: &Guest, fill: u8) {
    guest.region.whole().sub(0, 4096).unwrap().fill(fill);
    let write = Request::new(Op::Write, 8192, 4096, range(0, 4096), 1);
    run(channel, guest, &write).await.unwrap();
    run(channel, guest, &Request::new(Op::Read, 8192, 4096, range(65536, 4096), 2)).await.unwrap();
    assert!(guest.region.whole().sub(65536, 4096).unwrap().compare(&[fill; 4096]));
}

#[tokio::test]
async fn every_driver_serves_by_every_channel_it_has() {
    let running = start();
    let session = running.connect();
    assert_eq!(apply(&session, running.bdevs(DEVICE)).await.failures, []);
    let guest = guest();
    add_region(&session, &guest).await;
    let kinds = [
        ("null0", false, ChannelKind::LeaseNull),
        ("null0", true, ChannelKind::Ring),
        ("mem0", false, ChannelKind::LeaseMalloc),
        ("mem0", true, ChannelKind::Ring),
        ("file0", false, ChannelKind::Ring),
    ];
    for (index, (bdev, force_ring, kind)) in kinds.into_iter().enumerate() {
        let (mut channel, grant) = open(&session, bdev, force_ring).await.unwrap();
        assert_eq!(grant.kind(), kind, "{bdev}");
        assert_eq!(grant.size_bytes, DEVICE);
        if bdev == "null0" {
            let request = Request::new(Op::Read, 0, 4096, range(0, 4096), 1);
            assert_eq!(run(&mut channel, &guest, &request).await, Ok(()));
        } else {
            write_and_read_back(&mut channel, &guest, index as u8 + 1).await;
            let beyond = Request::new(Op::Read, DEVICE, 4096, range(0, 4096), 1);
            assert_eq!(run(&mut channel, &guest, &beyond).await, Err(ErrorKind::OutOfRange));
            // Block 0 is all zeroes so far: the pair takes effect the first time only.
            guest.region.whole().sub(0, 512).unwrap().fill(0);
            guest.region.whole().sub(512, 512).unwrap().fill(7);
            let pair = Request::new(Op::CompareAndWrite, 0, 512, range(0, 1024), 1);
            let first = run(&mut channel, &guest, &pair).await;
            assert_eq!(run(&mut channel, &guest, &pair).await, Err(ErrorKind::CompareFailed));
            assert!(first == Ok(()) || bdev == "mem0" && force_ring, "{bdev}: {first:?}");
        }
        let close = CloseChannel { channel_id: grant.channel_id };
        session.tell(request::Body::CloseChannel(close), &[]).await.unwrap();
        let error = session.tell(request::Body::CloseChannel(close), &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NotFound));
    }
    remove_region(&session).await;
}

#[tokio::test]
async fn a_lease_and_a_ring_see_the_same_data() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    let (mut lease, _) = open(&session, "mem0", false).await.unwrap();
    let (mut ring, _) = open(&session, "mem0", true).await.unwrap();
    write_and_read_back(&mut lease, &guest, 0x5a).await;
    let read = Request::new(Op::Read, 8192, 4096, range(131072, 4096), 9);
    run(&mut ring, &guest, &read).await.unwrap();
    assert!(guest.region.whole().sub(131072, 4096).unwrap().compare(&[0x5a; 4096]));
    // Deallocation by lease goes by the ring beside it.
    let deallocate = Request::new(Op::Deallocate, 8192, 4096, &[], 9);
    run(&mut lease, &guest, &deallocate).await.unwrap();
    run(&mut lease, &guest, &read).await.unwrap();
    assert!(guest.region.whole().sub(131072, 4096).unwrap().compare(&[0; 4096]));
}

#[tokio::test]
async fn requests_on_memory_that_is_not_there_fail_alone() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    let (mut ring, _) = open(&session, "file0", true).await.unwrap();
    let read = Request::new(Op::Read, 0, 4096, range(0, 4096), 9);
    assert_eq!(run(&mut ring, &guest, &read).await, Err(ErrorKind::Fault));
    add_region(&session, &guest).await;
    assert_eq!(run(&mut ring, &guest, &read).await, Ok(()));
    let outside = range(GUEST - 512, 4096);
    let read_outside = Request::new(Op::Read, 0, 4096, outside, 9);
    assert_eq!(run(&mut ring, &guest, &read_outside).await, Err(ErrorKind::Fault));
    remove_region(&session).await;
    assert_eq!(run(&mut ring, &guest, &read).await, Err(ErrorKind::Fault));
}

#[tokio::test]
async fn another_connection_has_neither_the_channels_nor_the_memory() {
    let running = start();
    let (session, other) = (running.connect(), running.connect());
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    let (mut ring, _) = open(&other, "mem0", true).await.unwrap();
    let read = Request::new(Op::Read, 0, 4096, range(0, 4096), 9);
    assert_eq!(run(&mut ring, &guest, &read).await, Err(ErrorKind::Fault));
    let (_, grant) = open(&session, "mem0", true).await.unwrap();
    let close = CloseChannel { channel_id: grant.channel_id };
    let error = other.tell(request::Body::CloseChannel(close), &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    session.tell(request::Body::CloseChannel(close), &[]).await.unwrap();
}

#[tokio::test]
async fn a_closed_connection_gives_leases_and_memory_back() {
    let running = start();
    let manager = running.connect();
    apply(&manager, running.bdevs(DEVICE)).await;
    for round in 0..3 {
        let session = running.connect();
        let guest = guest();
        add_region(&session, &guest).await;
        let (_, grant) = open(&session, "mem0", false).await.unwrap();
        assert_eq!(grant.lease_number, 0, "round {round}");
        let weak = Arc::downgrade(&guest.region);
        drop((session, guest));
        assert!(weak.upgrade().is_none());
        let deadline = Instant::now() + Duration::from_secs(10);
        while channels(&manager).await > 0 {
            assert!(Instant::now() < deadline, "the channel stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The number is free once the process is proven dead; ours counts as such.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn channels(session: &Session) -> usize {
    match session.call(request::Body::GetStatus(GetStatus {}), &[]).await.unwrap().body {
        reply::Body::ProcessStatus(status) => {
            status.items.iter().filter(|item| item.kind == "channel").count()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn devices_grow_live_and_never_shrink() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    let (mut lease, _) = open(&session, "mem0", false).await.unwrap();
    let (mut ring, _) = open(&session, "file0", false).await.unwrap();
    let beyond = Request::new(Op::Read, DEVICE, 4096, range(0, 4096), 1);
    assert_eq!(run(&mut lease, &guest, &beyond).await, Err(ErrorKind::OutOfRange));
    assert_eq!(apply(&session, running.bdevs(2 * DEVICE)).await.failures, []);
    for bdev in ["null0", "mem0", "file0"] {
        assert_eq!(describe(&session, bdev).await.size_bytes, 2 * DEVICE, "{bdev}");
    }
    // By the channels that were opened before.
    assert_eq!(run(&mut lease, &guest, &beyond).await, Ok(()));
    assert_eq!(run(&mut ring, &guest, &beyond).await, Ok(()));
    let failures = apply(&session, running.bdevs(DEVICE)).await.failures;
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures[0].message.contains("does not shrink"), "{failures:?}");
    // A file that grew by itself is seen when the size is left to it.
    let path = running.directory.path().join("disk");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3 * DEVICE).unwrap();
    let mut bdevs = running.bdevs(2 * DEVICE);
    bdevs[2].size_bytes = 0;
    assert_eq!(apply(&session, bdevs).await.failures, []);
    assert_eq!(describe(&session, "file0").await.size_bytes, 3 * DEVICE);
}

#[tokio::test]
async fn what_is_wrong_is_told_and_the_rest_is_done() {
    let running = start();
    let session = running.connect();
    let mut bdevs = running.bdevs(DEVICE);
    let missing = Path::new("/nonexistent/disk").display().to_string();
    bdevs.push(Bdev {
        name: "file1".into(),
        driver: Some(pb::Driver::File(FileDriver { path: missing, ..FileDriver::default() })),
        ..Bdev::default()
    });
    bdevs.push(Bdev { name: "none".into(), ..Bdev::default() });
    let failures = apply(&session, bdevs).await.failures;
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert_eq!(failures[0].object, "bdev file1");
    assert!(failures[0].message.contains("/nonexistent/disk"), "{failures:?}");
    assert_eq!(describe(&session, "mem0").await.size_bytes, DEVICE);
    let error = open(&session, "file1", false).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    // The same file twice: its lock says so, after a while.
    let mut twice = running.bdevs(DEVICE);
    twice.push(Bdev { name: "file2".into(), ..twice[2].clone() });
    let failures = apply(&session, twice).await.failures;
    assert!(failures[0].message.contains("locked by another"), "{failures:?}");
}

#[tokio::test]
async fn erase_and_flush_reach_the_device_and_removal_ends_its_rings() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let guest = guest();
    add_region(&session, &guest).await;
    for bdev in ["mem0", "file0"] {
        let (mut channel, _) = open(&session, bdev, true).await.unwrap();
        write_and_read_back(&mut channel, &guest, 0x77).await;
        let flush = FlushBdev { bdev: bdev.into() };
        session.tell(request::Body::FlushBdev(flush), &[]).await.unwrap();
        let erase = EraseBdev { bdev: bdev.into() };
        session.tell(request::Body::EraseBdev(erase), &[]).await.unwrap();
        let read = Request::new(Op::Read, 8192, 4096, range(0, 4096), 5);
        run(&mut channel, &guest, &read).await.unwrap();
        assert!(guest.region.whole().sub(0, 4096).unwrap().compare(&[0; 4096]), "{bdev}");
        let left: Vec<Bdev> =
            running.bdevs(DEVICE).into_iter().filter(|other| other.name != bdev).collect();
        assert_eq!(apply(&session, left).await.failures, []);
        assert_eq!(run(&mut channel, &guest, &read).await, Err(ErrorKind::Gone), "{bdev}");
        assert_eq!(apply(&session, running.bdevs(DEVICE)).await.failures, []);
    }
}

#[tokio::test]
async fn requests_are_refused_that_are_not_the_backends_or_malformed() {
    let running = start();
    let session = running.connect();
    apply(&session, running.bdevs(DEVICE)).await;
    let reload = request::Body::Reload(vireo_proto::handoff::Reload {});
    assert_eq!(session.tell(reload, &[]).await.unwrap_err().code(), Some(ErrorCode::Unsupported));
    let bad_id = OpenChannel { controller_id: vec![1], bdev: "mem0".into(), force_ring: false };
    let event = EventFd::create().unwrap();
    let error = session.tell(request::Body::OpenChannel(bad_id), &[event.as_fd()]).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
    let add = AddRegion { controller_id: id_to_bytes(1), region_id: u32::MAX, size: GUEST };
    let guest = guest();
    let error = session.tell(request::Body::AddRegion(add.clone()), &[guest.fd.as_fd()]).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
    // No descriptor, or one that is no memory.
    let error = session.tell(request::Body::AddRegion(add.clone()), &[]).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::InvalidArgument));
    assert!(session.tell(request::Body::AddRegion(add), &[event.as_fd()]).await.is_err());
    running.serve.send(Command::Stop).await.unwrap();
}
