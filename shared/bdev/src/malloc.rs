//! The memory device: a sealed memfd, copied from and to by whoever holds it. On the hot path: one memcpy per memory
//! range.
//!
//! Two kinds of holder. The *owner* is the backend, which serves rings from it and runs fused pairs. A *lease* is a
//! worker's; each of its writes passes the write gate ([`ipc::device_memory`]), and what must be done in one place or
//! takes a system call (fused pairs, deallocation, writes while a fused pair runs, blocks that were added after the
//! mapping) goes by the ring beside it.
//!
//! Flush and FUA have nothing to do: memory is as durable as it gets once it is written. Compare and Verify read. A
//! deallocated range is punched out of the memfd and reads as zeroes.

use crate::channel::{Channel, Geometry, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Op, Outcome, Request};
use ipc::device_memory::{DeviceMemory, WriterGate};
use ipc::guest_memory::{Access, HostSlice, RegionTable};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most fused pairs that wait for leased writers to leave; one ring's depth for each of some rings.
const MAX_EXCLUSIVE: usize = 4096;
/// Cache lines prefetched at the front of each side of the next copy; the processor's own prefetcher follows on.
const PREFETCH_BYTES: usize = 4096;

/// A channel of a memory device.
pub struct MallocChannel {
    memory: Arc<DeviceMemory>,
    read_only: bool,
    holder: Holder,
}

enum Holder {
    Owner(Owner),
    Lease(WriterGate),
}

/// The backend's side: fused pairs that wait for leased writers.
struct Owner {
    /// Leases granted so far at most, shared with whoever grants them.
    leases: Arc<AtomicUsize>,
    waiting: VecDeque<Fused>,
}

/// A fused pair that waits.
struct Fused {
    tag: u32,
    pair: Pair,
}

/// A fused pair with a copy of its data: first what is compared, then what is written.
struct Pair {
    offset: u64,
    data: Vec<u8>,
}

impl MallocChannel {
    /// The owner's channel, of which there is one. `leases`: an upper bound of the lease numbers granted, raised before
    /// one is handed out.
    pub fn owner(memory: Arc<DeviceMemory>, read_only: bool, leases: Arc<AtomicUsize>) -> Self {
        memory.own_gate();
        let owner = Owner { leases, waiting: VecDeque::new() };
        Self { memory, read_only, holder: Holder::Owner(owner) }
    }

    /// A leased channel with its lease number.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if there is no such lease.
    pub fn lease(memory: Arc<DeviceMemory>, read_only: bool, number: usize) -> Result<Self, Error> {
        let gate = WriterGate::new(&memory, number)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("lease number {number}")))?;
        Ok(Self { memory, read_only, holder: Holder::Lease(gate) })
    }

    /// Takes a larger mapping of the same memory.
    pub fn replace(&mut self, memory: Arc<DeviceMemory>) {
        self.memory = memory;
    }

    fn write(&mut self, request: &Request<'_>, table: &RegionTable) -> Submitted {
        let Self { memory, holder, .. } = self;
        match holder {
            Holder::Owner(_) => Submitted::Done(modify(memory, request, table)),
            Holder::Lease(gate) => {
                if !gate.enter(memory) {
                    return Submitted::Done(Err(ErrorKind::Busy));
                }
                let outcome = modify(memory, request, table);
                gate.leave(memory);
                Submitted::Done(outcome)
            }
        }
    }

    fn fused(&mut self, request: &Request<'_>, table: &RegionTable) -> Submitted {
        let Holder::Owner(owner) = &mut self.holder else {
            return Submitted::Done(Err(ErrorKind::Unsupported));
        };
        if owner.waiting.len() >= MAX_EXCLUSIVE {
            return Submitted::Full;
        }
        let pair = match Pair::copy(request, table) {
            Ok(pair) => pair,
            Err(kind) => return Submitted::Done(Err(kind)),
        };
        self.memory.begin_exclusive();
        // Acquire: pairs with the Release of the granting thread.
        if owner.waiting.is_empty()
            && !self.memory.writers_inside(owner.leases.load(Ordering::Acquire))
        {
            let outcome = pair.run(&self.memory);
            self.memory.end_exclusive();
            return Submitted::Done(outcome);
        }
        owner.waiting.push_back(Fused { tag: request.tag, pair });
        Submitted::Pending
    }
}

impl Pair {
    fn copy(request: &Request<'_>, table: &RegionTable) -> Result<Self, ErrorKind> {
        request.check_memory()?;
        let held = usize::try_from(2 * request.length).map_err(|_| ErrorKind::Invalid)?;
        let mut data = vec![0; held];
        let mut rest = data.as_mut_slice();
        for range in request.ranges {
            let guest = table.host(*range, Access::READ).ok_or(ErrorKind::Fault)?;
            let (part, after) =
                rest.split_at_mut_checked(range.len as usize).ok_or(ErrorKind::Invalid)?;
            guest.copy_to(part);
            rest = after;
        }
        Ok(Self { offset: request.offset, data })
    }

