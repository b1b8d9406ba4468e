//! A worker that dies while a block device works for it: the device goes on, and guest memory must not be called free
//! before it has ended.

use std::sync::Arc;
use std::time::Duration;

use bdev::channel::{AnyChannel, Channel, Geometry, Submitted};
use bdev::request::{Op, Outcome, Request};
use bdev::ring::client::RingChannel;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::event::EventFd;
use ipc::guest_memory::{Access, MemRange, Region, RegionId, RegionPolicy, RegionTable};
use ipc::segment::Segment;
use nix::sys::signal::{Signal, kill};
use nvme_spec::register::offset;
use nvme_spec::{Iova, Lba, NvmOpcode};
use vfio_user::message::DmaUnmapBody;
use vfio_user::{Command, Header};
use vireo_tests::faulty::FaultyTarget;
use vireo_tests::host::{Buffer, Host, HostMemory, commands};
use vireo_tests::target::{Target, configuration, one_memory_namespace};
use vireo_tests::wait::PATIENCE;
use zerocopy::IntoBytes;

use crate::{MEMORY, SLOW};

/// Bytes of the device.
const BYTES: u64 = 64 << 20;
/// How long it is looked that nothing happens.
const A_WHILE: Duration = Duration::from_millis(400);
/// Requests that the device takes at a time.
const DEPTH: usize = 16;

/// A device that does what a test says, when it says so.
struct Hand {
    server: RingServer,
    table: RegionTable,
    taken: Taken,
}

/// Requests that the device has begun: place in the ring, memory.
#[derive(Default)]
struct Taken(Vec<(u32, Vec<MemRange>)>);

impl Channel for Taken {
    fn geometry(&self) -> Geometry {
        Geometry { size: BYTES, read_only: false }
    }

    fn submit(&mut self, request: &Request<'_>, _memory: &RegionTable, _now: u64) -> Submitted {
        match request.op {
            Op::Read => {
                self.0.push((request.tag, request.ranges.to_vec()));
                Submitted::Pending
            }
            _ => Submitted::Done(Ok(())),
        }
    }

    fn poll(&mut self, _now: u64, _complete: &mut impl FnMut(u32, Outcome)) -> usize {
        0
    }

    fn outstanding(&self) -> usize {
        self.0.len()
    }
}

impl Hand {
    /// The device and its backend's way to it; `backend` wakes the backend.
    fn new(backend: EventFd, memory: &HostMemory) -> (Self, AnyChannel) {
        let segment = create_segment("hand", 1, DEPTH).unwrap();
        let mapped = Segment::open(segment.fd().try_clone_to_owned().unwrap()).unwrap();
        let server = RingServer::new(mapped, backend).unwrap();
        let geometry = Geometry { size: BYTES, read_only: false };
        let ring = RingChannel::new(segment, EventFd::create().unwrap(), geometry).unwrap();
        let fd = memory.fd().try_clone_to_owned().unwrap();
        let region = Region::map(fd, memory.len(), &RegionPolicy::default()).unwrap();
        let mut table = RegionTable::new();
        // Which of the first numbers it has is the frontend's affair; no request names other memory.
        for id in 0..8 {
            table.insert(RegionId(id), Arc::clone(&region)).unwrap();
        }
        (Self { server, table, taken: Taken::default() }, AnyChannel::Ring(ring))
    }

    /// How many reads it has begun.
    fn begun(&mut self) -> usize {
        self.server.serve(&mut self.taken, &self.table, 0, 0);
        self.server.publish();
        self.taken.0.len()
    }

    /// Brings the data of all reads that have begun, and ends them.
    fn finish(&mut self, byte: u8) {
        for (slot, ranges) in self.taken.0.drain(..) {
            for range in ranges {
                self.table.host(range, Access::WRITE).unwrap().fill(byte);
            }
            self.server.complete(slot as usize, Ok(()));
        }
        self.server.publish();
    }
}

/// A host with a read under way to `memory`, whose worker is dead, which the controller says.
fn bereaved() -> (FaultyTarget, Hand, Host, HostMemory) {
    let memory = HostMemory::new(Iova(0x90_0000_0000), 1 << 20);
    let ring = "driver = \"malloc\"\nchannel = \"ring\"";
    let configuration = one_memory_namespace(&["vm0"]).replace("driver = \"malloc\"", ring);
    let mut hand = None;
    let mut target = FaultyTarget::start_with(&configuration, |backend| {
        let (device, channel) = Hand::new(backend, &memory);
        hand = Some(device);
        channel
    });
    let mut hand = hand.unwrap();
    let mut host = Host::connect(target.socket("vm0"));
    host.transport.map(&memory, memory.whole()).unwrap();
    memory.fill(memory.whole(), 0x11);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8).with_prps(memory.base(), Iova(0));
    host.submit(0, read);
    host.wait("the device has the read", |_| (hand.begun() == 1).then_some(()));
    target.kill_worker();
    host.wait("CSTS.CFS", |host| host.csts().cfs().then_some(()));
    (target, hand, host, memory)
}

