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

use crate::channel::{Channel, Geometry, Need, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Op, Outcome, Request};
use crate::ring::client::RingChannel;
use ipc::device_memory::{DeviceMemory, WriterGate};
use ipc::guest_memory::{Access, HostSlice, MemRange, RegionTable};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most fused pairs that wait for leased writers to leave; one ring's depth for each of some rings.
const MAX_EXCLUSIVE: usize = 4096;
/// Most bytes that are loaded ahead; the processor's own prefetcher follows on.
const LOAD_BYTES: u64 = 4096;

/// Most bytes that a lease fills or copies within the device itself: as long as a large transfer takes.
const LONGEST_FILL: u64 = 1 << 20;

/// A channel of a memory device.
pub struct MallocChannel {
    memory: Arc<DeviceMemory>,
    read_only: bool,
    holder: Holder,
    ahead: Ahead,
}

/// What is loaded while a request is copied. A processor has room for some twenty lines that are on their way, and one
/// that waits for the translation of an address asks for none. So half of the next request's data is asked for before
/// this one is looked at, the rest before the copy, and where the one after that lies is found at the copy's end, when
/// all these are under way.
#[derive(Default)]
struct Ahead {
    /// The rest of the next request's data: offset and length.
    next: Option<(u64, u64)>,
    /// The one after that: its offset and its first range.
    later: Option<(u64, Option<MemRange>)>,
}

enum Holder {
    Owner(Owner),
    Lease(Lease),
}

