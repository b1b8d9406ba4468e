//! Owns block devices; serves rings and grants leases.
//!
//! [`registry`] knows the devices, which `apply` opens, grows and closes as the manager wants them; [`backend`] answers
//! the handoff's requests and grants channels; [`serve`] is the thread that all rings and devices are served on; [`lease`] counts
//! who may write to a malloc device by itself; [`store`] keeps the memory of malloc devices, and drives, over a restart of this
//! process.

#![forbid(unsafe_code)]

mod apply;
pub mod backend;
pub mod lease;
pub mod registry;
pub mod serve;
pub mod store;
