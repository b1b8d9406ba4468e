//! The controller segment: what workers must know of a controller. Written by the frontend alone, mapped read-only by
//! the workers.
//!
//! A change is written first, then [`Signals::version`] is raised with Release; a worker that sees a new version reads
//! the tables anew and acknowledges the number in its queues segment. Row states are stored last within their row.

use super::{Layout, MAX_NAMESPACES, MAX_QUEUES, SegmentHeader, SharedText};
use crate::dma_table::DmaTable;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// How many of the last unmapped ranges are kept; a worker that is further behind waits for all it has in flight.
pub const UNMAP_LOG: usize = 64;

/// The controller segment.
#[repr(C)]
pub struct ControllerLayout {
    /// Kind, version, owner.
    pub header: SegmentHeader,
    /// What a worker looks at on every poll, one cache line.
    pub signals: Signals,
    /// What the registers and features say to the I/O path.
    pub settings: Settings,
    /// Submission queues by identifier; entry 0 (admin) is served by the frontend.
    pub submission_queues: [SubmissionQueueRow; MAX_QUEUES],
    /// Completion queues by identifier.
    pub completion_queues: [CompletionQueueRow; MAX_QUEUES],
    /// Namespaces by NSID - 1.
    pub namespaces: [NamespaceRow; MAX_NAMESPACES],
    /// The last unmapped ranges, by [`Signals::dma_version`] modulo [`UNMAP_LOG`].
    pub unmaps: [UnmapRecord; UNMAP_LOG],
    /// The admin queue and the asynchronous events, which the frontend alone serves.
    pub admin: AdminRecord,
    /// The journal of the vfio-user message in hand.
    pub journal: crate::journal::JournalPage,
    /// Guest addresses to regions.
    pub dma: DmaTable,
}

// SAFETY: repr(C), header first, atomics alone in every nested structure.
unsafe impl Layout for ControllerLayout {
    const KIND: u32 = u32::from_le_bytes(*b"CTRL");
    const VERSION: u32 = 3;
    fn header(&self) -> &SegmentHeader {
        &self.header
    }
}

/// The line that workers poll.
#[repr(C, align(64))]
pub struct Signals {
    /// Raised (Release) after any change of settings, queue rows, namespace rows or the abort request.
    pub version: AtomicU64,
    /// Number of unmaps so far, raised (Release) after rows were cleared and the record was written.
    pub dma_version: AtomicU64,
    /// Raised (Release) by every controller reset (CC.EN 1 to 0, FLR, subsystem reset, DEVICE_RESET, disconnect): a
    /// worker that sees a new number drops every queue, and acknowledges once nothing of the old is in flight.
    pub reset_generation: AtomicU64,
    /// A [`ControllerState`].
    pub state: AtomicU32,
}

/// Values of [`Signals::state`], the part of the controller's state that matters to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ControllerState {
    /// CSTS.RDY is 0: nothing is fetched.
    Disabled = 0,
    /// CSTS.RDY is 1.
    Enabled = 1,
    /// Failed (CSTS.CFS) or shutting down: nothing is fetched until the next reset. The version that says so is
    /// acknowledged when nothing is in flight.
    Stopped = 2,
}

/// Registers' and features' part in the I/O path.
#[repr(C, align(64))]
pub struct Settings {
    /// Memory page size as a shift: 12 + CC.MPS.
    pub page_shift: AtomicU32,
    /// Largest data transfer in bytes (MDTS).
    pub max_transfer: AtomicU32,
    /// Commands fetched from one SQ before the next one's turn (feature 01h, AB), 0 for no limit of the host's.
    pub arbitration_burst: AtomicU32,
    /// Feature 08h: completions to aggregate (THR, 0's based).
    pub coalescing_threshold: AtomicU32,
    /// Feature 08h: longest aggregation in units of 100 microseconds (TIME), 0 for none.
    pub coalescing_time: AtomicU32,
    /// Feature 09h: a set bit disables coalescing for the vector.
    pub coalescing_disabled: [AtomicU64; 2],
    /// Feature 06h: 1 if the volatile write cache is on; off means every write is FUA.
    pub write_cache: AtomicU32,
    /// 1 if the client maps the doorbell page and stores there itself.
    pub doorbells_mapped: AtomicU32,
    /// 1 once Doorbell Buffer Config succeeded; cleared by reset.
    pub shadow_enabled: AtomicU32,
    /// Guest address of the shadow doorbell buffer page.
    pub shadow_doorbells: AtomicU64,
    /// Guest address of the EventIdx buffer page.
    pub shadow_event_indexes: AtomicU64,
    /// Number of the abort request below; a worker answers each number once.
    pub abort_number: AtomicU64,
    /// The command to abort: SQID in the high half, CID in the low half.
    pub abort_command: AtomicU32,
    /// Raised by every pause and every resumption: odd while paused, when nothing is fetched and nothing that waits is
    /// sent on. A worker acknowledges the number of a pause when no block device has anything of the controller.
    pub pause_number: AtomicU64,
}

/// Values of a queue row's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum QueueState {
    /// No queue.
    Free = 0,
    /// The queue is served.
    Active = 1,
    /// Being deleted: nothing more is fetched; acknowledged when nothing of it is in flight.
    Deleting = 2,
}

