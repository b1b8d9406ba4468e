//! One run: commands of all kinds at depth, troubles in between, and a look at everything at the end.

use bdev::fault::{Effect, Plan, Rule, When};
use bdev::request::{ErrorKind, Op};
use nvme_spec::command::Fuse;
use nvme_spec::nvm::{CopyRange, DatasetDword11, DatasetRange};
use nvme_spec::{Command, CommandId, Completion, Iova, Lba, Nsid, NvmOpcode, Status};
use std::collections::BTreeMap;
use vireo_tests::host::memory::PAGE;
use vireo_tests::host::{Buffer, commands};
use vireo_tests::random::Random;
use vireo_tests::simulated::client::SharedWorld;
use vireo_tests::simulated::{Fate, SimulatedHost, World};
use zerocopy::IntoBytes;

use crate::layout::{DATA_PAGES, gather, prp_layout, prps, scatter, sgl, sgl_layout};
use crate::model::{BLOCK, Model, bytes_of};

/// The namespace.
const NSID: Nsid = Nsid(1);
/// Commands at a time; each has a zone of the device and memory of its own.
const SLOTS: usize = 12;
/// Blocks of a zone.
const ZONE: usize = 64;
/// Pages of a slot's memory: data, then lists.
const SLOT_PAGES: u64 = DATA_PAGES + 4;
/// Bytes of the host's memory.
const MEMORY: u64 = 8 << 20;

/// Which troubles there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    /// The device fails and delays requests.
    pub faults: bool,
    /// The host resets the controller, in all ways there are.
    pub resets: bool,
    /// The host takes memory back while commands use it.
    pub unmaps: bool,
    /// The worker dies.
    pub deaths: bool,
    /// The client goes and another comes.
    pub disconnects: bool,
    /// The device lies: writes are lost. No run may survive that.
    pub lies: bool,
}

/// What a command in flight is to do.
#[derive(Clone, Debug)]
enum Kind {
    Read,
    Write(Vec<u64>),
    Zero,
    Compare {
        equal: bool,
    },
    /// First and second command of a pair, in this order.
    FusedCompare {
        equal: bool,
    },
    FusedWrite(Vec<u64>),
    Copy {
        from: usize,
    },
    Harmless,
}

#[derive(Clone, Debug)]
struct Flight {
    slot: usize,
    queue: usize,
    first: usize,
    count: usize,
    kind: Kind,
    /// Where the data lies, in order.
    layout: Vec<Buffer>,
}

/// A run.
pub struct Scenario {
    random: Random,
    troubles: Troubles,
    world: SharedWorld,
    host: Option<SimulatedHost>,
    mapped: bool,
    model: Model,
    slots: Vec<Buffer>,
    control: Buffer,
    flights: BTreeMap<CommandId, Flight>,
    /// Commands of each slot in flight.
    busy: [u8; SLOTS],
    next_stamp: u64,
    /// The worker died: commands may be lost until the next reset.
    broken: bool,
}

impl Scenario {
    /// Everything follows from the seed.
    pub fn new(seed: u64, troubles: Troubles) -> Self {
        let mut random = Random::new(seed);
        let rule = |op, when, effect| Rule { op, range: None, when, effect };
        let mut rules = Vec::new();
        if troubles.faults {
            rules.push(rule(None, When::PerMillion(20_000), Effect::Fail(ErrorKind::Medium)));
            rules.push(rule(None, When::PerMillion(5_000), Effect::Fail(ErrorKind::Busy)));
            let delay = random.in_range(10_000..3_000_000);
            rules.push(rule(None, When::PerMillion(300_000), Effect::Delay(delay)));
        }
        if troubles.lies {
            rules.push(rule(Some(Op::Write), When::PerMillion(300_000), Effect::Lose));
        }
        let fate = Fate {
            plan: Plan { seed, rules },
            by_ring: random.one_in(2),
            handover_steps: random.in_range(0..20),
        };
        let mapped = random.one_in(2);
        let mut world = World::new(seed, 1, mapped, fate);
        world.add_namespace(NSID, (SLOTS * ZONE * BLOCK) as u64, 9);
        let mut scenario = Self {
            random,
            troubles,
            world: SharedWorld::new(world),
            host: None,
            mapped,
            model: Model::new(SLOTS * ZONE),
            slots: Vec::new(),
            control: Buffer { iova: Iova(0), len: 0 },
            flights: BTreeMap::new(),
            busy: [0; SLOTS],
            next_stamp: 1,
            broken: false,
        };
        scenario.come();
        scenario
    }

