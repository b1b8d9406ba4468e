//! What a worker's controllers need to trace commands: the precise clock, the policy, the ring.

use ipc::layout::telemetry::{CAPTURED, Policy, TelemetryLayout, TraceRecord};
use ipc::segment::Segment;
use ipc::trace::TraceWriter;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// One per worker; used by its poll thread alone, which therefore never waits for the lock.
pub struct Tracer {
    segment: Arc<Segment<TelemetryLayout>>,
    /// Where records go, if anybody takes them out.
    writer: Option<Mutex<TraceWriter>>,
    /// Somebody takes all records out, not only captured ones.
    exports: bool,
    /// What the reactor's clock is behind the machine's monotonic one.
    behind: AtomicU64,
    next: AtomicU64,
    seed: RandomState,
}

impl Tracer {
    /// By the policy of the segment. Without a writer commands are timed for the histograms and nothing else.
    pub fn new(segment: Arc<Segment<TelemetryLayout>>, writer: Option<TraceWriter>) -> Self {
        Self {
            segment,
            writer: writer.map(Mutex::new),
            exports: true,
            behind: AtomicU64::new(0),
            next: AtomicU64::new(1),
            seed: RandomState::new(),
        }
    }

    /// Writes records of captured commands alone: there is no collector for others.
    #[must_use]
    pub fn for_captures_alone(self) -> Self {
        Self { exports: false, ..self }
    }

    /// The present policy.
    pub fn policy(&self) -> Policy {
        // Relaxed: the word says all there is to say.
        Policy::from_word(self.segment.policy.word.load(Ordering::Relaxed))
    }

    /// Whether records leave that nobody captures.
    pub fn records(&self) -> bool {
        self.exports && self.writer.is_some()
    }

    /// Nanoseconds of CLOCK_MONOTONIC, looked at now.
    pub fn now(&self) -> u64 {
        telemetry::io_trace::monotonic()
    }

    /// Takes `reactor`, a time of the reactor's clock, as the present one.
    pub fn align(&self, reactor: u64) {
        self.behind.store(self.now().wrapping_sub(reactor), Ordering::Relaxed);
    }

    /// A time of the reactor's clock on the machine's.
    pub fn at(&self, reactor: u64) -> u64 {
        reactor.wrapping_add(self.behind.load(Ordering::Relaxed))
    }

    /// Low half of a new trace's id; never 0, and without [`CAPTURED`].
    pub fn trace(&self) -> u64 {
        // Relaxed: one thread.
        let number = self.next.load(Ordering::Relaxed);
        self.next.store(number.wrapping_add(1), Ordering::Relaxed);
        (self.seed.hash_one(number) & !CAPTURED).max(1)
    }

    /// Writes a record, if anybody takes it out; drops and counts it if there is no room. False if somebody misses it.
    pub fn record(&self, record: &TraceRecord) -> bool {
        let writer = self.writer.as_ref().filter(|_| self.exports || record.is_captured());
        writer.is_none_or(|writer| {
            writer.lock().unwrap_or_else(PoisonError::into_inner).record(record)
        })
    }

    /// Nanoseconds since 1970.
    pub fn wall(&self) -> u64 {
        service::observe::nanoseconds_since_1970(SystemTime::now())
    }
}