/// A submission queue.
#[repr(C, align(64))]
pub struct SubmissionQueueRow {
    /// A [`QueueState`], stored last (Release).
    pub state: AtomicU32,
    /// Tells a queue from an earlier one with the same identifier.
    pub generation: AtomicU32,
    /// Entries.
    pub entries: AtomicU32,
    /// Completion queue identifier.
    pub cqid: AtomicU32,
    /// Index of the worker that serves it.
    pub worker: AtomicU32,
    /// Queue priority (QPRIO) of the create command.
    pub priority: AtomicU32,
    /// Guest address of the (contiguous) queue.
    pub base: AtomicU64,
}

/// A completion queue.
#[repr(C, align(64))]
pub struct CompletionQueueRow {
    /// A [`QueueState`], stored last (Release).
    pub state: AtomicU32,
    /// Tells a queue from an earlier one with the same identifier.
    pub generation: AtomicU32,
    /// Entries.
    pub entries: AtomicU32,
    /// Interrupt vector.
    pub vector: AtomicU32,
    /// 1 if interrupts are enabled (IEN).
    pub interrupts: AtomicU32,
    /// Index of the worker that serves it.
    pub worker: AtomicU32,
    /// Guest address of the (contiguous) queue.
    pub base: AtomicU64,
}

/// Bits of [`NamespaceRow::flags`].
pub mod namespace_flags {
    /// Writes are refused with Namespace Is Write Protected. The version that sets it is acknowledged when no write to
    /// the namespace is in flight.
    pub const WRITE_PROTECTED: u32 = 1;
    /// A format is under way: I/O is refused with Format In Progress. The version that sets it is acknowledged when
    /// nothing of the namespace is in flight.
    pub const FORMATTING: u32 = 2;
    /// I/O is served through the ring even where the bdev grants a lease.
    pub const FORCE_RING: u32 = 4;
}

/// A namespace as the I/O path sees it.
#[repr(C, align(64))]
pub struct NamespaceRow {
    /// 0 none, 1 attached; stored last (Release). The version that clears it is acknowledged when nothing of the
    /// namespace is in flight.
    pub state: AtomicU32,
    /// Raised when another bdev takes the place.
    pub generation: AtomicU32,
    /// Logical block size as a shift (9 or 12).
    pub block_shift: AtomicU32,
    /// [`namespace_flags`].
    pub flags: AtomicU32,
    /// Size in logical blocks.
    pub blocks: AtomicU64,
    /// Name of the backend that owns the block device.
    pub backend: SharedText<4>,
    /// Name of the block device.
    pub bdev: SharedText<8>,
    /// Where in which trace the namespace was asked for: high and low half of the trace id, span id; zeroes if nowhere.
    /// What a worker does for its sake is a part of that.
    pub asked_in: [AtomicU64; 3],
    /// Not 0: the namespace is paused. Its commands are held, while those of others go on. No two pauses of a subsystem
    /// have the same number. A worker acknowledges it ([`super::queues::QueuesLayout::paused`]) when no block device has
    /// anything of the namespace.
    pub pause_number: AtomicU64,
}

/// Most Asynchronous Event Requests that a controller holds (AERL + 1).
pub const EVENT_REQUESTS: usize = 8;

/// What the frontend needs to go on with the admin queue where a predecessor stopped: registers that a host wrote,
/// positions, held requests, events not yet told. Workers do not look at it.
#[repr(C, align(64))]
pub struct AdminRecord {
    /// Controller Configuration (CC).
    pub cc: AtomicU32,
    /// Controller Status (CSTS).
    pub csts: AtomicU32,
    /// Admin Queue Attributes (AQA).
    pub aqa: AtomicU32,
    /// Interrupt mask (INTMS, INTMC).
    pub interrupt_mask: AtomicU32,
    /// Admin Submission Queue Base Address (ASQ).
    pub asq: AtomicU64,
    /// Admin Completion Queue Base Address (ACQ).
    pub acq: AtomicU64,
    /// 64-bit fetch counter of the admin submission queue since it was enabled.
    pub fetched: AtomicU64,
    /// 64-bit counter of entries posted to the admin completion queue since it was enabled.
    pub posted: AtomicU64,
    /// Entries of the admin completion queue that the host has taken, as a 64-bit counter.
    pub taken: AtomicU64,
    /// Feature 0Bh: which events the host wants.
    pub event_configuration: AtomicU32,
    /// Event types (by bit) that were told and whose log page the host has not read since.
    pub masked_events: AtomicU32,
    /// Events (by bit) that happened and were not yet told.
    pub pending_events: AtomicU32,
    /// Asynchronous Event Requests held: CID + 1, or 0 for none.
    pub event_requests: [AtomicU32; EVENT_REQUESTS],
    /// Namespaces (bit NSID - 1) that changed since the host read the Changed Namespace List.
    pub changed_namespaces: [AtomicU64; MAX_NAMESPACES / 64],
}

/// A range that was unmapped.
#[repr(C)]
pub struct UnmapRecord {
    /// Guest address.
    pub iova: AtomicU64,
    /// Bytes.
    pub size: AtomicU64,
}