    /// Runs to the end.
    pub fn run(mut self) {
        for _ in 0..self.random.in_range(100..400) {
            match self.random.in_range(0..8) {
                0..4 => self.start(),
                4..6 => self.step(),
                6 => self.trouble(),
                _ => self.take(),
            }
        }
        self.settle();
        for slot in 0..SLOTS {
            self.read_zone(slot);
        }
        self.host.take().expect("a host").transport.disconnect();
    }

    fn step(&mut self) {
        self.world.get().step();
    }

    fn host(&mut self) -> &mut SimulatedHost {
        self.host.as_mut().expect("a client is there")
    }

    /// A client comes: its memory is mapped part by part.
    fn come(&mut self) {
        let mut host = self.world.attach(0, self.mapped, MEMORY);
        let whole = host.memory.whole();
        let slots_at = MEMORY - SLOTS as u64 * SLOT_PAGES * PAGE;
        self.control = whole.part(0, slots_at);
        let slot = |slot: u64| whole.part(slots_at + slot * SLOT_PAGES * PAGE, SLOT_PAGES * PAGE);
        self.slots = (0..SLOTS as u64).map(slot).collect();
        host.transport.unmap(whole);
        for part in [self.control].into_iter().chain(self.slots.iter().copied()) {
            host.transport.map(&host.memory, part);
        }
        self.host = Some(host);
        self.enable();
    }

    fn enable(&mut self) {
        let queues = self.random.in_range(1..5) as u16;
        let entries = self.random.in_range(4..40) as u32;
        let shadow = !self.mapped && self.random.one_in(2);
        let host = self.host();
        host.memory.release(2 * PAGE);
        host.enable();
        if shadow {
            host.use_shadow_doorbells();
        }
        host.create_queues(queues, entries);
        self.broken = false;
    }

    /// Sends one command, or a fused pair, of a slot that is free.
    fn start(&mut self) {
        let queues = self.host().queues.len() as u64;
        let queue = self.random.in_range(0..queues) as usize;
        let in_queue = self.flights.values().filter(|flight| flight.queue == queue).count();
        let room = self.host().queues[queue].entries as usize - 1;
        let free: Vec<usize> = (0..SLOTS).filter(|&slot| self.busy[slot] == 0).collect();
        if free.is_empty() || in_queue + 2 > room || self.broken {
            return self.take();
        }
        let slot = *self.random.pick(&free);
        let count = self.random.in_range(1..ZONE as u64 / 2) as usize;
        let first = slot * ZONE + self.random.in_range(0..(ZONE - count) as u64) as usize;
        let flight = Flight { slot, queue, first, count, kind: Kind::Read, layout: Vec::new() };
        match self.random.in_range(0..16) {
            0..4 => self.send_data(flight, NvmOpcode::READ),
            4..9 => {
                let kind = Kind::Write(self.stamps(count));
                self.send_data(Flight { kind, ..flight }, NvmOpcode::WRITE);
            }
            9 => self.compare(flight),
            10 => self.send_plain(Flight { kind: Kind::Zero, ..flight }, NvmOpcode::WRITE_ZEROES),
            11 => self.deallocate(flight),
            12 => self.send_plain(Flight { kind: Kind::Harmless, ..flight }, NvmOpcode::VERIFY),
            13 => self.send(Flight { kind: Kind::Harmless, ..flight }, commands::flush(NSID)),
            14 => self.copy(flight),
            _ => self.fused(flight),
        }
    }

    fn stamps(&mut self, count: usize) -> Vec<u64> {
        let from = self.next_stamp;
        self.next_stamp += count as u64;
        (from..self.next_stamp).collect()
    }