fn first_byte(memory: &HostMemory) -> u8 {
    memory.read(memory.base(), 1)[0]
}

#[test]
fn an_unmap_waits_for_what_a_dead_worker_left_with_a_backend() {
    let (_target, mut hand, mut host, memory) = bereaved();
    let Buffer { iova, len } = memory.whole();
    let body = DmaUnmapBody { argsz: 24, address: iova.0, size: len, ..Default::default() };
    let unmap = Header::command(9, Command::DMA_UNMAP, 24).with_body(body.as_bytes());
    let client = &mut host.transport.client;
    client.send_raw(&unmap, &[]).unwrap();
    client.set_timeout(A_WHILE);
    assert!(client.receive_raw().is_err(), "answered while the device writes there");
    assert_eq!((hand.begun(), first_byte(&memory)), (1, 0x11));
    hand.finish(0x22);
    client.set_timeout(PATIENCE);
    assert!(!client.receive_raw().unwrap().header.flags.error());
    // It is the guest's own from here on.
    memory.fill(memory.whole(), 0x33);
    assert_eq!(hand.begun(), 0, "nothing of it is left");
    let bytes = memory.read(memory.base(), 8 * 512);
    assert!(bytes.iter().all(|&byte| byte == 0x33), "memory was written after its unmap");
}

#[test]
fn a_reset_waits_for_what_a_dead_worker_left_with_a_backend() {
    let (mut target, mut hand, mut host, memory) = bereaved();
    host.write32(offset::CC, Host::cc().into_bits());
    // A successor that is there changes nothing.
    target.start_worker();
    let ready = host.wait_for(A_WHILE, &mut |host| (!host.csts().rdy()).then_some(()));
    assert_eq!(ready, None, "the reset was complete while the device writes");
    hand.finish(0x22);
    host.wait("CSTS.RDY 0", |host| (!host.csts().rdy()).then_some(()));
    assert_eq!(first_byte(&memory), 0x22, "complete before the data came");
    host.enable();
    host.create_queues(1, 64);
    let read = commands::io(NvmOpcode::READ, MEMORY, Lba(0), 8).with_prps(memory.base(), Iova(0));
    host.submit(0, read);
    host.wait("the successor's read", |_| (hand.begun() == 1).then_some(()));
    hand.finish(0x44);
    assert!(host.next_completion(0).status().is_success());
    assert_eq!(first_byte(&memory), 0x44);
}

#[test]
fn a_client_s_end_waits_for_what_a_dead_worker_left_with_a_backend() {
    let (mut target, mut hand, host, memory) = bereaved();
    drop(host);
    target.start_worker();
    // Its endpoint takes the next client when nothing of this one is left.
    let socket = target.socket("vm0");
    let (tell, told) = std::sync::mpsc::channel();
    let next = std::thread::spawn(move || {
        let host = Host::connect(socket);
        tell.send(()).ok();
        host
    });
    assert!(told.recv_timeout(A_WHILE).is_err(), "served while the device writes for another");
    hand.finish(0x22);
    told.recv_timeout(PATIENCE).expect("the next client is served");
    assert_eq!(first_byte(&memory), 0x22);
    drop(next.join().unwrap());
}

#[test]
fn what_a_dead_backend_left_ends_when_its_successor_has_the_devices() {
    let target = Target::start(&configuration(
        "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\n\
         [[bdev]]\nname = \"slow\"\ndriver = \"null\"\nsize = \"1GiB\"\nlatency = \"10s\"\nchannel = \"ring\"\n\
         [[subsystem]]\nname = \"s0\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
         [[subsystem.namespace]]\nnsid = 2\nbdev = \"slow\"\n\
         [[endpoint]]\nname = \"vm0\"\nsubsystem = \"s0\"\n",
    ));
    let mut host = Host::connect(target.socket("vm0"));
    let buffer = host.memory.allocate(4096);
    let read = host.memory.with_prps(commands::io(NvmOpcode::READ, SLOW, Lba(0), 8), buffer);
    let cid = host.submit(0, read);
    // The worker has it: a command behind it on the queue is done.
    let flush = host.submit(0, commands::flush(MEMORY));
    assert_eq!(host.next_completion(0).cid, flush);
    // Nobody starts a successor for now.
    kill(target.supervisor(), Signal::SIGSTOP).unwrap();
    kill(target.pid("b0"), Signal::SIGKILL).unwrap();
    let early = host.wait_for(A_WHILE, &mut |host| host.poll(0));
    kill(target.supervisor(), Signal::SIGCONT).unwrap();
    assert!(early.is_none(), "the kernel may still write there: {early:?}");
    let done = host.next_completion(0);
    assert_eq!(done.cid, cid);
    assert!(done.status().is_success(), "the successor carries it out: {}", done.status());
    drop(host);
    assert!(target.stop().success());
}
