//! A backend behind its socket, and a worker's way of using it.

use bdev::channel::{AnyChannel, Channel, Geometry, Submitted};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::request::{Op, Outcome, Request};
use bdev::ring::client::RingChannel;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, Region, RegionId, RegionPolicy, RegionTable};
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use service::control::{ControlError, Server, Session};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vireo_backend::backend::Backend;
use vireo_backend::serve::{self, Handle, Serve};
use vireo_backend::store::Store;
use vireo_proto::handoff::{
    AddRegion, ApplyBdevs, ApplyResult, Bdev, BdevInfo, ChannelGrant, ChannelKind,
    ChannelPreference, CloseChannel, DescribeBdev, FileDriver, GetStatus, MallocDriver, NullDriver,
    OpenChannel, RemoveRegion, bdev as pb, reply, request,
};
use vireo_proto::id_to_bytes;

pub const CONTROLLER: u128 = 0x1234;
pub const GUEST: u64 = 1 << 20;
pub const DEVICE: u64 = 4 << 20;

pub struct Running {
    pub directory: TempDir,
    pub serve: Handle,
    _server: tokio::task::JoinHandle<()>,
}

pub fn start() -> Running {
    let (running, serve) = start_stuck();
    std::thread::spawn(move || serve.run());
    running
}

/// With a serve loop that does nothing until it is run.
pub fn start_stuck() -> (Running, Serve) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = Server::bind(&directory.path().join("b.sock")).unwrap();
    let (loop_, serve) = serve::new().unwrap();
    let store = Store::from_environment().unwrap();
    let backend = Arc::new(Backend::new("b0".into(), serve.clone(), store));
    (Running { directory, serve, _server: tokio::spawn(server.serve(backend)) }, loop_)
}

impl Running {
    pub fn connect(&self) -> Session {
        Session::connect(&self.directory.path().join("b.sock"), "worker-test").unwrap()
    }

    pub fn bdevs(&self, size: u64) -> Vec<Bdev> {
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

pub async fn apply(session: &Session, bdevs: Vec<Bdev>) -> ApplyResult {
    match session.call(request::Body::ApplyBdevs(ApplyBdevs { bdevs }), &[]).await.unwrap().body {
        reply::Body::ApplyResult(result) => result,
        other => panic!("{other:?}"),
    }
}

pub async fn describe(session: &Session, bdev: &str) -> BdevInfo {
    let ask = request::Body::DescribeBdev(DescribeBdev { bdev: bdev.into() });
    match session.call(ask, &[]).await.unwrap().body {
        reply::Body::BdevInfo(info) => info,
        other => panic!("{other:?}"),
    }
}

pub async fn open(
    session: &Session,
    bdev: &str,
    force_ring: bool,
) -> Result<(AnyChannel, ChannelGrant), ControlError> {
    open_for(CONTROLLER, session, bdev, force_ring).await
}

pub async fn open_for(
    controller: u128,
    session: &Session,
    bdev: &str,
    force_ring: bool,
) -> Result<(AnyChannel, ChannelGrant), ControlError> {
    let event = EventFd::create().unwrap();
    let ask = request::Body::OpenChannel(OpenChannel {
        controller_id: id_to_bytes(controller),
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
        ChannelKind::LeaseDrive => panic!("there is no drive"),
        ChannelKind::Unspecified => panic!("no kind"),
    };
    assert!(fds.next().is_none());
    Ok((channel, grant))
}

pub struct Guest {
    pub table: RegionTable,
    pub region: Arc<Region>,
    pub fd: OwnedFd,
}

pub fn guest() -> Guest {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, GUEST as i64).unwrap();
    let mapped = fd.try_clone().unwrap();
    let region = Region::map(mapped, GUEST, &RegionPolicy::default()).unwrap();
    let mut table = RegionTable::new();
    table.insert(RegionId(3), region.clone()).unwrap();
    Guest { table, region, fd }
}

pub async fn add_region(session: &Session, guest: &Guest) {
    let add = AddRegion { controller_id: id_to_bytes(CONTROLLER), region_id: 3, size: GUEST };
    session.tell(request::Body::AddRegion(add), &[guest.fd.as_fd()]).await.unwrap();
}

pub async fn remove_region(session: &Session) {
    let remove = RemoveRegion { controller_id: id_to_bytes(CONTROLLER), region_id: 3 };
    session.tell(request::Body::RemoveRegion(remove), &[]).await.unwrap();
}

/// Runs one request; the runtime's thread is not blocked meanwhile.
pub async fn run(channel: &mut AnyChannel, guest: &Guest, request: &Request<'_>) -> Outcome {
    match channel.submit(request, &guest.table, 0) {
        Submitted::Done(outcome) => return outcome,
        Submitted::Pending => channel.publish(),
        Submitted::Full => panic!("no room for one request"),
    }
    let deadline = Instant::now() + Duration::from_secs(60);
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
pub fn range(offset: u64, len: u32) -> &'static [MemRange] {
    Box::leak(Box::new([MemRange { region: RegionId(3), len, offset }]))
}

pub async fn write_and_read_back(channel: &mut AnyChannel, guest: &Guest, fill: u8) {
    guest.region.whole().sub(0, 4096).unwrap().fill(fill);
    let write = Request::new(Op::Write, 8192, 4096, range(0, 4096), 1);
    run(channel, guest, &write).await.unwrap();
    run(channel, guest, &Request::new(Op::Read, 8192, 4096, range(65536, 4096), 2)).await.unwrap();
    assert!(guest.region.whole().sub(65536, 4096).unwrap().compare(&[fill; 4096]));
}

pub async fn channels(session: &Session) -> usize {
    match session.call(request::Body::GetStatus(GetStatus {}), &[]).await.unwrap().body {
        reply::Body::ProcessStatus(status) => {
            status.items.iter().filter(|item| item.kind == "channel").count()
        }
        other => panic!("{other:?}"),
    }
}

pub async fn close(session: &Session, grant: &ChannelGrant) -> Result<(), ControlError> {
    let close = CloseChannel { channel_id: grant.channel_id };
    session.tell(request::Body::CloseChannel(close), &[]).await.map(drop)
}
