//! A leased queue pair whose lender and drive the test plays: it reads entries and lists from the queues' memory as
//! hardware would, and says by the words what a backend would.

mod sleep;

use super::*;
use crate::nvme::drive::Drive;
use crate::ring::create_segment;
use crate::ring::server::RingServer;
use ipc::event::EventFd;
use ipc::guest_memory::{Access, MemRange, RegionId, RegionPolicy};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_driver::QueueTerms;
use nvme_driver::transport::DoorbellArea;
use nvme_spec::nvm::IoDword12;
use nvme_spec::{Command, CommandId, Completion, Iova, Nsid, NvmOpcode, QueueId, Status};

const DEPTH: u16 = 12;
const CQ_SIZE: u64 = 26;
const CQ_AT: u64 = 4096;
const LISTS_AT: u64 = 8192;
const ROOM_AT: u64 = LISTS_AT + ((DEPTH as u64) << 12);
const QUEUE_IOVA: u64 = 8 << 30;
const GUEST_IOVA: u64 = 16 << 30;
const GUEST: usize = 1 << 20;
const SIZE: u64 = 1 << 20;
const GUEST_ID: RegionId = RegionId(5);

fn memory(len: u64) -> Arc<Region> {
    let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, len as i64).unwrap();
    Region::map(fd, len, &RegionPolicy::default()).unwrap()
}

/// Everything but the worker.
struct World {
    segment: Arc<Segment<DriveLeaseLayout>>,
    queues: Arc<Region>,
    doorbells: Arc<Region>,
    guest: Arc<Region>,
    table: RegionTable,
    server: RingServer,
    disk: Vec<u8>,
    head: u32,
    tail: u64,
    phase: bool,
}

fn drive() -> Drive {
    Drive {
        nsid: Nsid(1),
        block_shift: 9,
        size: SIZE,
        writable: true,
        page: 4096,
        data_max: 8192,
        boundary: 0,
        zeroes_max: 16384,
        zeroes_deallocate: true,
        verify_max: 0,
        compare: true,
        volatile_cache: true,
        delays: [0; 4],
    }
}

fn world() -> (World, LeasedDrive) {
    world_with(None)
}

/// The same with an event that the drive signals.
fn world_with(event: Option<&EventFd>) -> (World, LeasedDrive) {
    let segment = Segment::<DriveLeaseLayout>::create("lease", 1).unwrap();
    let (buffers, buffer_len) = (2, 8192);
    let queues = memory(ROOM_AT + 4096 + (buffers * buffer_len) as u64);
    let doorbells = memory(8192);
    let queue = QueueTerms {
        qid: QueueId(3),
        depth: DEPTH,
        cq_size: CQ_SIZE as u32,
        cq_at: CQ_AT,
        lists_at: LISTS_AT,
        room_at: ROOM_AT,
        page_shift: 12,
        iova: QUEUE_IOVA,
        dstrd: 0,
        doorbells: DoorbellArea { first: 4096, at: 4096, len: 4096, device: false },
    };
    let (shadow, drive) = (false, drive());
    Terms { queue, drive, shadow, event: event.is_some(), buffers, buffer_len }
        .write(&segment.terms);
    let fd = |region: &Region| region.fd().try_clone_to_owned().unwrap();
    let fds = [segment.fd().try_clone_to_owned().unwrap(), fd(&queues), fd(&doorbells)];
    let event = event.map(|event| event.try_clone().unwrap().into_fd());
    let lease = DriveLease::open(&mut fds.into_iter().chain(event)).unwrap();
    let geometry = Geometry { size: SIZE, read_only: false };
    let ring_segment = create_segment("test", 7, 16).unwrap();
    let theirs = Segment::open(ring_segment.fd().try_clone_to_owned().unwrap()).unwrap();
    let ring = RingChannel::new(theirs, EventFd::create().unwrap(), geometry).unwrap();
    let server = RingServer::new(ring_segment, EventFd::create().unwrap()).unwrap();
    let guest = memory(GUEST as u64);
    let mut table = RegionTable::new();
    table.insert(GUEST_ID, Arc::clone(&guest)).unwrap();
    let world = World {
        segment: Arc::new(segment),
        queues,
        doorbells,
        guest,
        table,
        server,
        disk: vec![0; SIZE as usize],
        head: 0,
        tail: 0,
        phase: true,
    };
    (world, LeasedDrive::new(lease, ring, geometry))
}

