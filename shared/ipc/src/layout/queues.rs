//! The queues segment, one per controller and worker: positions, in-flight slots, counters. Written by the worker
//! (by the frontend only in recovery, once the worker is proven dead), read by the frontend.
//!
//! The order of stores is the commit order of the design. Fetch: slots are filled and [`SlotState::Logged`], then the
//! head is published once per batch; a slot at or past the published head is void. Complete: note, CQE, tail, slot
//! free, signal.

use super::latency::LatencyHistogram;
use super::{Layout, MAX_IN_FLIGHT, MAX_NAMESPACES, MAX_QUEUES, SegmentHeader};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Entries kept of the newest errors of one worker (Error Information log page).
pub const ERROR_RECORDS: usize = 64;

/// The queues segment.
#[repr(C)]
pub struct QueuesLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// What the worker tells the frontend.
    pub acknowledged: Acknowledged,
    /// Submission queue positions by identifier.
    pub submission_queues: [SubmissionQueuePosition; MAX_QUEUES],
    /// Completion queue positions by identifier.
    pub completion_queues: [CompletionQueuePosition; MAX_QUEUES],
    /// Counters by NSID - 1.
    pub counters: [NamespaceCounters; MAX_NAMESPACES],
    /// Newest errors, by `error_count % ERROR_RECORDS`.
    pub errors: [ErrorRecord; ERROR_RECORDS],
    /// Commands in flight, used last in, first out.
    pub slots: [InFlightSlot; MAX_IN_FLIGHT],
    /// Latencies of sampled commands by [`super::latency::LatencyOf`].
    pub latency: [LatencyHistogram; 3],
    /// Commands that waited for a limit, by NSID - 1.
    pub throttled: [ThrottleCounters; MAX_NAMESPACES],
    /// [`super::controller::NamespaceRow::pause_number`] that is in effect, by NSID - 1.
    pub paused: [AtomicU64; MAX_NAMESPACES],
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for QueuesLayout {
    const KIND: u32 = u32::from_le_bytes(*b"QUES");
    const VERSION: u32 = 4;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}

/// What the worker has taken over from the controller segment.
#[repr(C, align(64))]
pub struct Acknowledged {
    /// [`super::controller::Signals::version`] that is fully in effect (a deleted queue has drained).
    pub version: AtomicU64,
    /// [`super::controller::Signals::dma_version`] up to which nothing in flight touches an unmapped range.
    pub dma_version: AtomicU64,
    /// [`super::controller::Signals::reset_generation`] of which nothing older is in flight.
    pub reset_generation: AtomicU64,
    /// [`super::controller::Settings::abort_number`] that was answered.
    pub abort_number: AtomicU64,
    /// 1 if that command was aborted, 0 if it was not found or already sent on.
    pub aborted: AtomicU32,
    /// Not 0: the worker gave this controller up; a [`FailureReason`].
    pub failure: AtomicU32,
    /// Errors recorded so far in `errors`; stored after the record (Release).
    pub error_count: AtomicU64,
    /// Interrupts raised since the segment was made.
    pub interrupts: AtomicU64,
    /// [`super::controller::Settings::pause_number`] that is in effect.
    pub pause_number: AtomicU64,
}

const _: () = assert!(size_of::<Acknowledged>() == 64);

/// Why a worker gave a controller up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FailureReason {
    /// All is well.
    None = 0,
    /// Guest memory faulted (SIGBUS): the client truncated or poisoned it.
    MemoryFault = 1,
    /// A client's eventfd blocked.
    StuckInterrupt = 2,
    /// A queue's memory was unmapped.
    QueueUnmapped = 3,
}

/// Position of a submission queue.
#[repr(C, align(64))]
pub struct SubmissionQueuePosition {
    /// 64-bit fetch counter: commands fetched since the queue was created, published once per batch (Release). The
    /// head is this modulo the queue's entries.
    pub fetched: AtomicU64,
    /// Generation of the queue that this position belongs to.
    pub generation: AtomicU32,
    /// Last invalid doorbell value, plus 1; 0 for none (the frontend raises an asynchronous event).
    pub invalid_doorbell: AtomicU32,
}

