//! One request to a file, step by step: each step is one operation of the engine, and its result leads to the next. No
//! I/O here.

use super::buffer::{Buffers, MAX_IOVECS, OwnBuffer, Piece, cut, equal, gather, scatter};
use super::engine::Command;
use crate::request::{ErrorKind, Op, Outcome, Request};
use ipc::guest_memory::{Access, RegionTable};
use nix::errno::Errno;
use std::collections::VecDeque;

/// Most bytes that pass through a buffer of ours in one step.
const CHUNK: u64 = 1 << 20;
/// How often one request is tried again after EINTR or EAGAIN; then it ends with [`ErrorKind::Busy`].
const MAX_RETRIES: u32 = 1000;

/// A request under way.
#[derive(Debug)]
pub struct Job {
    /// The caller's tag.
    pub tag: u32,
    /// What it asks for.
    pub op: Op,
    fua: bool,
    offset: u64,
    length: u64,
    source: u64,
    /// The request's memory, in order.
    pieces: Vec<Piece>,
    /// Data goes through a buffer of ours because the file's alignment asks for it.
    bounce: bool,
    /// Smallest unit of transfer; 1 if the file has none.
    unit: u64,
    phase: Phase,
    /// Phases still to come.
    later: VecDeque<Phase>,
    /// How often the kernel may still say "again".
    retries: u32,
}

/// What a job is at. `done`: bytes of the request that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Read {
        done: u64,
    },
    Write {
        done: u64,
    },
    Compare {
        done: u64,
    },
    Verify {
        done: u64,
    },
    /// Zeroes by fallocate, in this mode; the next phase writes them if that is not supported.
    Allocate {
        mode: i32,
    },
    WriteZeroes {
        done: u64,
    },
    /// The chunk of `len` bytes at `start` of the request was read up to `done`.
    CopyRead {
        start: u64,
        len: u64,
        done: u64,
    },
    CopyWrite {
        start: u64,
        len: u64,
        done: u64,
    },
    Sync,
    Finished,
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Have the kernel do this.
    Run(Command, Buffers),
    /// The job is over.
    End(Outcome),
}

impl Job {
    /// The job of a request whose device ranges are in order. `unit` and `memory_align`: what the file asks for (1 and
    /// 1 if nothing).
    ///
    /// # Errors
    /// [`ErrorKind::Fault`] for memory that is not there, [`ErrorKind::Invalid`] for offsets that are not multiples of
    /// the unit or memory that does not add up.
    pub fn new(
        request: &Request<'_>,
        memory: &RegionTable,
        unit: u64,
        memory_align: u64,
    ) -> Result<Self, ErrorKind> {
        request.check_memory()?;
        let aligned = |value: u64| value.is_multiple_of(unit);
        let placed = request.op == Op::Flush
            || aligned(request.offset) && aligned(request.length) && aligned(request.source);
        if !placed {
            return Err(ErrorKind::Invalid);
        }
        let access = if request.op == Op::Read { Access::WRITE } else { Access::READ };
        let piece = |range: &ipc::guest_memory::MemRange| {
            let region = memory.get(range.region)?;
            Piece::new(region, range.offset, u64::from(range.len), access)
        };
        let pieces: Option<Vec<Piece>> = request.ranges.iter().map(piece).collect();
        let pieces = pieces.ok_or(ErrorKind::Fault)?;
        let fits = |piece: &Piece| {
            let address = piece.slice().map_or(0, |slice| slice.as_ptr().addr() as u64);
            aligned(piece.len()) && address.is_multiple_of(memory_align)
        };
        let bounce = !pieces.iter().all(fits);
        let mut later = phases(request);
        let phase = later.pop_front().unwrap_or(Phase::Finished);
        Ok(Self {
            tag: request.tag,
            op: request.op,
            fua: request.fua,
            offset: request.offset,
            length: request.length,
            source: request.source,
            pieces,
            bounce,
            unit,
            phase,
            later,
            retries: MAX_RETRIES,
        })
    }

