//! Everything shared between Vireo's processes: segments and their layouts, guest memory, rings, events, the handoff
//! protocol's socket and the descriptor store.
//!
//! This crate is the one place (besides device drivers) that holds unsafe code: it turns memory that other processes
//! can write into safe types. Every layout consists of atomics alone, so that any bit pattern is valid and no
//! reference to plain data in shared memory exists; whoever reads an index or a length copies it, bounds it, then
//! uses it.

pub mod barrier;
pub mod device_memory;
pub mod dma_table;
pub mod doorbell;
pub mod event;
pub mod fd_store;
pub mod guest_memory;
pub mod handoff;
pub mod iova;
pub mod journal;
pub mod layout;
pub mod ring;
pub mod segment;
pub mod sigbus;
pub mod sync;
#[cfg(not(loom))]
pub mod trace;

pub use iova::Iova;
pub mod watchdog;
