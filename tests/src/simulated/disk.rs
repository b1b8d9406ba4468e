//! A backend's device: memory, its owner's channel, and a ring for each channel that a worker opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bdev::channel::{AnyChannel, Channel, Geometry};
use bdev::fault::{FaultChannel, Plan};
use bdev::malloc::MallocChannel;
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::guest_memory::RegionTable;
use ipc::segment::Segment;

/// Requests that one ring has outstanding.
const DEPTH: usize = 32;

/// A memory device that a backend owns.
pub struct Disk {
    /// Its name.
    pub name: String,
    memory: Arc<DeviceMemory>,
    owner: AnyChannel,
    leases: Arc<AtomicUsize>,
    servers: Vec<Server>,
}

/// A ring, and the controller whose memory its ranges are in.
struct Server {
    controller: u128,
    ring: RingServer,
}

impl Disk {
    /// A zeroed device of that many bytes.
    pub fn new(name: &str, bytes: u64) -> Self {
        let memory = Arc::new(DeviceMemory::create(name, bytes).expect("device memory"));
        let leases = Arc::new(AtomicUsize::new(0));
        let owner = MallocChannel::owner(Arc::clone(&memory), false, Arc::clone(&leases));
        Self {
            name: name.to_owned(),
            memory,
            owner: AnyChannel::Malloc(owner),
            leases,
            servers: Vec::new(),
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.memory.size()
    }

    /// A channel for a worker's controller: by ring alone, or a lease with a ring beside it; spoilt by `plan`.
    pub fn open(&mut self, controller: u128, by_ring: bool, plan: Plan) -> AnyChannel {
        let geometry = Geometry { size: self.memory.size(), read_only: false };
        let segment = create_segment("simulated", controller, DEPTH).expect("channel segment");
        let theirs = segment.fd().try_clone_to_owned().expect("dup");
        let theirs = Segment::open(theirs).expect("open a segment of our own");
        let event = || EventFd::create().expect("eventfd");
        let channel = RingChannel::new(theirs, event(), geometry).expect("ring");
        let ring = RingServer::new(segment, event()).expect("ring");
        self.servers.push(Server { controller, ring });
        let channel = if by_ring {
            AnyChannel::Ring(channel)
        } else {
            let number = self.leases.fetch_add(1, Ordering::Relaxed);
            let memory = Arc::clone(&self.memory);
            let lease = MallocChannel::lease(memory, false, number, Some(channel)).expect("lease");
            AnyChannel::Malloc(lease)
        };
        AnyChannel::Fault(FaultChannel::new(channel, plan))
    }

    /// Serves the rings, one step. `regions` is the memory of a controller.
    pub fn step<'a>(&mut self, now: u64, regions: impl Fn(u128) -> Option<&'a RegionTable>) {
        for (index, server) in self.servers.iter_mut().enumerate() {
            let Some(memory) = regions(server.controller) else {
                server.ring.close();
                continue;
            };
            server.ring.serve(&mut self.owner, memory, now, (index as u32) << 8);
        }
        self.owner.publish();
        let servers = &mut self.servers;
        self.owner.poll(now, &mut |tag, outcome| {
            if let Some(server) = servers.get_mut((tag >> 8) as usize) {
                server.ring.complete((tag & 0xFF) as usize, outcome);
            }
        });
        servers.iter_mut().for_each(|server| server.ring.publish());
    }

    /// The backend died: its rings are served no more. Requests in its hands are over or never done.
    pub fn crash(&mut self) {
        self.servers.iter_mut().for_each(|server| server.ring.close());
    }

    /// Sets every byte to 0, as a format does.
    pub fn erase(&self) {
        self.memory.punch(0, self.memory.size()).expect("punch a device of our own");
    }
}