/// Where the lender says that the guest's memory is.
fn place(world: &World, iova: u64) {
    let row = &world.segment.regions[GUEST_ID.0 as usize];
    let key = world.guest.key();
    row.key[0].store(key.device, Ordering::Relaxed);
    row.key[1].store(key.inode, Ordering::Relaxed);
    row.place.store(iova, Ordering::Release);
}

fn request(op: Op, offset: u64, length: u64, ranges: &[MemRange], tag: u32) -> Request<'_> {
    Request::new(op, offset, length, ranges, tag)
}

fn range(offset: u64, len: u64) -> MemRange {
    MemRange { region: GUEST_ID, offset, len: len as u32 }
}

fn poll(lease: &mut LeasedDrive, now: u64) -> Vec<(u32, Outcome)> {
    let mut ended = Vec::new();
    lease.poll(now, &mut |tag, outcome| ended.push((tag, outcome)));
    ended
}

impl World {
    fn doorbell(&self) -> u32 {
        let word = self.doorbells.slice(4096 + 3 * 8, 4, Access::READ).unwrap();
        word.load_u32(0, Ordering::Acquire).unwrap()
    }

    /// Commands that the drive was told of, in order.
    fn fetch(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        let tail = self.doorbell();
        while self.head != tail {
            let at = u64::from(self.head) * 64;
            let entry = self.queues.slice(at, 64, Access::READ).unwrap();
            commands.push(Command::from_words(entry.load_words(0).unwrap()));
            self.head = (self.head + 1) % (u32::from(DEPTH) + 1);
        }
        commands
    }

    fn complete(&mut self, cid: CommandId, status: Status) {
        let completion = Completion::new(QueueId(3), cid, self.head as u16, status);
        let [low, high] = completion.with_phase(self.phase).into_halves();
        let at = CQ_AT + self.tail * 16;
        let entry = self.queues.slice(at, 16, Access::READ_WRITE).unwrap();
        assert!(entry.store_u64(0, low, Ordering::Relaxed));
        assert!(entry.store_u64(8, high, Ordering::Release));
        self.tail += 1;
        if self.tail == CQ_SIZE {
            (self.tail, self.phase) = (0, !self.phase);
        }
    }

    /// Memory as the drive reaches it.
    fn memory(&self, iova: u64, len: usize) -> ipc::guest_memory::HostSlice<'_> {
        let (region, at) = match iova {
            at if at >= GUEST_IOVA => (&self.guest, at - GUEST_IOVA),
            at => (&self.queues, at - QUEUE_IOVA),
        };
        region.slice(at, len, Access::READ_WRITE).expect("an address that was mapped")
    }

    fn pages(&self, command: &Command, len: usize) -> Vec<(u64, usize)> {
        let first = command.prp1().0;
        let mut pages = vec![(first, len.min(4096 - (first % 4096) as usize))];
        let mut left = len - pages[0].1;
        let mut next = command.prp2().0;
        if left > 4096 {
            let list = next;
            // Lists are never where the guest could write.
            assert!((QUEUE_IOVA + LISTS_AT..QUEUE_IOVA + ROOM_AT).contains(&list));
            let count = left.div_ceil(4096);
            for index in 0..count {
                let entry = self.memory(list + 8 * index as u64, 8);
                next = entry.load_u64(0, Ordering::Relaxed).unwrap();
                pages.push((next, left.min(4096)));
                left = left.saturating_sub(4096);
            }
        } else if left > 0 {
            pages.push((next, left));
        }
        pages
    }

    /// Does a command, and completes it.
    fn run(&mut self, command: &Command) {
        let len = (usize::from(IoDword12::from_bits(command.cdw12).nlb_z()) + 1) << 9;
        let mut at = (command.slba().0 << 9) as usize;
        match command.nvm_opcode() {
            NvmOpcode::READ => {
                for (page, len) in self.pages(command, len) {
                    self.memory(page, len).copy_from(&self.disk[at..at + len]);
                    at += len;
                }
            }
            NvmOpcode::WRITE => {
                for (page, len) in self.pages(command, len) {
                    let mut bytes = vec![0; len];
                    self.memory(page, len).copy_to(&mut bytes);
                    self.disk[at..at + len].copy_from_slice(&bytes);
                    at += len;
                }
            }
            NvmOpcode::WRITE_ZEROES => self.disk[at..at + len].fill(0),
            NvmOpcode::FLUSH => {}
            other => panic!("{other} was not expected"),
        }
        self.complete(command.cid(), Status::SUCCESS);
    }

    fn run_all(&mut self) -> usize {
        let commands = self.fetch();
        commands.iter().for_each(|command| self.run(command));
        commands.len()
    }

    fn guest_bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.guest.slice(offset, len, Access::READ).unwrap().copy_to(&mut bytes);
        bytes
    }

    fn set_state(&self, word: u32) {
        self.segment.lender.state.store(word, Ordering::Release);
    }
}

