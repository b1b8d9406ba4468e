//! The host's side of a controller, for tests: a driver that behaves like a guest's or, where a test wants it, like no
//! guest should.
//!
//! [`driver::Driver`] knows NVMe and nothing of how the controller is reached; that is a [`transport::Transport`]:
//! [`vfio_user::VfioUser`] over a socket, and the simulated target's own. Speed is not its business.

pub mod commands;
pub mod data;
pub mod driver;
pub mod memory;
pub mod neighbour;
pub mod queue;
pub mod transport;
pub mod vfio_user;

pub use driver::Driver;
pub use memory::{Buffer, HostMemory};
pub use neighbour::Neighbour;
pub use transport::Transport;
pub use vfio_user::{Attach, VfioUser};

/// A driver of a controller behind a socket.
pub type Host = Driver<VfioUser>;
