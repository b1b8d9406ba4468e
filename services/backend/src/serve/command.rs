//! What the control side asks of the serve loop.

use bdev::channel::AnyChannel;
use bdev::error::Error;
use bdev::nvme::LeaseAnswer;
use bdev::request::{Op, Outcome};
use bdev::ring::server::RingServer;
use ipc::device_memory::DeviceMemory;
use ipc::guest_memory::{Region, RegionId};
use service::control::ConnectionId;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Whose regions a channel's requests name: one controller as one worker connection knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The worker's connection.
    pub connection: ConnectionId,
    /// The controller's id.
    pub controller: u128,
}

/// Names a device for as long as the backend lives.
pub type DeviceKey = u64;

/// Names a channel for as long as the backend lives.
pub type ChannelKey = u64;

/// A device's new size.
pub enum Resize {
    /// Bytes; 0 for what the file has by now.
    Size(u64),
    /// A larger mapping of a malloc device's memory.
    Memory(Arc<DeviceMemory>),
}

/// One wish. Each is answered through its `done`, which may have gone away.
pub enum Command {
    /// Serve a device.
    AddDevice {
        /// Its key.
        device: DeviceKey,
        /// The backend's own channel of it.
        channel: Box<AnyChannel>,
    },
    /// Let go of a device. Requests of its channels end with an error from now on; answered when nothing of it is
    /// under way and it is closed.
    RemoveDevice {
        /// Its key.
        device: DeviceKey,
        /// Told when it is closed.
        done: oneshot::Sender<()>,
    },
    /// Change a device's size.
    Resize {
        /// Its key.
        device: DeviceKey,
        /// The size.
        resize: Resize,
        /// Gets the size in bytes that it has now.
        done: oneshot::Sender<Result<u64, Error>>,
    },
    /// Flush a device, or deallocate all of it.
    Maintain {
        /// Its key.
        device: DeviceKey,
        /// [`Op::Flush`] or [`Op::Deallocate`].
        op: Op,
        /// Gets the outcome.
        done: oneshot::Sender<Outcome>,
    },
    /// Serve a ring. Answered once no earlier channel of the controller, that is being closed, has anything under way.
    AddChannel {
        /// Its key.
        channel: ChannelKey,
        /// Whose regions its requests name.
        owner: Owner,
        /// Of which device.
        device: DeviceKey,
        /// The ring.
        server: Box<RingServer>,
        /// Told when the ring may be used.
        done: oneshot::Sender<()>,
    },
    /// Make a queue pair of a drive for the worker that has a channel.
    Lease {
        /// The channel's key.
        channel: ChannelKey,
        /// The worker's process.
        holder: i32,
        /// Gets the queue pair, or why there is none.
        answer: LeaseAnswer,
    },
    /// Let go of a channel, also of one whose [`Command::AddChannel`] is not answered yet, which is dropped then.
    /// Answered when nothing of it is under way.
    CloseChannel {
        /// Its key.
        channel: ChannelKey,
        /// Told then.
        done: oneshot::Sender<()>,
    },
    /// Take guest memory.
    AddRegion {
        /// Whose.
        owner: Owner,
        /// Its id.
        id: RegionId,
        /// The memory.
        region: Arc<Region>,
        /// Told whether it was taken: the id exists, and the connection has not too many controllers.
        done: oneshot::Sender<bool>,
    },
    /// Let go of guest memory. Answered with its last reference, to be dropped elsewhere: unmapping takes long.
    RemoveRegion {
        /// Whose.
        owner: Owner,
        /// Its id.
        id: RegionId,
        /// Gets the memory; `None` if there was none, or if somebody else gets it.
        done: oneshot::Sender<Option<Arc<Region>>>,
    },
    /// A worker's connection is gone: its channels and regions go.
    Disconnect {
        /// The connection.
        connection: ConnectionId,
    },
    /// Answer once no channel of these connections is served or has anything under way.
    AwaitDrained {
        /// The connections.
        connections: Vec<ConnectionId>,
        /// Only this controller's channels; all if `None`.
        controller: Option<u128>,
        /// Told then.
        done: oneshot::Sender<()>,
    },
    /// Answer: the loop turns.
    Ping {
        /// Told at once.
        done: oneshot::Sender<()>,
    },
    /// Stop serving.
    Stop,
}