    /// Whether both change the device at a common place, and one of them must not be disturbed.
    pub fn excludes(&self, other: &Self) -> bool {
        let fused = self.op == Op::CompareAndWrite || other.op == Op::CompareAndWrite;
        let overlap = self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length);
        fused && overlap && self.op.writes() && other.op.writes()
    }

    /// The next step. A buffer that the last one left is used again.
    pub fn step(&mut self, spare: Option<OwnBuffer>) -> Step {
        loop {
            match self.phase {
                Phase::Finished => return Step::End(self.memory_outcome()),
                Phase::Read { done }
                | Phase::Compare { done }
                | Phase::Verify { done }
                | Phase::Write { done }
                | Phase::WriteZeroes { done }
                    if done >= self.length => {}
                Phase::Allocate { .. } if self.length == 0 => {}
                Phase::CopyRead { len: 0, .. } => {}
                _ => {
                    let (command, buffers) = self.operation(spare);
                    return Step::Run(command, buffers);
                }
            }
            self.phase = self.later.pop_front().unwrap_or(Phase::Finished);
        }
    }

    /// Takes a step's result. Returns the outcome if that ends the job, and a buffer that can be used again.
    pub fn take(&mut self, result: i32, buffers: Buffers) -> (Option<Outcome>, Option<OwnBuffer>) {
        let outcome = match u64::try_from(result) {
            Ok(count) => self.advance(count, &buffers).err().map(Err),
            Err(_) => self.refuse(Errno::from_raw(result.saturating_neg())),
        };
        let spare = match buffers {
            Buffers::Own(buffer) => Some(buffer),
            Buffers::Guest(_) | Buffers::None => None,
        };
        (outcome, spare)
    }

    fn operation(&self, spare: Option<OwnBuffer>) -> (Command, Buffers) {
        let own = |len: u64| {
            let len = len.min(CHUNK) as usize;
            let spare = spare.filter(|buffer| buffer.len() >= len);
            let mut buffer = spare.unwrap_or_else(|| OwnBuffer::new(len));
            buffer.window = 0..len;
            buffer
        };
        let left = |done: u64| self.length - done;
        match self.phase {
            Phase::Read { done } => {
                let command = Command::Read { offset: self.offset + done };
                let direct = || cut(&self.pieces, done, left(done), MAX_IOVECS);
                let buffers = if self.bounce {
                    Buffers::Own(own(left(done)))
                } else {
                    Buffers::Guest(direct())
                };
                (command, buffers)
            }
            Phase::Write { done } => {
                let durable = self.fua;
                let command = Command::Write { offset: self.offset + done, durable };
                let position = self.written_from() + done;
                if !self.bounce {
                    let parts = cut(&self.pieces, position, left(done), MAX_IOVECS);
                    return (command, Buffers::Guest(parts));
                }
                let mut buffer = own(left(done));
                let len = buffer.window.len() as u64;
                gather(&cut(&self.pieces, position, len, usize::MAX), buffer.window_mut());
                (command, Buffers::Own(buffer))
            }
            Phase::Compare { done } | Phase::Verify { done } => {
                (Command::Read { offset: self.offset + done }, Buffers::Own(own(left(done))))
            }
            Phase::Allocate { mode } => {
                let command = Command::Allocate { offset: self.offset, len: self.length, mode };
                (command, Buffers::None)
            }
            Phase::WriteZeroes { done } => {
                let mut buffer = own(left(done));
                buffer.window_mut().fill(0);
                let command = Command::Write { offset: self.offset + done, durable: self.fua };
                (command, Buffers::Own(buffer))
            }
            Phase::CopyRead { start, len, done } => {
                let mut buffer = own(len);
                buffer.window = done as usize..len as usize;
                (Command::Read { offset: self.source + start + done }, Buffers::Own(buffer))
            }
            Phase::CopyWrite { start, len, done } => {
                // The buffer is the one that the read filled: `take` gave it back, `step` hands it in.
                let mut buffer = own(len);
                buffer.window = done as usize..len as usize;
                let command =
                    Command::Write { offset: self.offset + start + done, durable: self.fua };
                (command, Buffers::Own(buffer))
            }
            Phase::Sync | Phase::Finished => (Command::Sync, Buffers::None),
        }
    }

    /// Where in the request's memory the data to be written starts.
    fn written_from(&self) -> u64 {
        if self.op == Op::CompareAndWrite { self.length } else { 0 }
    }

    fn advance(&mut self, count: u64, buffers: &Buffers) -> Result<(), ErrorKind> {
        // A short transfer ends on a unit, or its last part is done again.
        let whole = count - count % self.unit;
        let moved = || if whole == 0 { Err(ErrorKind::Medium) } else { Ok(whole) };
        let bytes = |len: u64| match buffers {
            Buffers::Own(buffer) => buffer.bytes().get(..len as usize).ok_or(ErrorKind::Internal),
            Buffers::Guest(_) | Buffers::None => Err(ErrorKind::Internal),
        };
        match &mut self.phase {
            Phase::Read { done } => {
                let moved = moved()?;
                if self.bounce {
                    scatter(&cut(&self.pieces, *done, moved, usize::MAX), bytes(moved)?);
                }
                *done += moved;
            }
            Phase::Compare { done } => {
                let moved = moved()?;
                let parts = cut(&self.pieces, *done, moved, usize::MAX);
                if !equal(&parts, bytes(moved)?) {
                    return Err(ErrorKind::CompareFailed);
                }
                *done += moved;
            }
            Phase::Write { done } | Phase::Verify { done } | Phase::WriteZeroes { done } => {
                *done += moved()?;
            }
            Phase::CopyRead { start, len, done } => {
                *done += moved()?;
                if done >= len {
                    self.phase = Phase::CopyWrite { start: *start, len: *len, done: 0 };
                }
            }
            Phase::CopyWrite { start, len, done } => {
                *done += moved()?;
                if done >= len {
                    let start = *start;
                    self.phase = self.next_chunk(start);
                }
            }
            Phase::Allocate { .. } => {
                // Done; the phases that would have done it otherwise are not needed.
                self.later.retain(|phase| *phase == Phase::Sync);
                self.phase = self.later.pop_front().unwrap_or(Phase::Finished);
            }
            Phase::Sync | Phase::Finished => self.phase = Phase::Finished,
        }
        Ok(())
    }

    /// The chunk after the one at `start`: upwards, or downwards where the source lies below an overlapping
    /// destination, so that nothing is overwritten before it was read.
    fn next_chunk(&self, start: u64) -> Phase {
        let (start, len) = if copies_down(self.source, self.offset, self.length) {
            let len = start.min(CHUNK);
            (start - len, len)
        } else {
            let start = start + CHUNK.min(self.length - start);
            (start, CHUNK.min(self.length - start))
        };
        Phase::CopyRead { start, len, done: 0 }
    }

    fn refuse(&mut self, errno: Errno) -> Option<Outcome> {
        match (errno, self.phase) {
            (Errno::EINTR | Errno::EAGAIN, _) if self.retries > 0 => {
                self.retries -= 1;
                None
            }
            (Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL, Phase::Allocate { .. }) => {
                self.phase = self.later.pop_front().unwrap_or(Phase::Finished);
                None
            }
            (errno, _) => Some(Err(ErrorKind::from_errno(errno))),
        }
    }

    /// Copies through memory of ours see zeroes where the guest's was gone.
    fn memory_outcome(&self) -> Outcome {
        if self.pieces.iter().any(Piece::failed) { Err(ErrorKind::Fault) } else { Ok(()) }
    }
}

