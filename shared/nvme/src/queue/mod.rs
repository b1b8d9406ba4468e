//! Positions of queues: counters, doorbell checks, room. Plain state machines without memory or I/O; whoever owns one
//! does the loads and stores. On the hot path of a worker.

pub mod arbitration;
pub mod completion;
pub mod submission;

/// A doorbell value that the queue cannot have: past its size, or past what was posted. The host gets an asynchronous
/// event (Invalid Doorbell Write Value, NVMe Base 2.0c figure 146), and the queue is served no further; no other queue
/// is affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidDoorbell(pub u32);
