//! The server's end, without I/O: one framed message in, an outcome out.
//!
//! A caller reads a header, checks it ([`crate::framing::check`]), reads the rest, and calls
//! [`Session::handle`]. Commands execute in order: while one is deferred the next is not handled.

mod description;
mod device;
#[cfg(feature = "tokio")]
mod serve;
mod session;

pub use description::{DeviceDescription, DeviceFlags};
pub use device::{Act, Device};
#[cfg(feature = "tokio")]
pub use serve::{Completions, ServeError, serve};
pub use session::{Deferred, Outcome, Reply, Session};
