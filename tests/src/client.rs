//! The minimal polling NVMe client of the benchmarks: queues in shared memory, driven directly over the segments, with a
//! stand-in for the frontend that fills the controller segment. It costs as little as a client can, and keeps no
//! account of anything but what it counts.

pub mod pinned;
pub mod queue;
pub mod rig;

pub use pinned::Pinned;
pub use queue::{Commands, Queue};
pub use rig::Rig;
