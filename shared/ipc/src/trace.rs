//! The lossy ring of traced commands in a telemetry segment: who writes records, and who takes them out.
//!
//! The writer never waits: what finds the ring full is dropped and counted. It wakes the reader through an eventfd only
//! while that is parked.

use crate::event::{EventError, EventFd};
use crate::layout::telemetry::{TelemetryLayout, TraceRecord, add};
use crate::ring::{Consumer, Producer};
use crate::segment::Segment;
use std::sync::Arc;

/// The writing end. One per segment, on one thread at a time.
pub struct TraceWriter {
    segment: Arc<Segment<TelemetryLayout>>,
    producer: Producer,
    wake: EventFd,
}

/// The reading end. One per segment.
pub struct TraceReader {
    segment: Arc<Segment<TelemetryLayout>>,
    consumer: Consumer,
    wake: EventFd,
}

/// Both ends of a segment's ring, which must be the only ones.
///
/// # Errors
/// No descriptor is left.
pub fn ends(
    segment: &Arc<Segment<TelemetryLayout>>,
) -> Result<(TraceWriter, TraceReader), EventError> {
    let wake = EventFd::create()?;
    let writer = TraceWriter {
        segment: Arc::clone(segment),
        producer: Producer::default(),
        wake: wake.try_clone()?,
    };
    let reader = TraceReader { segment: Arc::clone(segment), consumer: Consumer::default(), wake };
    Ok((writer, reader))
}

impl TraceWriter {
    /// Writes a record, or drops and counts it. Whether there was room.
    pub fn record(&mut self, record: &TraceRecord) -> bool {
        let Some(ring) = self.segment.traces() else { return false };
        let written = matches!(self.producer.push(ring, record.to_words()), Ok(true));
        if !written {
            add(&self.segment.policy.dropped, 1);
        }
        if self.producer.publish(ring) {
            // Ours and nonblocking; a full counter wakes as well.
            self.wake.signal().ok();
        }
        written
    }
}

impl TraceReader {
    /// The event that is signalled when there are records, after [`Self::park`] said that there are none.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn event(&self) -> Result<EventFd, EventError> {
        self.wake.try_clone()
    }

    /// The next record, if there is one. A ring whose positions cannot be has none any more.
    pub fn take(&mut self) -> Option<TraceRecord> {
        let ring = self.segment.traces()?;
        let words = self.consumer.pop(ring).ok().flatten();
        self.consumer.release(ring);
        words.map(|words| TraceRecord::from_words(&words))
    }

    /// Has the writer signal the event from now on; `false` if there is something already.
    pub fn park(&mut self) -> bool {
        self.segment.traces().is_none_or(|ring| self.consumer.park(ring))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::telemetry::{TRACE_DEPTH, TraceSide};
    use std::sync::atomic::Ordering;

    fn record(trace: u64) -> TraceRecord {
        let mut words = [0; crate::layout::telemetry::TRACE_WORDS];
        words[0] = trace;
        let record = TraceRecord::from_words(&words);
        assert_eq!(record.side, TraceSide::Worker);
        record
    }

    #[test]
    fn a_full_ring_drops_and_counts_and_goes_on() {
        let segment = Arc::new(Segment::<TelemetryLayout>::create("telemetry", 1).unwrap());
        let (mut writer, mut reader) = ends(&segment).unwrap();
        for trace in 1..=TRACE_DEPTH as u64 + 3 {
            writer.record(&record(trace));
        }
        assert_eq!(segment.policy.dropped.load(Ordering::Relaxed), 3);
        assert!(!reader.park(), "there is something");
        for trace in 1..=TRACE_DEPTH as u64 {
            assert_eq!(reader.take().map(|record| record.trace), Some(trace));
        }
        assert_eq!(reader.take(), None);
        writer.record(&record(9));
        assert_eq!(reader.take().map(|record| record.trace), Some(9));
    }

    #[test]
    fn a_parked_reader_is_woken_once() {
        let segment = Arc::new(Segment::<TelemetryLayout>::create("telemetry", 1).unwrap());
        let (mut writer, mut reader) = ends(&segment).unwrap();
        let event = reader.event().unwrap();
        assert!(reader.park());
        writer.record(&record(1));
        writer.record(&record(2));
        assert_eq!(event.drain().unwrap(), 1);
        assert_eq!(reader.take().map(|record| record.trace), Some(1));
    }
}
