//! One worker's handle of a block device. On the hot path: a request to a null or malloc lease is a match and a copy,
//! without allocation, lock or dynamic call.

use crate::fault::FaultChannel;
use crate::file::FileDevice;
use crate::malloc::MallocChannel;
use crate::null::NullChannel;
use crate::nvme::{LeasedDrive, NvmeDevice};
use crate::request::{Outcome, Request};
use crate::ring::client::RingChannel;
use ipc::guest_memory::{Region, RegionTable};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What became of a request that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// It ended at once; [`Channel::poll`] will not mention it.
    Done(Outcome),
    /// [`Channel::poll`] will report its tag exactly once.
    Pending,
    /// No room; nothing has happened. Poll, then submit it again.
    Full,
}

/// What a channel's holder must know of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes.
    pub size: u64,
    /// Requests that change the device end with [`crate::request::ErrorKind::ReadOnly`].
    pub read_only: bool,
}

/// How soon a request will be submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// After the next one.
    Later,
    /// After the one that is submitted now.
    Next,
    /// At once.
    Now,
}

/// A way to a block device for one thread.
///
/// For callers: tags are unique among outstanding requests; `memory` is the table that the request's ranges belong to;
/// `now` is nanoseconds of a monotonic clock and may be as old as the batch. Call [`Channel::publish`]
/// after a batch of submissions, and [`Channel::poll`] while [`Channel::outstanding`] is not 0.
///
/// For implementations: nothing here blocks, allocates per request or panics, whatever the request or a peer holds.
/// Each pending tag is reported exactly once, also when the device dies (with [`crate::request::ErrorKind::Gone`]).
pub trait Channel {
    /// The device's size and mode as this channel knows it.
    fn geometry(&self) -> Geometry;

    /// Starts a request. Its ranges are copied or done with on return; memory that is still to be accessed is kept
    /// mapped by the channel, not by `memory`.
    fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted;

    /// Makes submitted requests visible to whoever serves them, and wakes that one if it sleeps.
    fn publish(&mut self) {}

    /// Reports requests that ended since, and returns how many.
    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize;

    /// Requests that [`Channel::poll`] has yet to report.
    fn outstanding(&self) -> usize;

    /// When a poll will next have something to report, if time alone decides that.
    fn deadline(&self) -> Option<u64> {
        None
    }

    /// Whether the caller's thread copies the data: [`Self::load`] is worth calling.
    #[inline]
    fn copies(&self) -> bool {
        false
    }

    /// Starts to load what a request will copy, so that it arrives while another is copied. A hint.
    #[inline]
    fn load(&mut self, _request: &Request<'_>, _memory: &RegionTable, _need: Need) {}

    /// Before the caller sleeps: from now on completions signal its event. `false`: there are some already, do not
    /// sleep.
    fn park(&mut self) -> bool {
        true
    }

    /// After the caller slept: completions need no signal any more.
    fn unpark(&mut self) {}

    /// A descriptor that is readable when there is something to poll, for channels that have one of their own; of one that
    /// is parked.
    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The region is to be unmapped: a channel that holds on to it beyond the requests that name it lets go of it as
    /// soon as none of them is outstanding.
    fn forget(&mut self, _region: &Arc<Region>) {}

    /// The peer is dead: every outstanding request, and every later one, ends with
    /// [`crate::request::ErrorKind::Gone`].
    fn is_gone(&self) -> bool {
        false
    }
}

/// Every kind of channel, dispatched by a match that inlines.
pub enum AnyChannel {
    /// Lease: nothing behind it.
    Null(NullChannel),
    /// Lease: memory.
    Malloc(MallocChannel),
    /// Ring: a backend serves it.
    Ring(RingChannel),
    /// The backend's own channel of a file.
    File(Box<FileDevice>),
    /// The backend's own channel of a drive.
    Nvme(Box<NvmeDevice>),
    /// Lease: a queue pair of a drive.
    Drive(Box<LeasedDrive>),
    /// Any of them, with faults.
    Fault(FaultChannel),
}

impl AnyChannel {
    /// Whether a backend serves the requests of this channel.
    pub fn is_ring(&self) -> bool {
        match self {
            Self::Ring(_) => true,
            Self::Fault(fault) => fault.inner().is_ring(),
            Self::Null(_) | Self::Malloc(_) | Self::Drive(_) => false,
            Self::File(_) | Self::Nvme(_) => false,
        }
    }

    /// Outstanding requests that a backend serves: those of a ring, or of the ring beside a lease.
    pub fn with_backend(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.outstanding(),
            Self::Malloc(memory) => memory.with_backend(),
            Self::Drive(drive) => drive.with_backend(),
            Self::Fault(fault) => fault.inner().with_backend(),
            Self::Null(_) | Self::File(_) | Self::Nvme(_) => 0,
        }
    }
}

macro_rules! dispatch {
    ($self:ident, $channel:ident => $call:expr) => {
        match $self {
            AnyChannel::Null($channel) => $call,
            AnyChannel::Malloc($channel) => $call,
            AnyChannel::Ring($channel) => $call,
            AnyChannel::File($channel) => $call,
            AnyChannel::Nvme($channel) => $call,
            AnyChannel::Drive($channel) => $call,
            AnyChannel::Fault($channel) => $call,
        }
    };
}

impl AnyChannel {
    /// Kept apart: what does next to nothing is to cost next to nothing.
    #[inline(never)]
    fn submit_other(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        dispatch!(self, channel => channel.submit(request, memory, now))
    }
}

impl Channel for AnyChannel {
    #[inline]
    fn geometry(&self) -> Geometry {
        dispatch!(self, channel => channel.geometry())
    }

    #[inline(always)]
    fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        match self {
            Self::Null(channel) => channel.submit(request, memory, now),
            channel => channel.submit_other(request, memory, now),
        }
    }

    #[inline]
    fn publish(&mut self) {
        dispatch!(self, channel => channel.publish());
    }

    #[inline]
    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        dispatch!(self, channel => channel.poll(now, complete))
    }

    #[inline]
    fn outstanding(&self) -> usize {
        dispatch!(self, channel => channel.outstanding())
    }

    #[inline]
    fn deadline(&self) -> Option<u64> {
        dispatch!(self, channel => channel.deadline())
    }

    #[inline]
    fn copies(&self) -> bool {
        dispatch!(self, channel => channel.copies())
    }

    #[inline]
    fn load(&mut self, request: &Request<'_>, memory: &RegionTable, need: Need) {
        dispatch!(self, channel => channel.load(request, memory, need));
    }

    #[inline]
    fn park(&mut self) -> bool {
        dispatch!(self, channel => channel.park())
    }

    #[inline]
    fn unpark(&mut self) {
        dispatch!(self, channel => channel.unpark());
    }

    #[inline]
    fn event(&self) -> Option<BorrowedFd<'_>> {
        dispatch!(self, channel => channel.event())
    }

    fn forget(&mut self, region: &Arc<Region>) {
        dispatch!(self, channel => channel.forget(region));
    }

    #[inline]
    fn is_gone(&self) -> bool {
        dispatch!(self, channel => channel.is_gone())
    }
}