#[test]
fn parts_of_a_long_request_are_under_way_together_and_bounded() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    let data: Vec<u8> = (0..100 << 10).map(|n: u32| (n / 512 % 251) as u8).collect();
    world.guest.slice(512, data.len(), Access::READ_WRITE).unwrap().copy_from(&data);
    let ranges = [range(512, 100 << 10)];
    let write = request(Op::Write, 4096, 100 << 10, &ranges, 9);
    assert_eq!(lease.submit(&write, &world.table, 1), Submitted::Pending);
    lease.publish();
    assert_eq!(lease.outstanding(), 1);
    assert_eq!(world.segment.holder.writes.load(Ordering::Relaxed), 1);
    let first = world.fetch();
    assert_eq!(first.len(), 8, "as many parts as there may be");
    // Backwards, so that none relies on another.
    for command in first.iter().rev() {
        world.run(command);
    }
    let mut commands = first.len();
    let mut ended = Vec::new();
    for now in 2..100 {
        ended.extend(poll(&mut lease, now));
        commands += world.run_all();
    }
    assert_eq!(ended, [(9, Ok(()))], "once");
    assert_eq!(commands, 13, "100 KiB in commands of 8 KiB");
    assert!(world.disk[4096..4096 + (100 << 10)] == data);
    assert_eq!(lease.outstanding(), 0);
    assert_eq!(world.segment.holder.writes.load(Ordering::Relaxed), 0);
    assert_eq!(world.segment.holder.busy.load(Ordering::Relaxed), 0);

    let ranges = [range(300 << 10, 100 << 10)];
    let read = request(Op::Read, 4096, 100 << 10, &ranges, 10);
    assert_eq!(lease.submit(&read, &world.table, 100), Submitted::Pending);
    let mut ended = Vec::new();
    for now in 100..200 {
        ended.extend(poll(&mut lease, now));
        world.run_all();
    }
    assert_eq!(ended, [(10, Ok(()))]);
    assert!(world.guest_bytes(300 << 10, 100 << 10) == data);
}

#[test]
fn an_error_of_a_part_is_the_requests_once_all_parts_have_ended() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 24576)];
    let read = request(Op::Read, 0, 24576, &ranges, 1);
    assert_eq!(lease.submit(&read, &world.table, 1), Submitted::Pending);
    lease.publish();
    let commands = world.fetch();
    assert_eq!(commands.len(), 3);
    world.complete(commands[1].cid(), Status::UNRECOVERED_READ_ERROR.with_dnr());
    assert_eq!(poll(&mut lease, 2), []);
    world.run(&commands[0]);
    assert_eq!(poll(&mut lease, 3), []);
    world.run(&commands[2]);
    assert_eq!(poll(&mut lease, 4), [(1, Err(ErrorKind::Medium))]);
}