    fn compare(&mut self, flight: Flight) {
        let Some(stamps) = self.model.certain(flight.first, flight.count) else {
            return self.send_data(flight, NvmOpcode::READ);
        };
        let equal = self.random.one_in(2);
        let wanted = if equal { stamps } else { self.stamps(flight.count) };
        self.send_with(
            Flight { kind: Kind::Compare { equal }, ..flight },
            NvmOpcode::COMPARE,
            &wanted,
        );
    }

    fn fused(&mut self, flight: Flight) {
        let Some(stamps) = self.model.certain(flight.first, flight.count) else {
            return self.send_data(flight, NvmOpcode::READ);
        };
        let equal = self.random.one_in(2);
        let wanted = if equal { stamps } else { self.stamps(flight.count) };
        let written = self.stamps(flight.count);
        let (slot, bytes) = (self.slots[flight.slot], flight.count as u64 * BLOCK as u64);
        // Half of the slot's data pages for each command.
        let half = DATA_PAGES / 2 * PAGE;
        let (from, to) = (slot.part(0, bytes), slot.part(half, bytes));
        let compare =
            commands::io(NvmOpcode::COMPARE, NSID, Lba(flight.first as u64), flight.count as u32);
        let write =
            Command { cdw0: Command::nvm(NvmOpcode::WRITE, CommandId(0), NSID).cdw0, ..compare };
        let queue = flight.queue;
        let lists = slot.part(DATA_PAGES * PAGE, 4 * PAGE);
        let host = self.host();
        host.memory.write(from.iova, &bytes_of(&wanted));
        host.memory.write(to.iova, &bytes_of(&written));
        let compare = prps(host, compare, &[from], lists.part(0, PAGE)).with_fuse(Fuse::FIRST);
        let write = prps(host, write, &[to], lists.part(PAGE, PAGE)).with_fuse(Fuse::SECOND);
        let [first, second] = host.submit_pair(queue, [compare, write]);
        let kinds = [Kind::FusedCompare { equal }, Kind::FusedWrite(written)];
        for (cid, kind) in [first, second].into_iter().zip(kinds) {
            self.busy[flight.slot] += 1;
            self.flights.insert(cid, Flight { kind, ..flight.clone() });
        }
    }

    fn copy(&mut self, flight: Flight) {
        let count = flight.count.min(ZONE / 4);
        let zone = flight.slot * ZONE;
        let (from, first) = (zone, zone + ZONE / 2);
        let range = CopyRange {
            reserved0: [0; 8],
            slba: Lba(from as u64),
            nlb_z: (count - 1) as u16,
            reserved18: [0; 6],
            eilbrt: 0,
            elbat: 0,
            elbatm: 0,
        };
        let at = self.slots[flight.slot];
        self.host().memory.write(at.iova, range.as_bytes());
        let command = Command::nvm(NvmOpcode::COPY, CommandId(0), NSID)
            .with_slba(Lba(first as u64))
            .with_prps(at.iova, Iova(0));
        self.send(Flight { kind: Kind::Copy { from }, first, count, ..flight }, command);
    }

    fn deallocate(&mut self, flight: Flight) {
        let range = DatasetRange {
            length: flight.count as u32,
            slba: Lba(flight.first as u64),
            ..DatasetRange::default()
        };
        let at = self.slots[flight.slot];
        self.host().memory.write(at.iova, range.as_bytes());
        let mut command = Command::nvm(NvmOpcode::DATASET_MANAGEMENT, CommandId(0), NSID)
            .with_prps(at.iova, Iova(0));
        command.cdw11 = DatasetDword11::new().with_ad(true).into_bits();
        self.send(Flight { kind: Kind::Zero, ..flight }, command);
    }

    fn send_plain(&mut self, flight: Flight, opcode: NvmOpcode) {
        let command = commands::io(opcode, NSID, Lba(flight.first as u64), flight.count as u32);
        self.send(flight, command);
    }

    fn send_data(&mut self, flight: Flight, opcode: NvmOpcode) {
        let data = match &flight.kind {
            Kind::Write(stamps) => stamps.clone(),
            // What a read must not leave behind.
            _ => vec![u64::MAX; flight.count],
        };
        self.send_with(flight, opcode, &data);
    }

