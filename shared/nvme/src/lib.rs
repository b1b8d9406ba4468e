//! The NVMe controller, sans-IO: registers, admin, queues, I/O commands, PRP and SGL.

#![forbid(unsafe_code)]

pub mod nvm;
pub mod prp;
pub mod queue;
pub mod range_list;
pub mod sgl;