#[test]
fn what_the_drive_is_not_known_to_reach_goes_by_ring_and_out_of_reach_through_buffers() {
    let (mut world, mut lease) = world();
    let ranges = [range(0, 4096)];
    let write = request(Op::Write, 0, 4096, &ranges, 1);
    assert_eq!(lease.submit(&write, &world.table, 1), Submitted::Pending);
    lease.publish();
    assert_eq!(world.fetch().len(), 0);
    let mut absent = crate::null::NullChannel::new(lease.geometry(), 0);
    assert_eq!(world.server.serve(&mut absent, &world.table, 1, 0), 1, "the ring has it");
    world.server.publish();
    assert_eq!(poll(&mut lease, 2), [(1, Ok(()))]);

    place(&world, ipc::layout::drive_lease::region_place::BEYOND);
    world.guest.slice(0, 4096, Access::READ_WRITE).unwrap().fill(7);
    assert_eq!(lease.submit(&write, &world.table, 3), Submitted::Pending);
    lease.publish();
    let commands = world.fetch();
    assert_eq!(commands.len(), 1);
    let Iova(at) = commands[0].prp1();
    assert!((QUEUE_IOVA + ROOM_AT..GUEST_IOVA).contains(&at), "a buffer of ours");
    world.run(&commands[0]);
    assert_eq!(poll(&mut lease, 4), [(1, Ok(()))]);
    assert!(world.disk[..4096] == [7; 4096]);
}

#[test]
fn memory_that_is_forgotten_is_looked_for_again() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 512)];
    let flush = request(Op::Read, 0, 512, &ranges, 1);
    assert_eq!(lease.submit(&flush, &world.table, 1), Submitted::Pending);
    lease.publish();
    world.run_all();
    assert_eq!(poll(&mut lease, 2).len(), 1);
    let held = Arc::strong_count(&world.guest);
    lease.forget(&world.guest);
    assert!(Arc::strong_count(&world.guest) < held);
    // Another place of the same memory: the old one is not used.
    place(&world, GUEST_IOVA + (64 << 10));
    assert_eq!(lease.submit(&flush, &world.table, 3), Submitted::Pending);
    lease.publish();
    assert_eq!(world.fetch()[0].prp1(), Iova(GUEST_IOVA + (64 << 10)));
}

#[test]
fn a_queue_pair_that_is_taken_away_is_let_alone_until_it_comes_back() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 512)];
    let read = |tag| request(Op::Read, 0, 512, &ranges, tag);
    assert_eq!(lease.submit(&read(1), &world.table, 1), Submitted::Pending);
    lease.publish();
    assert_eq!(world.fetch().len(), 1);
    let down = lease_state::STEP | lease_state::DOWN;
    world.set_state(down);
    assert_eq!(lease.submit(&read(2), &world.table, 2), Submitted::Full, "the poll sees to it");
    assert_eq!(poll(&mut lease, 2), []);
    assert_eq!(world.segment.holder.obeyed.load(Ordering::Relaxed), down);
    assert_eq!(lease.submit(&read(2), &world.table, 3), Submitted::Pending);
    lease.publish();
    assert_eq!(world.fetch().len(), 0, "nothing is told");
    // The lender has made the queues again.
    let word = world.doorbells.slice(4096 + 3 * 8, 4, Access::READ_WRITE).unwrap();
    assert!(word.store_u32(0, 0, Ordering::Relaxed));
    (world.head, world.tail, world.phase) = (0, 0, true);
    world.set_state(lease_state::STEP | lease_state::UP);
    assert_eq!(poll(&mut lease, 4), []);
    assert_eq!(world.run_all(), 2, "what was outstanding, and what came since");
    let mut ended = poll(&mut lease, 5);
    ended.sort_by_key(|&(tag, _)| tag);
    assert_eq!(ended, [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_lease_that_is_over_ends_everything() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 64 << 10)];
    let read = request(Op::Read, 0, 64 << 10, &ranges, 1);
    assert_eq!(lease.submit(&read, &world.table, 1), Submitted::Pending);
    lease.publish();
    assert!(!world.fetch().is_empty());
    let over = lease_state::STEP | lease_state::OVER;
    world.set_state(over);
    assert_eq!(poll(&mut lease, 2), [(1, Err(ErrorKind::Gone))]);
    assert!(lease.is_gone() && lease.outstanding() == 0);
    assert_eq!(world.segment.holder.obeyed.load(Ordering::Relaxed), over);
    assert_eq!(lease.submit(&read, &world.table, 3), Submitted::Done(Err(ErrorKind::Gone)));
    drop(lease);
    assert_eq!(world.segment.holder.obeyed.load(Ordering::Relaxed), u32::MAX);
}