    /// Lays data out in the slot's memory, at random, and sends the command.
    fn send_with(&mut self, mut flight: Flight, opcode: NvmOpcode, data: &[u64]) {
        let slot = self.slots[flight.slot];
        let bytes = flight.count as u64 * BLOCK as u64;
        let lists = slot.part(DATA_PAGES * PAGE, 4 * PAGE);
        let command = commands::io(opcode, NSID, Lba(flight.first as u64), flight.count as u32);
        let by_sgl = self.random.one_in(3);
        flight.layout = match by_sgl {
            true => sgl_layout(&mut self.random, slot, bytes),
            false => prp_layout(&mut self.random, slot, bytes),
        };
        let (host, content) = (self.host.as_mut().expect("a host"), bytes_of(data));
        scatter(host, &flight.layout, &content);
        let command = match by_sgl {
            true => sgl(&mut self.random, host, command, &flight.layout, lists),
            false => prps(host, command, &flight.layout, lists),
        };
        self.send(flight, command);
    }

    fn send(&mut self, flight: Flight, command: Command) {
        self.busy[flight.slot] += 1;
        let queue = flight.queue;
        let cid = self.host().submit(queue, command);
        assert!(self.flights.insert(cid, flight).is_none(), "identifiers are not used twice");
    }

    /// Takes what completed.
    fn take(&mut self) {
        for queue in 0..self.host().queues.len() {
            while let Some(completion) = self.host().poll(queue) {
                self.completed(queue, completion);
            }
        }
        self.step();
    }

    fn completed(&mut self, queue: usize, completion: Completion) {
        let flight = self.flights.remove(&completion.cid);
        let Some(flight) = flight else { panic!("{completion:?} answers no command in flight") };
        assert_eq!(
            (flight.queue, completion.sqid.0 as usize),
            (queue, queue + 1),
            "{completion:?}"
        );
        self.busy[flight.slot] -= 1;
        let status = completion.status();
        if std::env::var_os("VIREO_TRACE").is_some() {
            eprintln!("{flight:?}: {status}");
        }
        self.check_status(&flight, status);
        let Flight { first, count, .. } = flight;
        match flight.kind {
            Kind::Read if status.is_success() => {
                let data = gather(self.host(), &flight.layout);
                self.model.read(first, &data);
            }
            Kind::Write(stamps) if status.is_success() => self.model.wrote(first, &stamps),
            Kind::FusedWrite(stamps) if status.is_success() => self.model.wrote(first, &stamps),
            Kind::FusedWrite(_) if status.code() == Status::ABORTED_FAILED_FUSED => {}
            Kind::Write(stamps) | Kind::FusedWrite(stamps) => {
                self.model.may_have_written(first, &stamps);
            }
            Kind::Zero if status.is_success() => self.model.wrote(first, &vec![0; count]),
            Kind::Zero => self.model.may_have_written(first, &vec![0; count]),
            Kind::Copy { from } => match self.model.certain(from, count) {
                Some(stamps) if status.is_success() => self.model.wrote(first, &stamps),
                // What was copied is not known: each source block's possibilities.
                _ => self.model.may_have_copied(from, first, count),
            },
            Kind::Read | Kind::Compare { .. } | Kind::FusedCompare { .. } | Kind::Harmless => {}
        }
    }

    /// A status must have a reason.
    fn check_status(&self, flight: &Flight, status: Status) {
        let compare_failed = status.code() == Status::COMPARE_FAILURE;
        match flight.kind {
            Kind::Compare { equal } | Kind::FusedCompare { equal } if !equal => {
                assert!(!status.is_success(), "unequal data compares equal: {flight:?}");
                if compare_failed {
                    return;
                }
            }
            Kind::FusedWrite(_) if status.code() == Status::ABORTED_FAILED_FUSED => return,
            _ => {}
        }
        assert!(!compare_failed, "equal data compares unequal: {flight:?}");
        let excused = self.troubles.faults || self.troubles.unmaps || self.troubles.deaths;
        assert!(status.is_success() || excused, "{flight:?}: {status}");
    }

