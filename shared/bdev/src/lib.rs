//! Block devices and channels: null, malloc, file, nvme; ring and lease.
//!
//! A backend owns its devices; a worker holds one [`channel::AnyChannel`] per device and controller. A channel is
//! either a *lease* (the worker does the I/O itself: [`null`], [`malloc`]) or a *ring* (the backend serves it:
//! [`ring`]). The same devices stand behind both, because a backend serves a ring by submitting to a channel of its own.
//!
//! This crate knows bytes and memory ranges. Logical blocks, namespaces and status codes belong to the `nvme` crate.

#![deny(unsafe_code)]

pub mod channel;
pub mod error;
pub mod fault;
pub mod file;
pub mod malloc;
pub mod null;
pub mod nvme;
pub mod request;
pub mod ring;