#[test]
fn requests_of_a_dead_backend_end_when_the_drive_is_done_or_there_is_a_successor() {
    let ranges = [range(0, 512)];
    let read = |tag| request(Op::Read, 0, 512, &ranges, tag);
    for (way, wanted) in [("done", Ok(())), ("gone", Err(ErrorKind::Gone))] {
        let (mut world, mut lease) = world();
        place(&world, GUEST_IOVA);
        assert_eq!(lease.submit(&read(1), &world.table, 1), Submitted::Pending);
        lease.publish();
        lease.set_lost();
        assert_eq!(poll(&mut lease, 2), []);
        assert_eq!(poll(&mut lease, 1 + LINGER), []);
        assert_eq!(lease.submit(&read(2), &world.table, 3), Submitted::Done(Err(ErrorKind::Gone)));
        match way {
            "done" => assert_eq!(world.run_all(), 1),
            _ => lease.set_gone(),
        }
        assert_eq!(poll(&mut lease, 1 + LINGER), [(1, wanted)], "{way}");
    }
    let (world, mut lease) = world();
    place(&world, GUEST_IOVA);
    assert_eq!(lease.submit(&read(1), &world.table, 1), Submitted::Pending);
    lease.set_lost();
    let held = Arc::strong_count(&world.guest);
    assert_eq!(poll(&mut lease, 2), []);
    assert!(lease.engine.queue().is_some());
    assert_eq!(poll(&mut lease, 2 + LINGER), []);
    assert!(lease.engine.queue().is_none() && lease.stopped.is_none(), "nothing is mapped");
    assert_eq!((lease.outstanding(), Arc::strong_count(&world.guest)), (1, held));
    lease.set_gone();
    assert_eq!(poll(&mut lease, 3 + LINGER), [(1, Err(ErrorKind::Gone))]);
}

#[test]
fn writes_keep_out_while_a_pair_is_to_run() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    world.segment.lender.exclusive.store(1, Ordering::Relaxed);
    let ranges = [range(0, 512)];
    let write = request(Op::Write, 0, 512, &ranges, 1);
    let read = request(Op::Read, 0, 512, &ranges, 2);
    assert_eq!(lease.submit(&write, &world.table, 1), Submitted::Pending);
    assert_eq!(lease.submit(&read, &world.table, 1), Submitted::Pending);
    lease.publish();
    assert_eq!(world.segment.holder.writes.load(Ordering::Relaxed), 0);
    let opcodes: Vec<_> = world.fetch().iter().map(Command::nvm_opcode).collect();
    assert_eq!(opcodes, [NvmOpcode::READ], "the write goes by the ring");
    world.segment.lender.exclusive.store(0, Ordering::Relaxed);
    let write = Request { tag: 3, ..write };
    assert_eq!(lease.submit(&write, &world.table, 2), Submitted::Pending);
    lease.publish();
    assert_eq!(world.fetch().len(), 1);
    assert_eq!(world.segment.holder.writes.load(Ordering::Relaxed), 1);
}

#[test]
fn commands_that_hang_are_told_of() {
    let (mut world, mut lease) = world();
    place(&world, GUEST_IOVA);
    let ranges = [range(0, 512)];
    let read = request(Op::Read, 0, 512, &ranges, 1);
    assert_eq!(lease.submit(&read, &world.table, 1), Submitted::Pending);
    lease.publish();
    let command = world.fetch()[0];
    assert_eq!(poll(&mut lease, 9_000_000_000), []);
    let abort = &world.segment.holder.abort;
    assert_eq!(abort.load(Ordering::Relaxed), u32::from(command.cid().0) + 1);
    assert_eq!(world.segment.holder.hang.load(Ordering::Relaxed), 0);
    assert_eq!(poll(&mut lease, 13_000_000_000), []);
    assert_eq!(world.segment.holder.hang.load(Ordering::Relaxed), 1);
}
