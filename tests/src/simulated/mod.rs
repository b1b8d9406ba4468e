//! A whole target in one thread: the frontend's function, a worker's reactor and a backend's device, with clock, memory
//! and fate handed in. Equal seeds give equal runs.
//!
//! [`world::World`] is the target. [`client::SimulatedClient`] is a client's connection to it, and a
//! [`crate::host::Transport`], so that [`crate::host::Driver`] drives it as it drives a real one.

pub mod client;
pub mod disk;
pub mod world;

pub use client::{SharedWorld, SimulatedClient, SimulatedHost, boot};
pub use disk::Disk;
pub use world::{Fate, World};
