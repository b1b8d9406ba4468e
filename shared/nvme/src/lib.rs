//! The NVMe controller, sans-IO: registers, admin, queues, I/O commands, PRP and SGL.

#![forbid(unsafe_code)]

mod admin;
pub mod controller;
mod error;
pub mod namespace;
pub mod nvm;
pub mod prp;
pub mod queue;
pub mod range_list;
mod register;
pub mod sgl;
pub mod subsystem;

pub use controller::{
    ConfigError, Context, Controller, ControllerConfig, Effect, Request, ResetKind, Ticket,
    WorkerSeat,
};
pub use namespace::{Namespace, NamespaceConfig, Protection};
pub use subsystem::{Subsystem, SubsystemConfig, SubsystemError};
