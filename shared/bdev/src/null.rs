//! The null device: reads leave the buffer as it is, writes are dropped. A yardstick, and a lease of nothing.
//!
//! Nothing is stored, so nothing compared can differ: Compare and fused Compare-and-Write always succeed. Memory is
//! never touched, so a request's ranges are not looked at either.

use crate::channel::{Channel, Geometry, Submitted};
use crate::request::{ErrorKind, Outcome, Request};
use ipc::guest_memory::RegionTable;
use std::collections::VecDeque;

/// Most requests that wait for their latency to pass; more than one worker has in flight for a controller.
const MAX_WAITING: usize = 4096;

/// A channel of a null device. On the hot path.
#[derive(Debug)]
pub struct NullChannel {
    geometry: Geometry,
    latency: u64,
    waiting: VecDeque<(u64, u32)>,
}

impl NullChannel {
    /// A null device of a size in bytes that answers after `latency` nanoseconds, or at once if that is 0.
    pub fn new(geometry: Geometry, latency: u64) -> Self {
        let capacity = if latency == 0 { 0 } else { MAX_WAITING };
        Self { geometry, latency, waiting: VecDeque::with_capacity(capacity) }
    }

    /// Changes the size in bytes; requests accepted already are not affected.
    pub fn resize(&mut self, size: u64) {
        self.geometry.size = size;
    }

    fn wait(&mut self, tag: u32, now: u64) -> Submitted {
        if self.waiting.len() >= MAX_WAITING {
            return Submitted::Full;
        }
        self.waiting.push_back((now.saturating_add(self.latency), tag));
        Submitted::Pending
    }
}

impl Channel for NullChannel {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, request: &Request<'_>, _memory: &RegionTable, now: u64) -> Submitted {
        if let Err(kind) = request.check_bounds(self.geometry.size) {
            return Submitted::Done(Err(kind));
        }
        if self.geometry.read_only && request.op.writes() {
            return Submitted::Done(Err(ErrorKind::ReadOnly));
        }
        if self.latency == 0 { Submitted::Done(Ok(())) } else { self.wait(request.tag, now) }
    }

    #[inline]
    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut count = 0;
        while let Some(&(deadline, tag)) = self.waiting.front() {
            if deadline > now {
                break;
            }
            self.waiting.pop_front();
            complete(tag, Ok(()));
            count += 1;
        }
        count
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.waiting.len()
    }

    fn deadline(&self) -> Option<u64> {
        self.waiting.front().map(|&(deadline, _)| deadline)
    }
}
