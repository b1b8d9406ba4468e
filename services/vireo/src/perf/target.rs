//! Reaching what is to be loaded, and seeing that the load fits it.

use std::sync::Arc;

use nvme_driver::{Controller, Namespace, Options};
use nvme_spec::Nsid;

use super::lane::Geometry;
use super::null_target::{NullMedium, NullTarget};
use super::options::{Completions, Load};
use super::verify::ledger;
use crate::reach::{Failure, driver_options, explain, within};

/// What is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A controller somewhere.
    Address(String),
    /// The target within this process that completes everything at once.
    Null,
}

/// A controller and namespace that a load fits.
#[derive(Debug)]
pub struct Session {
    /// The controller.
    pub controller: Controller,
    /// The namespace.
    pub namespace: Namespace,
    /// Where the I/Os lie.
    pub geometry: Geometry,
    /// How many of them the range holds.
    pub blocks: u64,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => f.write_str(address),
            Self::Null => f.write_str("null target in this process"),
        }
    }
}

/// Connects within the load's time limit and checks that the load fits.
///
/// # Errors
/// [`Failure`].
pub fn reach(target: &Target, load: &Load) -> Result<Session, Failure> {
    let (theirs, load) = (target.clone(), load.clone());
    let timeout = load.connect_timeout;
    within(&target.to_string(), timeout, "--connect-timeout", move || open(&theirs, &load))
}

/// Connects and checks that the load fits.
///
/// # Errors
/// [`Failure`].
pub fn open(target: &Target, load: &Load) -> Result<Session, Failure> {
    let options = Options {
        io_timeout: load.io_timeout,
        queues: load.queues,
        interrupts: load.completions == Completions::Interrupt,
        ..driver_options(load.connect_timeout)
    };
    let controller = match target {
        Target::Address(address) => Controller::connect_with(address, &options)?,
        Target::Null => {
            let transport = NullTarget::new(NullMedium);
            Controller::over(Arc::new(transport), &target.to_string(), &options)?
        }
    };
    over(controller, load)
}

/// Checks that the load fits this controller.
///
/// # Errors
/// [`Failure`].
pub fn over(controller: Controller, load: &Load) -> Result<Session, Failure> {
    let granted = controller.granted_queues();
    if granted < load.queues {
        return Err(Failure::new(format!(
            "controller grants {granted} queue pairs, not {}: say --queues {granted}",
            load.queues
        )));
    }
    let namespace = choose(&controller, load.namespace)?;
    if load.pattern.writes() && !namespace.is_writable() {
        return Err(Failure::new(format!(
            "namespace {} is write protected: say --pattern read or randread, or lift its protection (feature 84h)",
            namespace.nsid().0
        )));
    }
    let (geometry, blocks) = fit(&namespace, load)?;
    Ok(Session { controller, namespace, geometry, blocks })
}

fn choose(controller: &Controller, nsid: Option<u32>) -> Result<Namespace, Failure> {
    let nsid = match nsid {
        Some(nsid) => Nsid(nsid),
        None => {
            let active = controller.active_namespaces().map_err(|error| explain(&error))?;
            *active.first().ok_or_else(|| {
                Failure::new("controller has no active namespace: attach one to it first")
            })?
        }
    };
    controller.namespace(nsid).map_err(|error| explain(&error))
}

/// Where the load's I/Os lie in the namespace.
fn fit(namespace: &Namespace, load: &Load) -> Result<(Geometry, u64), Failure> {
    let lba = u64::from(namespace.block_size());
    let nsid = namespace.nsid().0;
    if !load.block_size.is_multiple_of(lba) {
        return Err(Failure::new(format!(
            "--block-size {} is no multiple of namespace {nsid}'s blocks of {lba} bytes: say --block-size {}",
            load.block_size,
            load.block_size.next_multiple_of(lba)
        )));
    }
    if !load.offset.is_multiple_of(lba) {
        return Err(Failure::new(format!(
            "--offset {} is no multiple of namespace {nsid}'s blocks of {lba} bytes: say --offset {}",
            load.offset,
            load.offset.checked_next_multiple_of(lba).unwrap_or(0)
        )));
    }
    let (bytes, offset) = (namespace.bytes(), load.offset);
    let left = bytes.saturating_sub(offset);
    let size = load.size.unwrap_or(left);
    let blocks = size / load.block_size;
    if left < load.block_size {
        return Err(Failure::new(format!(
            "namespace {nsid} has {bytes} bytes, and none for an I/O of --block-size {} from --offset {offset} on: say less of either",
            load.block_size
        )));
    }
    if size > left {
        return Err(Failure::new(format!(
            "--size {size} is more than namespace {nsid} of {bytes} bytes has from --offset {offset} on: say --size {left} at most"
        )));
    }
    let geometry = Geometry { first_lba: load.offset / lba, lbas: load.block_size / lba };
    if load.verify.is_some() && load.pattern.writes() {
        let share = blocks / u64::from(load.queues);
        if share > ledger::BLOCKS_MAX {
            return Err(Failure::new(format!(
                "--verify remembers at most {} blocks a queue pair: narrow the range with --size",
                ledger::BLOCKS_MAX
            )));
        }
        if share == 0 {
            return Err(Failure::new(format!(
                "--verify gives each queue pair blocks of its own, and the range has only {blocks}: widen it or say --queues {blocks}"
            )));
        }
    }
    Ok((geometry, blocks))
}