/// A worker's side.
struct Lease {
    gate: WriterGate,
    ring: Option<Box<RingChannel>>,
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
        Self { memory, read_only, holder: Holder::Owner(owner), ahead: Ahead::default() }
    }

    /// A leased channel with its lease number and the ring beside it. Without a ring, fused pairs are not supported,
    /// and a write ends with [`ErrorKind::Busy`] while one runs.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if there is no such lease.
    pub fn lease(
        memory: Arc<DeviceMemory>,
        read_only: bool,
        number: usize,
        ring: Option<RingChannel>,
    ) -> Result<Self, Error> {
        let gate = WriterGate::new(&memory, number)
            .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("lease number {number}")))?;
        let lease = Lease { gate, ring: ring.map(Box::new) };
        Ok(Self { memory, read_only, holder: Holder::Lease(lease), ahead: Ahead::default() })
    }

    /// Takes a larger mapping of the same memory.
    pub fn replace(&mut self, memory: Arc<DeviceMemory>) {
        self.memory = memory;
    }

    /// The lease's ring, if it has one.
    pub fn ring_mut(&mut self) -> Option<&mut RingChannel> {
        match &mut self.holder {
            Holder::Owner(_) => None,
            Holder::Lease(lease) => lease.ring.as_deref_mut(),
        }
    }

    /// Outstanding requests that went by the ring.
    pub fn with_backend(&self) -> usize {
        match &self.holder {
            Holder::Owner(_) => 0,
            Holder::Lease(lease) => lease.ring.as_ref().map_or(0, |ring| ring.outstanding()),
        }
    }

    /// What the lease does not do itself.
    #[cold]
    fn by_ring(
        &mut self,
        request: &Request<'_>,
        table: &RegionTable,
        now: u64,
        otherwise: ErrorKind,
    ) -> Submitted {
        match self.ring_mut() {
            Some(ring) => ring.submit(request, table, now),
            None => Submitted::Done(Err(otherwise)),
        }
    }

    #[inline]
    fn write(&mut self, request: &Request<'_>, table: &RegionTable, now: u64) -> Submitted {
        let Holder::Lease(lease) = &self.holder else {
            return Submitted::Done(modify(&self.memory, request, table));
        };
        if lease.ring.is_some() && takes_long(request) {
            return self.by_ring(request, table, now, ErrorKind::Unsupported);
        }
        if !lease.gate.enter(&self.memory) {
            return self.by_ring(request, table, now, ErrorKind::Busy);
        }
        let outcome = modify(&self.memory, request, table);
        lease.gate.leave(&self.memory);
        Submitted::Done(outcome)
    }

    fn fused(&mut self, request: &Request<'_>, table: &RegionTable, now: u64) -> Submitted {
        let Holder::Owner(owner) = &mut self.holder else {
            return self.by_ring(request, table, now, ErrorKind::Unsupported);
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

impl Owner {
    fn poll(&mut self, memory: &DeviceMemory, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        if self.waiting.is_empty() || memory.writers_inside(self.leases.load(Ordering::Acquire)) {
            return 0;
        }
        let count = self.waiting.len();
        for Fused { tag, pair } in self.waiting.drain(..) {
            let outcome = pair.run(memory);
            memory.end_exclusive();
            complete(tag, outcome);
        }
        count
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
    fn submit(&mut self, request: &Request<'_>, table: &RegionTable, now: u64) -> Submitted {
        if let Err(kind) = request.check_bounds(self.memory.size()) {
            // The device may have grown since it was mapped; the backend knows.
            return self.by_ring(request, table, now, kind);
        }
        if request.op == Op::Read {
            return Submitted::Done(read(&self.memory, request, table, &mut self.ahead));
        }
        if self.read_only && request.op.writes() {
            return Submitted::Done(Err(ErrorKind::ReadOnly));
        }
        match request.op {
            Op::Read | Op::Flush | Op::Verify => Submitted::Done(Ok(())),
            Op::Compare => Submitted::Done(compare(&self.memory, request, table)),
            Op::CompareAndWrite => self.fused(request, table, now),
            Op::Write | Op::WriteZeroes | Op::Deallocate | Op::Copy => {
                self.write(request, table, now)
            }
        }
    }

    #[inline]
    fn publish(&mut self) {
        if let Some(ring) = self.ring_mut() {
            ring.publish();
        }
    }

    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        match &mut self.holder {
            Holder::Owner(owner) => owner.poll(&self.memory, complete),
            Holder::Lease(Lease { ring: Some(ring), .. }) => ring.poll(now, complete),
            Holder::Lease(_) => 0,
        }
    }

    #[inline]
    fn outstanding(&self) -> usize {
        match &self.holder {
            Holder::Owner(owner) => owner.waiting.len(),
            Holder::Lease(lease) => lease.ring.as_ref().map_or(0, |ring| ring.outstanding()),
        }
    }

    fn deadline(&self) -> Option<u64> {
        match &self.holder {
            // Nobody signals when the last leased writer leaves.
            Holder::Owner(owner) if !owner.waiting.is_empty() => Some(0),
            Holder::Owner(_) | Holder::Lease(_) => None,
        }
    }

    fn park(&mut self) -> bool {
        self.ring_mut().is_none_or(|ring| ring.park())
    }

    fn unpark(&mut self) {
        if let Some(ring) = self.ring_mut() {
            ring.unpark();
        }
    }

    fn is_gone(&self) -> bool {
        match &self.holder {
            Holder::Owner(_) => false,
            Holder::Lease(lease) => lease.ring.as_ref().is_some_and(|ring| ring.is_gone()),
        }
    }

    #[inline]
    fn copies(&self) -> bool {
        true
    }

    #[inline]
    fn load(&mut self, request: &Request<'_>, _table: &RegionTable, need: Need) {
        if request.op.memory_factor() == 0 {
            return;
        }
        let length = request.length.min(LOAD_BYTES);
        match need {
            Need::Later => {
                self.ahead.later = Some((request.offset, request.ranges.first().copied()));
            }
            Need::Next => {
                let (first, rest) = (length / 2, length - length / 2);
                prefetch(&self.memory, request.offset, first);
                self.ahead.next = Some((request.offset + first, rest));
            }
            Need::Now => {
                if let Some(data) = self.memory.slice(request.offset, length) {
                    data.prefetch();
                }
            }
        }
    }
}

/// Whether a request belongs into the backend for its length or its system call.
#[inline]
fn takes_long(request: &Request<'_>) -> bool {
    match request.op {
        Op::Deallocate => true,
        Op::WriteZeroes => request.deallocate || request.length > LONGEST_FILL,
        Op::Copy => request.length > LONGEST_FILL,
        Op::Read | Op::Write | Op::Flush | Op::Compare | Op::CompareAndWrite | Op::Verify => false,
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
fn read(
    memory: &DeviceMemory,
    request: &Request<'_>,
    table: &RegionTable,
    ahead: &mut Ahead,
) -> Outcome {
    if let Some((offset, length)) = ahead.next.take() {
        prefetch(memory, offset, length);
    }
    each_range(memory, request, table, Access::WRITE, |data, guest| {
        guest.copy_from_slice(&data);
        Ok(())
    })?;
    if let Some((offset, range)) = ahead.later.take() {
        let guest = range.and_then(|range| table.host(range, Access::READ));
        memory.slice(offset, 1).iter().chain(&guest).for_each(HostSlice::prefetch_first);
    }
    Ok(())
}

/// Asks for a part of the device, if there is one.
#[inline]
fn prefetch(memory: &DeviceMemory, offset: u64, length: u64) {
    if let Some(data) = memory.slice(offset, length) {
        data.prefetch_ahead();
    }
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
