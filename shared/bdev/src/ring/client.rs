//! The worker's end of a ring. On the hot path: an entry is written, the tail published once per batch, and a system
//! call made only when the backend sleeps.

use super::{SlotSet, depth_of, entry};
use crate::channel::{Channel, Geometry, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Outcome, Request, outcome_from_code};
use ipc::event::EventFd;
use ipc::guest_memory::RegionTable;
use ipc::layout::channel::ChannelLayout;
use ipc::ring::{Consumer, Producer, RingError};
use ipc::segment::Segment;
use std::sync::atomic::Ordering;

/// A channel that a backend serves.
pub struct RingChannel {
    segment: Segment<ChannelLayout>,
    geometry: Geometry,
    depth: usize,
    requests: Producer,
    completions: Consumer,
    /// The caller's tag by slot.
    tags: Vec<u32>,
    /// Slots not in use; last in, first out.
    free: Vec<u32>,
    busy: SlotSet,
    backend: EventFd,
    gone: bool,
}

/// A look at a channel's segment from elsewhere.
pub struct RingWatch(Segment<ChannelLayout>);

impl RingWatch {
    /// Whether the backend may grant a lease by now, which it could not when this channel was opened.
    pub fn is_superseded(&self) -> bool {
        // Relaxed: only a hint to ask.
        self.0.superseded.load(Ordering::Relaxed) != 0
    }
}

impl RingChannel {
    /// A channel over the segment that a backend granted; `backend` is the event that wakes it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the segment's depth is none.
    pub fn new(
        segment: Segment<ChannelLayout>,
        backend: EventFd,
        geometry: Geometry,
    ) -> Result<Self, Error> {
        let depth = depth_of(&segment)?;
        Ok(Self {
            segment,
            geometry,
            depth,
            requests: Producer::default(),
            completions: Consumer::default(),
            tags: vec![0; depth],
            free: (0..depth as u32).rev().collect(),
            busy: SlotSet::default(),
            backend,
            gone: false,
        })
    }

    /// To look whether a lease may be had by now.
    ///
    /// # Errors
    /// The segment cannot be mapped once more.
    pub fn watch(&self) -> Result<RingWatch, Error> {
        let fd = self.segment.fd().try_clone_to_owned();
        let fd = fd.map_err(|error| Error::io("dup channel segment", error))?;
        Segment::open(fd).map(RingWatch).map_err(|source| Error {
            kind: ErrorKind::Internal,
            what: "map a channel segment".to_owned(),
            source: Some(Box::new(source)),
        })
    }

    /// The backend is dead, as proven or by its closed connection: the next poll reports everything outstanding with
    /// [`ErrorKind::Gone`].
    pub fn set_gone(&mut self) {
        self.gone = true;
    }

    /// The device has another size now.
    pub fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = geometry;
    }

    fn try_submit(&mut self, request: &Request<'_>) -> Result<Submitted, RingError> {
        let Some(ring) = self.segment.submissions(self.depth) else { return Ok(Submitted::Full) };
        if self.requests.room(ring)? == 0 {
            return Ok(Submitted::Full);
        }
        let Some(&slot) = self.free.last() else { return Ok(Submitted::Full) };
        let Some(list) = self.segment.list(slot as usize) else { return Ok(Submitted::Full) };
        let words = match entry::encode(request, slot, list) {
            Ok(words) => words,
            Err(kind) => return Ok(Submitted::Done(Err(kind))),
        };
        if !self.requests.push(ring, words)? {
            return Ok(Submitted::Full);
        }
        self.free.pop();
        self.busy.insert(slot as usize);
        self.tags[slot as usize] = request.tag;
        Ok(Submitted::Pending)
    }

    fn try_poll(
        &mut self,
        complete: &mut impl FnMut(u32, Outcome),
        count: &mut usize,
    ) -> Result<(), RingError> {
        let Some(ring) = self.segment.completions(self.depth) else { return Ok(()) };
        while let Some([slot, code]) = self.completions.pop(ring)? {
            let slot = slot as usize;
            if !self.busy.remove(slot) {
                // A completion of nothing: the peer is corrupt, which reads like a position out of reach.
                return Err(RingError::Corrupt { found: slot as u32, own: self.depth as u32 });
            }
            self.free.push(slot as u32);
            *count += 1;
            complete(self.tags[slot], outcome_from_code(code as u32));
        }
        self.completions.release(ring);
        Ok(())
    }

    fn end_all(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut count = 0;
        while let Some(slot) = self.busy.pop() {
            self.free.push(slot as u32);
            complete(self.tags[slot], Err(ErrorKind::Gone));
            count += 1;
        }
        count
    }
}

impl Channel for RingChannel {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, request: &Request<'_>, _memory: &RegionTable, _now: u64) -> Submitted {
        if self.gone {
            return Submitted::Done(Err(ErrorKind::Gone));
        }
        self.try_submit(request).unwrap_or_else(|_| {
            self.gone = true;
            Submitted::Done(Err(ErrorKind::Gone))
        })
    }

    #[inline]
    fn publish(&mut self) {
        if let Some(ring) = self.segment.submissions(self.depth)
            && self.requests.publish(ring)
            && self.backend.signal().is_err()
        {
            // A backend that cannot be woken serves nothing.
            self.gone = true;
        }
    }

    fn poll(&mut self, _now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        self.publish();
        let mut count = 0;
        if self.try_poll(complete, &mut count).is_err() {
            self.gone = true;
        }
        if self.gone {
            count += self.end_all(complete);
        }
        count
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.depth - self.free.len()
    }

    fn park(&mut self) -> bool {
        self.publish();
        if self.gone {
            return self.outstanding() == 0;
        }
        match self.segment.completions(self.depth) {
            Some(ring) => self.completions.park(ring),
            None => true,
        }
    }

    fn unpark(&mut self) {
        if let Some(ring) = self.segment.completions(self.depth) {
            self.completions.unpark(ring);
        }
    }

    fn is_gone(&self) -> bool {
        self.gone
    }
}
