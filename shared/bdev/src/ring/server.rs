//! The backend's end of a ring: takes requests, checks all of what they say, has a device serve them, and completes
//! them. The device is a channel of the backend's own.

use super::{SlotSet, depth_of, entry};
use crate::channel::{Channel, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Outcome, outcome_code};
use ipc::event::EventFd;
use ipc::guest_memory::{MemRange, RegionTable};
use ipc::layout::channel::{ChannelLayout, MAX_REQUEST_RANGES};
use ipc::layout::telemetry::{TraceRecord, TraceSide, trace_reason};
use ipc::ring::{Consumer, Producer, RingError};
use ipc::segment::Segment;
use ipc::trace::TraceWriter;
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// One worker's ring, served.
pub struct RingServer {
    segment: Segment<ChannelLayout>,
    depth: usize,
    requests: Consumer,
    completions: Producer,
    /// Wakes the worker.
    worker: EventFd,
    /// Slots that the device has.
    busy: SlotSet,
    /// A request that the device had no room for.
    deferred: Option<entry::Words>,
    /// Where a request's ranges are copied to.
    ranges: Vec<MemRange>,
    gone: bool,
    /// Where the records of traced requests go.
    tracer: Option<Arc<Mutex<TraceWriter>>>,
    /// Traced requests that the device has, by slot; at most as many as slots.
    traced: Vec<(usize, TraceRecord)>,
}

impl RingServer {
    /// Serves the segment, whose other end has been or will be given to a worker that `worker` wakes.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the segment's depth is none.
    pub fn new(segment: Segment<ChannelLayout>, worker: EventFd) -> Result<Self, Error> {
        Ok(Self {
            depth: depth_of(&segment)?,
            segment,
            requests: Consumer::default(),
            completions: Producer::default(),
            worker,
            busy: SlotSet::default(),
            deferred: None,
            ranges: Vec::with_capacity(MAX_REQUEST_RANGES),
            gone: false,
            tracer: None,
            traced: Vec::new(),
        })
    }

    /// Has the requests recorded that the worker traces.
    #[must_use]
    pub fn traced_by(self, tracer: Arc<Mutex<TraceWriter>>) -> Self {
        Self { tracer: Some(tracer), ..self }
    }

    /// The segment, to hand to the worker.
    pub fn segment(&self) -> &Segment<ChannelLayout> {
        &self.segment
    }

    /// Takes at most one ring's worth of requests and submits them; returns how many were taken. A pending request has
    /// the tag `tags | slot` on the device, so the low 8 bits of `tags` are 0; hand what the device reports of these
    /// tags to [`RingServer::complete`].
    pub fn serve(
        &mut self,
        device: &mut impl Channel,
        memory: &RegionTable,
        now: u64,
        tags: u32,
    ) -> usize {
        let mut taken = 0;
        while taken < self.depth && !self.gone {
            match self.serve_one(device, memory, now, tags) {
                Ok(true) => taken += 1,
                Ok(false) => break,
                Err(_) => self.gone = true,
            }
        }
        if let Some(ring) = self.segment.submissions(self.depth) {
            self.requests.release(ring);
        }
        taken
    }

    /// Ends a request that was pending on the device.
    pub fn complete(&mut self, slot: usize, outcome: Outcome) {
        if self.busy.remove(slot) && self.post(slot, outcome).is_err() {
            self.gone = true;
        }
    }

    /// Shows the worker what was completed, and wakes it if it sleeps.
    pub fn publish(&mut self) {
        if let Some(ring) = self.segment.completions(self.depth)
            && self.completions.publish(ring)
            && self.worker.signal().is_err()
        {
            self.gone = true;
        }
    }

    /// Before the backend sleeps: the worker signals from now on, or the device does, if it has no room for the next
    /// request. `false`: there is a request to take, do not sleep.
    pub fn park(&mut self) -> bool {
        if self.gone {
            return true;
        }
        match self.segment.submissions(self.depth) {
            // What the device had no room for goes on when it ends something, of which it tells.
            Some(ring) => self.deferred.is_some() || self.requests.park(ring),
            None => true,
        }
    }

