//! The host side of NVMe: a userspace driver for any controller that vfio-user or VFIO PCIe reaches.
//!
//! [`Controller::connect`] takes an address (`vfio-user:/run/vireo/vm0`, `pcie:0000:01:00.0`) and brings the controller
//! up. [`Controller::namespace`] describes what can be read and written, [`Controller::queue_pair`] makes a queue pair
//! that one thread owns. A [`Request`] carries its buffer: registered memory that moves into the request and comes back
//! with the completion, so that nothing frees or touches it in between.
//!
//! ```no_run
//! use nvme_driver::{Controller, QueueOptions, Request};
//! use nvme_spec::{Lba, Nsid};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let controller = Controller::connect("vfio-user:/run/vireo/vm0")?;
//! let namespace = controller.namespace(Nsid(1))?;
//! let mut queue = controller.queue_pair(&QueueOptions::default())?;
//! let buffer = controller.allocate(4096)?;
//! queue.submit(Request::read(&namespace, Lba(0), buffer)).map_err(|rejected| rejected.reason)?;
//! let done = queue.wait_next().ok_or("nothing outstanding")?;
//! done.result?;
//! # Ok(())
//! # }
//! ```
//!
//! What goes wrong on the way is dealt with here: transfers are split at the controller's limits, commands that may be
//! retried are, one that does not come back is aborted and then the controller reset, and a controller that is gone ends
//! every outstanding request with an error. Nothing waits for ever.
//!
//! A queue pair is polled, or waits for its interrupts ([`QueuePair::wait`], [`QueuePair::event`]); [`AsyncQueuePair`] makes
//! its requests futures.
//!
//! The queue pair's path allocates nothing, locks nothing and makes no system call. Unsafe code stands in the modules
//! that touch mapped memory of queues and doorbells (`ring`, `doorbell`) and in `transport::vfio`; nowhere else.
//!
//! A service that may be killed and started again has its drives kept ([`transport::vfio::Keeper`]): its successor takes them
//! over from [`Controller::connect_kept`].

#![deny(unsafe_code)]

mod address;
mod async_queue;
mod bare_queue;
mod controller;
mod doorbell;
mod error;
mod memory;
mod namespace;
mod options;
mod prp;
mod queue_pair;
mod request;
mod retry;
mod ring;
mod split;
pub mod transport;

pub use address::{Address, AddressError, PciAddress};
pub use async_queue::AsyncQueuePair;
pub use bare_queue::{BareQueue, QueueLease, QueueTerms};
pub use controller::{AdminData, Controller, Event};
pub use error::{ConnectError, Error, IoError, chain};
pub use memory::{DmaBuffer, MemoryError, Registered};
pub use namespace::Namespace;
pub use options::{DataPointer, Options, QueueOptions, ShadowDoorbells};
pub use queue_pair::{Completed, Next, QueueCounters, QueuePair, Reason, Rejected};
pub use request::Request;
