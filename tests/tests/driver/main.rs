//! The driver against the running target, over both kinds of doorbells: every command and state that the controller
//! serves. Each tests the other.

mod admin;
mod events;
mod features;
mod io;
mod life;
mod pages;
mod queues;

use std::time::Duration;

use nvme_driver::transport::DoorbellCost;
use nvme_driver::{Completed, Controller, IoError, Namespace, Options, QueuePair, Request};
use nvme_spec::{Nsid, Status};
use vireo_tests::target::{Target, configuration};

/// A namespace in memory, of 64 MiB.
pub const MEMORY: Nsid = Nsid(1);
/// A namespace that takes two seconds for everything.
pub const SLOW: Nsid = Nsid(3);
/// A namespace whose data goes through the backend's ring.
pub const RINGED: Nsid = Nsid(4);
/// Bytes of the namespaces.
pub const SIZE: u64 = 64 << 20;
/// An endpoint whose doorbells are mapped, and one whose doorbells are messages, with a doorbell buffer.
pub const ENDPOINTS: [&str; 2] = ["mapped", "shadow"];

/// These namespaces behind both endpoints, and `namespaces` more.
pub fn tables(namespaces: &str) -> String {
    configuration(&format!(
        "[[bdev]]\nname = \"mem0\"\ndriver = \"malloc\"\nsize = \"64MiB\"\n\
         [[bdev]]\nname = \"slow\"\ndriver = \"null\"\nsize = \"64MiB\"\nlatency = \"2s\"\n\
         [[bdev]]\nname = \"ringed\"\ndriver = \"malloc\"\nsize = \"8MiB\"\nchannel = \"ring\"\n\
         [[bdev]]\nname = \"more\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n\
         [[bdev]]\nname = \"grown\"\ndriver = \"malloc\"\nsize = \"@GROWN@\"\n\
         [[subsystem]]\nname = \"s0\"\nserial = \"DRIVER0001\"\n\
         [[subsystem.namespace]]\nnsid = 1\nbdev = \"mem0\"\n\
         [[subsystem.namespace]]\nnsid = 3\nbdev = \"slow\"\n\
         [[subsystem.namespace]]\nnsid = 4\nbdev = \"ringed\"\n{namespaces}\
         [[endpoint]]\nname = \"mapped\"\nsubsystem = \"s0\"\n\
         [[endpoint]]\nname = \"shadow\"\nsubsystem = \"s0\"\ndoorbells = \"shadow\"\n"
    ))
}

/// The same, with the size of the fourth device.
pub fn grown(namespaces: &str, size: &str) -> String {
    tables(namespaces).replace("@GROWN@", size)
}

/// A target with these namespaces and endpoints.
pub fn start() -> Target {
    Target::start(&grown("", "1MiB"))
}

/// Time-outs short enough for a test, and long enough for a busy machine.
pub fn options() -> Options {
    let (connect_timeout, admin_timeout) = (Duration::from_secs(40), Duration::from_secs(20));
    Options { connect_timeout, admin_timeout, queues: 8, ..Options::default() }
}

/// Connects to an endpoint.
#[track_caller]
pub fn connect_with(target: &Target, endpoint: &str, options: &Options) -> Controller {
    let address = format!("vfio-user:{}", target.endpoint(endpoint).display());
    Controller::connect_with(&address, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Connects, and looks that the doorbells are what the endpoint's name says.
#[track_caller]
pub fn connect(target: &Target, endpoint: &str) -> Controller {
    let controller = connect_with(target, endpoint, &options());
    let mapped = endpoint == "mapped";
    let cost = if mapped { DoorbellCost::Memory } else { DoorbellCost::Message };
    assert_eq!((controller.doorbell_cost(), controller.uses_shadow_doorbells()), (cost, !mapped));
    assert_eq!(controller.identify().oacs.doorbell_buffer(), !mapped);
    controller
}

/// Runs a request on an idle queue.
#[track_caller]
pub fn run(queue: &mut QueuePair, request: Request) -> Completed {
    queue.run(request).unwrap_or_else(|rejected| panic!("not taken: {}", rejected.reason))
}

/// The status that a request ended with.
#[track_caller]
pub fn status(queue: &mut QueuePair, request: Request) -> Status {
    match run(queue, request).result {
        Ok(_) => Status::SUCCESS,
        Err(IoError::Status(status)) => status.code(),
        Err(error) => panic!("{error}"),
    }
}

/// Bytes that differ from block to block and within a block.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len).map(|at| (at as u64 / 512 * 31 + at as u64 * 7 + seed * 13) as u8).collect()
}

/// Writes and reads back `blocks` blocks.
#[track_caller]
pub fn round_trip(
    controller: &Controller,
    queue: &mut QueuePair,
    namespace: &Namespace,
    lba: u64,
    blocks: u64,
) {
    let len = (blocks * u64::from(namespace.block_size())) as usize;
    let data = pattern(len, lba + blocks);
    let mut buffer = controller.allocate(len).expect("memory");
    buffer.copy_from(&data);
    let done = run(queue, Request::write(namespace, nvme_spec::Lba(lba), buffer));
    assert_eq!(done.result, Ok(0), "write of {blocks} blocks at {lba}");
    let buffer = done.buffer.expect("it comes back");
    buffer.host().fill(0xEE);
    let done = run(queue, Request::read(namespace, nvme_spec::Lba(lba), buffer));
    assert_eq!(done.result, Ok(0), "read of {blocks} blocks at {lba}");
    let back = done.buffer.expect("it comes back").to_vec();
    assert!(back == data, "{blocks} blocks at {lba} came back changed");
}
