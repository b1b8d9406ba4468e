//! The commands of a run.

use super::{Flight, Kind, NSID, SLOTS, Scenario, ZONE};
use crate::layout::{DATA_PAGES, prp_layout, prps, scatter, sgl, sgl_layout};
use crate::model::{BLOCK, bytes_of};
use nvme_spec::command::Fuse;
use nvme_spec::nvm::{CopyRange, DatasetDword11, DatasetRange};
use nvme_spec::{Command, CommandId, Iova, Lba, NvmOpcode};
use vireo_tests::host::commands;
use vireo_tests::host::memory::PAGE;
use zerocopy::IntoBytes;

impl Scenario {
    /// Sends one command, or a fused pair, of a slot that is free.
    pub(super) fn start(&mut self) {
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
}
