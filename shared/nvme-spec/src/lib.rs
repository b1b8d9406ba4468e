//! The types that NVMe puts on the wire: registers, commands, completions, statuses, Identify structures, log pages
//! and features of NVM Express Base 2.0c and of the NVM Command Set 1.0c.
//!
//! Everything here is a plain value: bytes in, bytes out. A multi-byte integer is little-endian on the wire, and the
//! types are views of those bytes, so the crate refuses a big-endian host at compile time. A field whose name ends in
//! `_z` is 0's based (the specification's word for "one less than meant").
//!
//! What a field holds is data, never an assumption: opcodes, identifiers and statuses that nobody has heard of are
//! values like any other. Reading never panics. The `with_*` and `set_*` functions of a bit field do panic on a value
//! wider than its field, so give them constants and our own checked values; for a peer's value there is
//! `with_*_checked`.
//!
//! The crate does no I/O and holds no state; what a command means is the business of the controller.

#![forbid(unsafe_code)]

mod open_enum;

pub mod command;
pub mod completion;
pub mod feature;
pub mod identify;
pub mod ids;
pub mod log_page;
pub mod nvm;
pub mod register;
pub mod sgl;
pub mod status;

pub use command::{AdminOpcode, Command, NvmOpcode};
pub use completion::Completion;
pub use ids::{BlockCount, CommandId, ControllerId, Iova, Lba, Nsid, QueueId};
pub use status::Status;

const _: () =
    assert!(cfg!(target_endian = "little"), "the wire types are views of little-endian bytes");