    fn trouble(&mut self) {
        let Troubles { resets, unmaps, deaths, disconnects, .. } = self.troubles;
        match self.random.in_range(0..40) {
            0..3 if resets => self.reset(),
            3..9 if unmaps => self.unmap(),
            9 if deaths => self.kill_worker(),
            10 if disconnects => self.leave(),
            _ => {}
        }
    }

    /// Resets in one of the ways. What was in flight is over, one way or the other.
    fn reset(&mut self) {
        match self.random.in_range(0..2) {
            0 => self.host().disable(),
            _ => self.host().transport.reset(),
        }
        self.forget_flights();
        if self.random.one_in(2) {
            self.nothing_is_late();
        }
        self.enable();
    }

    fn kill_worker(&mut self) {
        self.world.get().kill_worker();
        self.broken = true;
        let failed =
            self.host().wait("CSTS.CFS or an idle controller", |host| Some(host.csts().cfs()));
        assert!(failed, "a controller whose queues' worker died has failed");
        self.reset();
    }

    fn leave(&mut self) {
        let host = self.host.take().expect("a host");
        let memory = host.memory;
        host.transport.disconnect();
        self.forget_flights();
        // Nobody writes to the memory of a client that is gone.
        memory.fill(memory.whole(), 0xA5);
        (0..200).for_each(|_| self.world.get().step());
        let untouched =
            memory.read(memory.base(), memory.len() as usize).iter().all(|&b| b == 0xA5);
        assert!(untouched, "memory of a client that is gone was written");
        self.come();
    }

    /// Takes a slot's memory back, with commands in flight to it: when the reply is there nobody touches it.
    fn unmap(&mut self) {
        let slot = self.random.in_range(0..SLOTS as u64) as usize;
        let part = self.slots[slot];
        self.host().transport.unmap(part);
        self.host().memory.fill(part, 0xA5);
        (0..100).for_each(|_| self.step());
        let host = self.host();
        let bytes = host.memory.read(part.iova, part.len as usize);
        assert!(bytes.iter().all(|&byte| byte == 0xA5), "memory was written after its unmap");
        let (memory, transport) = (&host.memory, &mut host.transport);
        transport.map(memory, part);
        // Reads in flight to it have lost their data, whatever they report.
        for flight in self.flights.values_mut().filter(|flight| flight.slot == slot) {
            if let Kind::Read = flight.kind {
                flight.kind = Kind::Harmless;
            }
        }
    }

    /// After a reset the device changes no more: two looks are the same.
    fn nothing_is_late(&mut self) {
        self.enable();
        let slot = self.random.in_range(0..SLOTS as u64) as usize;
        self.read_zone(slot);
        (0..200).for_each(|_| self.step());
        self.read_zone(slot);
    }

    fn read_zone(&mut self, slot: usize) {
        for _ in 0..50 {
            let read = self.host().read(NSID, Lba((slot * ZONE) as u64), ZONE as u32, BLOCK as u64);
            match read {
                Ok(data) => return self.model.read(slot * ZONE, &data),
                Err(status) => assert!(self.troubles.faults, "{status}"),
            }
        }
        panic!("fifty reads in a row fail");
    }

    fn forget_flights(&mut self) {
        for (_, flight) in std::mem::take(&mut self.flights) {
            let Flight { first, count, .. } = flight;
            match flight.kind {
                Kind::Write(stamps) | Kind::FusedWrite(stamps) => {
                    self.model.may_have_written(first, &stamps);
                }
                Kind::Zero => self.model.may_have_written(first, &vec![0; count]),
                Kind::Copy { from } => self.model.may_have_copied(from, first, count),
                _ => {}
            }
        }
        self.busy = [0; SLOTS];
    }

    /// Waits for everything in flight.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            if self.flights.is_empty() {
                return;
            }
            self.take();
        }
        let csts = self.host().csts();
        let world = self.world.get();
        let failure =
            world.queues(0).acknowledged.failure.load(std::sync::atomic::Ordering::Relaxed);
        panic!("commands are lost, {csts:?}, failure {failure}: {:?}", self.flights);
    }
}