    /// Compares and, if that finds no difference, writes; nobody else writes meanwhile.
    fn run(&self, memory: &DeviceMemory) -> Outcome {
        let (expected, new) = self.data.split_at(self.data.len() / 2);
        let device = memory.slice(self.offset, new.len() as u64).ok_or(ErrorKind::OutOfRange)?;
        if !device.compare(expected) {
            return Err(ErrorKind::CompareFailed);
        }
        device.copy_from(new);
        Ok(())
    }
}

impl Channel for MallocChannel {
    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry { size: self.memory.size(), read_only: self.read_only }
    }

    #[inline]
    fn submit(&mut self, request: &Request<'_>, table: &RegionTable, _now: u64) -> Submitted {
        if let Err(kind) = request.check_bounds(self.memory.size()) {
            return Submitted::Done(Err(kind));
        }
        if request.op == Op::Read {
            return Submitted::Done(read(&self.memory, request, table));
        }
        if self.read_only && request.op.writes() {
            return Submitted::Done(Err(ErrorKind::ReadOnly));
        }
        match request.op {
            Op::Read | Op::Flush | Op::Verify => Submitted::Done(Ok(())),
            Op::Compare => Submitted::Done(compare(&self.memory, request, table)),
            Op::CompareAndWrite => self.fused(request, table),
            Op::Write | Op::WriteZeroes | Op::Deallocate | Op::Copy => self.write(request, table),
        }
    }

    fn poll(&mut self, _now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let Holder::Owner(owner) = &mut self.holder else { return 0 };
        if owner.waiting.is_empty()
            || self.memory.writers_inside(owner.leases.load(Ordering::Acquire))
        {
            return 0;
        }
        let count = owner.waiting.len();
        for Fused { tag, pair } in owner.waiting.drain(..) {
            let outcome = pair.run(&self.memory);
            self.memory.end_exclusive();
            complete(tag, outcome);
        }
        count
    }

    #[inline]
    fn outstanding(&self) -> usize {
        match &self.holder {
            Holder::Owner(owner) => owner.waiting.len(),
            Holder::Lease(_) => 0,
        }
    }

    fn deadline(&self) -> Option<u64> {
        (self.outstanding() > 0).then_some(0)
    }

    #[inline]
    fn prefetch(&self, request: &Request<'_>, table: &RegionTable) {
        let Some(first) = request.ranges.first() else { return };
        let length = u64::from(first.len).min(PREFETCH_BYTES as u64);
        if let Some(data) = self.memory.slice(request.offset, length) {
            data.prefetch();
        }
        let _ = table;
    }
}

/// Walks the request's ranges beside the device's bytes.
#[inline]
fn each_range<'a>(
    memory: &'a DeviceMemory,
    request: &Request<'_>,
    table: &'a RegionTable,
    access: Access,
    mut act: impl FnMut(HostSlice<'a>, HostSlice<'a>) -> Outcome,
) -> Outcome {
    let mut position = request.offset;
    for range in request.ranges {
        let guest = table.host(*range, access).ok_or(ErrorKind::Fault)?;
        let data = memory.slice(position, u64::from(range.len)).ok_or(ErrorKind::OutOfRange)?;
        act(data, guest)?;
        position += u64::from(range.len);
    }
    Ok(())
}

#[inline]
fn read(memory: &DeviceMemory, request: &Request<'_>, table: &RegionTable) -> Outcome {
    each_range(memory, request, table, Access::WRITE, |data, guest| {
        guest.copy_from_slice(&data);
        Ok(())
    })
}

fn compare(memory: &DeviceMemory, request: &Request<'_>, table: &RegionTable) -> Outcome {
    each_range(memory, request, table, Access::READ, |data, guest| {
        if data.compare_slice(&guest) { Ok(()) } else { Err(ErrorKind::CompareFailed) }
    })
}

fn modify(memory: &DeviceMemory, request: &Request<'_>, table: &RegionTable) -> Outcome {
    let device = |offset, length| memory.slice(offset, length).ok_or(ErrorKind::OutOfRange);
    match request.op {
        Op::Write => each_range(memory, request, table, Access::READ, |data, guest| {
            data.copy_from_slice(&guest);
            Ok(())
        }),
        Op::Copy => {
            let source = device(request.source, request.length)?;
            device(request.offset, request.length)?.copy_from_slice(&source);
            Ok(())
        }
        Op::WriteZeroes if !request.deallocate => {
            device(request.offset, request.length)?.fill(0);
            Ok(())
        }
        Op::WriteZeroes | Op::Deallocate => {
            memory.punch(request.offset, request.length).map_err(|_| ErrorKind::Internal)
        }
        Op::Read | Op::Flush | Op::Compare | Op::CompareAndWrite | Op::Verify => {
            Err(ErrorKind::Unsupported)
        }
    }
}