    /// After the backend slept.
    pub fn unpark(&mut self) {
        if let Some(ring) = self.segment.submissions(self.depth) {
            self.requests.unpark(ring);
        }
    }

    /// Takes no further request: the worker is dead or closed the channel, or the ring is corrupt. What the device has
    /// is still awaited; see [`RingServer::pending`].
    pub fn close(&mut self) {
        self.gone = true;
        self.deferred = None;
    }

    /// Tells the worker that it may have a lease by now; the ring goes on as long as it is used.
    pub fn supersede(&self) {
        // Relaxed: only a hint to ask.
        self.segment.superseded.store(1, Ordering::Relaxed);
    }

    /// Whether nothing is taken any more.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Requests that the device has not ended.
    pub fn pending(&self) -> usize {
        self.busy.len()
    }

    fn serve_one(
        &mut self,
        device: &mut impl Channel,
        memory: &RegionTable,
        now: u64,
        tags: u32,
    ) -> Result<bool, RingError> {
        let Some(ring) = self.segment.submissions(self.depth) else { return Ok(false) };
        let next = match self.deferred.take() {
            Some(words) => Some(words),
            None => self.requests.pop(ring)?,
        };
        let Some(words) = next else { return Ok(false) };
        let slot = entry::slot(&words);
        // A slot that is busy must not be used again: its tag is still the device's.
        let usable = slot < self.depth && !self.busy.contains(slot);
        if words[3] != 0 && usable && self.tracer.is_some() {
            self.trace(slot, &words);
        }
        let list = self.segment.list(slot).filter(|_| usable);
        let corrupt = RingError::Corrupt { found: slot as u32, own: self.depth as u32 };
        let list = list.ok_or(corrupt)?;
        let tag = tags | slot as u32;
        let submitted = entry::decode(&words, list, &mut self.ranges, tag)
            .and_then(|request| request.check_memory().map(|()| request))
            .map(|request| device.submit(&request, memory, now));
        match submitted {
            Err(kind) => self.post(slot, Err(kind))?,
            // The guest's memory is looked at after the copy: if it faulted, what was copied is not what it held.
            Ok(Submitted::Done(Ok(()))) if memory.failed() => {
                self.post(slot, Err(ErrorKind::Fault))?;
            }
            Ok(Submitted::Done(outcome)) => self.post(slot, outcome)?,
            Ok(Submitted::Pending) => {
                self.busy.insert(slot);
            }
            Ok(Submitted::Full) => {
                self.deferred = Some(words);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A traced request was taken.
    #[cold]
    fn trace(&mut self, slot: usize, words: &entry::Words) {
        // One that the device had no room for is taken more than once.
        if self.traced.iter().any(|(other, _)| *other == slot) {
            return;
        }
        let record = TraceRecord {
            reason: trace_reason::SAMPLED,
            opcode: words[0] as u8,
            lba: words[1],
            bytes: words[2],
            fetched: monotonic(),
            ..TraceRecord::new(words[3], self.segment.id(), TraceSide::Backend)
        };
        self.traced.push((slot, record));
    }

    /// A request ended, which may be one of the traced ones.
    #[cold]
    fn trace_end(&mut self, slot: usize, outcome: Outcome) {
        let Some(place) = self.traced.iter().position(|(other, _)| *other == slot) else { return };
        let (_, mut record) = self.traced.swap_remove(place);
        record.done = monotonic();
        record.status = outcome_code(outcome) as u16;
        if let Some(tracer) = &self.tracer {
            tracer.lock().unwrap_or_else(PoisonError::into_inner).record(&record);
        }
    }

    fn post(&mut self, slot: usize, outcome: Outcome) -> Result<(), RingError> {
        if !self.traced.is_empty() {
            self.trace_end(slot, outcome);
        }
        let Some(ring) = self.segment.completions(self.depth) else { return Ok(()) };
        let words = [slot as u64, u64::from(outcome_code(outcome))];
        if self.completions.push(ring, words)? {
            return Ok(());
        }
        // More outstanding than slots: an honest worker's ring never fills up.
        Err(RingError::Corrupt { found: slot as u32, own: self.depth as u32 })
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the same in every process of the machine.
fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
    })
}