/// Whether the destination lies above the source and overlaps it.
fn copies_down(source: u64, offset: u64, length: u64) -> bool {
    source < offset && offset < source.saturating_add(length)
}

fn phases(request: &Request<'_>) -> VecDeque<Phase> {
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let zero = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let mut phases = VecDeque::with_capacity(4);
    match request.op {
        Op::Read => phases.push_back(Phase::Read { done: 0 }),
        Op::Write => phases.push_back(Phase::Write { done: 0 }),
        Op::Flush => phases.push_back(Phase::Sync),
        Op::Compare => phases.push_back(Phase::Compare { done: 0 }),
        Op::CompareAndWrite => {
            phases.extend([Phase::Compare { done: 0 }, Phase::Write { done: 0 }]);
        }
        Op::Verify => phases.push_back(Phase::Verify { done: 0 }),
        Op::WriteZeroes | Op::Deallocate => {
            if request.deallocate || request.op == Op::Deallocate {
                phases.push_back(Phase::Allocate { mode: punch });
            }
            phases.extend([Phase::Allocate { mode: zero }, Phase::WriteZeroes { done: 0 }]);
        }
        Op::Copy => {
            let len = request.length.min(CHUNK);
            let down = copies_down(request.source, request.offset, request.length);
            let start = if down { request.length - len } else { 0 };
            phases.push_back(Phase::CopyRead { start, len, done: 0 });
        }
    }
    // Write and CompareAndWrite carry RWF_DSYNC with each write; fallocate has no such flag.
    let allocates = matches!(request.op, Op::WriteZeroes | Op::Deallocate);
    if request.fua && allocates {
        phases.push_back(Phase::Sync);
    }
    phases
}
