//! A worker's channel, a backend's device and the ring between them, turned by hand in one thread.
#![allow(dead_code, reason = "each test crate uses its part")]

use bdev::channel::{AnyChannel, Channel, Geometry, Submitted};
use bdev::file::{FileDevice, FileOptions};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::request::{Op, Outcome, Request};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, Region, RegionId, RegionPolicy, RegionTable};
use ipc::segment::Segment;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

/// Bytes of guest memory.
pub const GUEST: usize = 1 << 20;

/// Both sides.
pub struct Rig {
    /// What the worker holds; `None`: it is the device itself.
    pub worker: Option<AnyChannel>,
    /// What the backend holds.
    pub device: AnyChannel,
    pub server: Option<RingServer>,
    pub table: RegionTable,
    pub region: Arc<Region>,
}

pub fn guest() -> (RegionTable, Arc<Region>) {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, GUEST as i64).unwrap();
    let region = Region::map(fd, GUEST as u64, &RegionPolicy::default()).unwrap();
    let mut table = RegionTable::new();
    table.insert(RegionId(0), region.clone()).unwrap();
    (table, region)
}

/// A ring's two ends.
pub fn ring(geometry: Geometry, depth: usize) -> (RingChannel, RingServer) {
    let segment = create_segment("test", 7, depth).unwrap();
    let theirs = Segment::open(segment.fd().try_clone_to_owned().unwrap()).unwrap();
    let (worker, backend) = (EventFd::create().unwrap(), EventFd::create().unwrap());
    let client = RingChannel::new(theirs, backend, geometry).unwrap();
    (client, RingServer::new(segment, worker).unwrap())
}

impl Rig {
    /// Over any device.
    pub fn over(device: AnyChannel, by_ring: bool) -> Self {
        let (table, region) = guest();
        let mut rig = Self { worker: None, device, server: None, table, region };
        if by_ring {
            let (client, server) = ring(rig.device.geometry(), 16);
            rig.worker = Some(AnyChannel::Ring(client));
            rig.server = Some(server);
        }
        rig
    }

    pub fn null(size: u64, by_ring: bool) -> Self {
        let geometry = Geometry { size, read_only: false };
        Self::over(AnyChannel::Null(NullChannel::new(geometry, 0)), by_ring)
    }

    /// By ring, or a lease with its ring beside it.
    pub fn malloc(size: u64, by_ring: bool) -> Self {
        let memory = Arc::new(DeviceMemory::create("test", size).unwrap());
        let leases = Arc::new(AtomicUsize::new(1));
        let owner = MallocChannel::owner(memory.clone(), false, leases);
        let mut rig = Self::over(AnyChannel::Malloc(owner), true);
        if !by_ring {
            let Some(AnyChannel::Ring(ring)) = rig.worker.take() else { panic!("no ring") };
            let mapped = DeviceMemory::open(memory.fd().try_clone_to_owned().unwrap()).unwrap();
            let lease = MallocChannel::lease(Arc::new(mapped), false, 0, Some(ring)).unwrap();
            rig.worker = Some(AnyChannel::Malloc(lease));
        }
        rig
    }

    pub fn file(path: &Path, size: u64, direct: bool, by_ring: bool) -> Self {
        let options = FileOptions { size, create: true, direct, ..FileOptions::new(path) };
        Self::open(&options, by_ring)
    }

    pub fn open(options: &FileOptions, by_ring: bool) -> Self {
        Self::over(AnyChannel::File(Box::new(FileDevice::open(options).unwrap())), by_ring)
    }

    pub fn wrap(mut self, wrap: impl FnOnce(AnyChannel) -> AnyChannel) -> Self {
        self.device = wrap(self.device);
        self
    }

    pub fn submit(&mut self, request: &Request<'_>) -> Submitted {
        let channel = self.worker.as_mut().unwrap_or(&mut self.device);
        channel.submit(request, &self.table, 0)
    }

    /// One turn of both loops; what the worker is told.
    pub fn turn(&mut self, now: u64) -> Vec<(u32, Outcome)> {
        let mut told = Vec::new();
        match (&mut self.worker, &mut self.server) {
            (Some(worker), Some(server)) => {
                worker.publish();
                server.serve(&mut self.device, &self.table, now, 0);
                self.device.publish();
                self.device.poll(now, &mut |tag, outcome| server.complete(tag as usize, outcome));
                server.publish();
                worker.poll(now, &mut |tag, outcome| told.push((tag, outcome)));
            }
            _ => {
                self.device.publish();
                self.device.poll(now, &mut |tag, outcome| told.push((tag, outcome)));
            }
        }
        told
    }

    /// Runs one request to its end.
    pub fn run(&mut self, request: &Request<'_>) -> Outcome {
        match self.submit(request) {
            Submitted::Done(outcome) => return outcome,
            Submitted::Pending => {}
            Submitted::Full => panic!("no room for a single request"),
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let [(tag, outcome)] = self.turn(0)[..] {
                assert_eq!(tag, request.tag);
                return outcome;
            }
            assert!(Instant::now() < deadline, "request never ended: {request:?}");
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        self.region.whole().copy_from(data);
        self.run(&Request::new(Op::Write, offset, data.len() as u64, &range(0, data.len()), 1))
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.region.whole().sub(0, len).unwrap().fill(0xee);
        self.run(&Request::new(Op::Read, offset, len as u64, &range(0, len), 2)).unwrap();
        let mut data = vec![0; len];
        self.region.whole().copy_to(&mut data);
        data
    }
}

/// One range of the guest's memory.
pub fn range(offset: usize, len: usize) -> [MemRange; 1] {
    [MemRange { region: RegionId(0), len: len as u32, offset: offset as u64 }]
}