/// Position of a completion queue.
#[repr(C, align(64))]
pub struct CompletionQueuePosition {
    /// 64-bit counter of entries posted since the queue was created (Release, after the entries). The tail is this
    /// modulo the queue's entries, the phase the parity of the quotient.
    pub posted: AtomicU64,
    /// Generation of the queue that this position belongs to.
    pub generation: AtomicU32,
    /// Last invalid doorbell value, plus 1; 0 for none.
    pub invalid_doorbell: AtomicU32,
}

/// Values of an in-flight slot's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SlotState {
    /// Not in use.
    Free = 0,
    /// A command was copied here; not in effect before the published head passed it.
    Logged = 1,
    /// The command has its outcome (DW0, status); it is not to be run again.
    Done = 2,
    /// The outcome is being posted at the noted position.
    Noted = 3,
}

/// One command in flight: two cache lines.
#[repr(C, align(128))]
pub struct InFlightSlot {
    /// The submission queue entry, copied once.
    pub sqe: [AtomicU64; 8],
    /// The SQ's fetch counter value of this command.
    pub fetch: AtomicU64,
    /// SQID in the high half, CID in the low half.
    pub command: AtomicU32,
    /// A [`SlotState`], stored last (Release).
    pub state: AtomicU32,
    /// Note: the CQ's 64-bit counter value that this completion takes.
    pub cq_position: AtomicU64,
    /// Outcome: DW0 in the high half, status field (without phase) in the low 16 bits.
    pub outcome: AtomicU64,
    /// CQID of the note in the high half; group of a fused pair in the low half (0 for none).
    pub group: AtomicU32,
    /// Intent of a fused pair: 1 once its compare passed.
    pub compare_passed: AtomicU32,
    /// Not 0: the first [`super::controller::Signals::dma_version`] that unmaps memory which this command touches.
    pub unmap_version: AtomicU64,
    /// Time the command was fetched, in the worker's clock, if sampled.
    pub fetched_at: AtomicU64,
    /// W3C trace id's low half if sampled, else 0.
    pub trace: AtomicU64,
}

const _: () = assert!(size_of::<InFlightSlot>() == 128);

/// Counters of one namespace on one worker, since the segment was made. Each has one writer.
#[repr(C, align(64))]
pub struct NamespaceCounters {
    /// Read, Compare and Verify commands completed.
    pub reads: AtomicU64,
    /// Write commands completed.
    pub writes: AtomicU64,
    /// Bytes read by the host.
    pub read_bytes: AtomicU64,
    /// Bytes written by the host.
    pub written_bytes: AtomicU64,
    /// All other commands completed.
    pub others: AtomicU64,
    /// Commands that ended in an error.
    pub errors: AtomicU64,
    /// Of those, media and data integrity errors (status code type 2h, Compare Failure apart).
    pub media_errors: AtomicU64,
}

/// What limits cost the commands of one namespace on one worker, since the segment was made.
#[repr(C)]
pub struct ThrottleCounters {
    /// Commands that had to wait for a limit.
    pub commands: AtomicU64,
    /// Nanoseconds that those which went on had waited, in sum.
    pub waited_ns: AtomicU64,
}

/// One error, as the Error Information log page wants it (NVMe Base 2.0c 5.16.1.2).
#[repr(C, align(64))]
pub struct ErrorRecord {
    /// SQID in the high half, CID in the low half.
    pub command: AtomicU32,
    /// Status field without phase.
    pub status: AtomicU32,
    /// Parameter error location.
    pub location: AtomicU32,
    /// Namespace.
    pub nsid: AtomicU32,
    /// First logical block.
    pub lba: AtomicU64,
}
