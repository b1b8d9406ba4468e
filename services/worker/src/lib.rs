//! Serves I/O queues of virtual NVMe controllers on one core.
//!
//! One pinned thread polls ([`reactor`]); it never blocks but in its own nap or sleep ([`sleep`]), and its path from
//! doorbell to completion allocates nothing, locks nothing and makes no system call but the eventfd write of an
//! interrupt. What it needs arrives over a bounded queue from the control thread, which talks to frontends and
//! backends, and what it no longer needs goes back there to be dropped.
//!
//! The reactor does no I/O of its own choosing: clock and notifier are handed in, so that it also runs step by step in
//! one thread of a test.

#![forbid(unsafe_code)]

pub mod clock;
pub mod control;
pub mod controller;
pub mod interrupt;
pub mod notify;
pub mod queue_pair;
pub mod reactor;
pub mod sleep;
pub mod times;
pub mod tracer;

mod doorbells;
mod namespaces;
mod slots;
