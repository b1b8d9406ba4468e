//! Takes a drive over from itself: `heir pcie:DDDD:BB:DD.F [NSID]`. DESTROYS what the namespace holds.
//!
//! What a process that is killed leaves behind is played by a controller that is never dropped, with requests outstanding, and
//! its keeper by a table. Successors find all that was kept, then all but the device, verify data and leave the drive likewise.
//! Others are processes of their own, which `strace` kills as they make a certain write to a register or to configuration
//! space, in the middle of the bring-up. The last one wants the drive no more. A table that is corrupt is refused. It prints
//! one line a step and ends with status 1 at the first thing that is not as it has to be.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::fd_store::{FdName, FdStore, FdStoreError, launch};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nvme_driver::transport::vfio::{Holder, Keeper, Keeping, retire};
use nvme_driver::{Address, Controller, Options, QueueOptions, Request};
use nvme_spec::{Lba, Nsid, QueueId};

type Failure = Box<dyn Error>;
/// Bytes of a request.
const LENGTH: usize = 64 << 10;
/// Requests that are outstanding when a process is killed.
const OUTSTANDING: u64 = 8;
/// Writes at which successors are killed: as the controller is to be disabled, when it is, and as it is to be enabled.
const KILLED: [(u32, &str); 3] = [(2, "enabled"), (3, "disabled"), (6, "set up")];
/// What such a successor is called with.
const DOOMED: &str = "doomed";

/// What is kept, and what a successor was given of it.
#[derive(Debug, Default)]
struct Shelf {
    kept: Mutex<BTreeMap<FdName, OwnedFd>>,
    given: Mutex<BTreeMap<FdName, OwnedFd>>,
}

impl Shelf {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<FdName, OwnedFd>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given(&self) -> MutexGuard<'_, BTreeMap<FdName, OwnedFd>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a successor gets if everything of this kind is lost.
    fn succeed(&self, lost: &str) -> Result<(), Failure> {
        self.kept().retain(|name, _| name.kind() != lost);
        let mut given = self.given();
        given.clear();
        for (name, fd) in &*self.kept() {
            given.insert(name.clone(), fd.try_clone()?);
        }
        Ok(())
    }
}

impl Keeper for Shelf {
    fn put(&self, name: &FdName, fd: BorrowedFd<'_>) -> Result<(), FdStoreError> {
        let fd = fd.try_clone_to_owned().map_err(|_| FdStoreError::Full)?;
        self.kept().insert(name.clone(), fd);
        Ok(())
    }

    fn remove(&self, name: &FdName) -> Result<(), FdStoreError> {
        self.kept().remove(name);
        Ok(())
    }

    fn settle(&self) -> Result<(), FdStoreError> {
        Ok(())
    }

    fn take(&self, name: &FdName) -> Option<OwnedFd> {
        self.given().remove(name)
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).peekable();
    let doomed = arguments.next_if(|first| first == DOOMED).is_some();
    let address = arguments.next().ok_or("usage: heir pcie:DDDD:BB:DD.F [NSID]")?;
    if doomed {
        return be_killed(&address);
    }
    let nsid = Nsid(arguments.next().map_or(Ok(1), |text| text.parse())?);
    let Address::Pcie(drive) = address.parse()? else {
        return Err("that is no pci function".into());
    };
    let shelf = Arc::new(Shelf::default());
    let keeper: Arc<dyn Keeper> = shelf.clone();
    let connect = || Controller::connect_kept(&address, &Options::default(), Some(&keeper));

    let first = connect()?;
    let holder = Holder { pid: 1, started: 7 };
    let lease: OwnedFd = File::open("/dev/null")?.into();
    keeping(&first)?.lend(QueueId(2), holder, lease.as_fd())?;
    die(first, nsid, 1)?;
    for (seed, lost) in [(2, "nothing"), (3, "nvdrive")] {
        shelf.succeed(lost)?;
        let next = connect()?;
        let inherited = keeping(&next)?.take_inherited();
        if !matches!(&*inherited, [lease] if lease.qid == QueueId(2) && lease.holder == holder) {
            return Err(format!("leases {inherited:?}").into());
        }
        if !next.reserve_queue(QueueId(2)) {
            return Err("a queue pair that was lent is not to be used".into());
        }
        die(next, nsid, seed)?;
        println!("taken over with {lost} lost");
    }

    for (write, state) in KILLED {
        shelf.kill(&address, write)?;
        println!("killed at a controller that was {state}");
    }
    shelf.succeed("nothing")?;
    die(connect()?, nsid, 4)?;

    shelf.succeed("nothing")?;
    let kept: Vec<_> = shelf
        .kept()
        .iter()
        .map(|(name, fd)| Ok((name.clone(), fd.try_clone()?)))
        .collect::<Result<_, Failure>>()?;
    if !retire(drive, &keeper) || !shelf.kept().is_empty() {
        return Err("a drive that nobody wants is kept".into());
    }
    println!("given up");

    shelf.kept().extend(kept);
    for (name, fd) in &mut *shelf.kept() {
        if name.kind() == "nvtable" {
            *fd = File::open("/dev/null")?.into();
        }
    }
    shelf.succeed("nothing")?;
    match connect() {
        // By those that never died.
        Err(error) if error.to_string().contains("is in use") && shelf.kept().is_empty() => {}
        other => return Err(format!("with a corrupt table: {other:?}").into()),
    }
    println!("a corrupt table is refused");
    Ok(())
}

impl Shelf {
    /// Starts a successor that is killed at its `write`th write to the drive.
    fn kill(&self, address: &str, write: u32) -> Result<(), Failure> {
        let inject = format!("inject=pwrite64:signal=SIGKILL:when={write}");
        // The shell's own number is that of the program that takes its place.
        let shell = "LISTEN_PID=$$ exec \"$0\" \"$@\"";
        let program = std::env::current_exe()?;
        let arguments = ["-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", &inject];
        let words = ["/bin/sh", "-c", shell].into_iter().map(OsStr::new);
        let child = [program.as_os_str(), OsStr::new(DOOMED), OsStr::new(address)];
        let arguments: Vec<&OsStr> =
            arguments.into_iter().map(OsStr::new).chain(words).chain(child).collect();
        let kept = self.kept();
        let fds = kept.iter().map(|(name, fd)| (name.to_string(), fd.as_fd()));
        let fds: Vec<(String, BorrowedFd<'_>)> = fds.collect();
        let fds = fds.iter().map(|(name, fd)| (name.as_str(), *fd));
        let launched = launch(Path::new("/usr/bin/strace"), &arguments, &[], fds)?;
        match waitpid(launched.pid, None)? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok(()),
            other => Err(format!("a successor was not killed at write {write}: {other:?}").into()),
        }
    }
}

/// Takes a drive over from another process, and is killed while it does.
fn be_killed(address: &str) -> Result<(), Failure> {
    let (_, fds) = FdStore::from_environment()?;
    let shelf = Shelf::default();
    for (name, fd) in fds {
        shelf.given().insert(FdName::parse(&name)?, fd);
    }
    let keeper: Arc<dyn Keeper> = Arc::new(shelf);
    let controller = Controller::connect_kept(address, &Options::default(), Some(&keeper))?;
    Err(format!("{controller:?} was brought up").into())
}

fn keeping(controller: &Controller) -> Result<&Keeping, Failure> {
    controller.keeping().ok_or_else(|| "the drive is not kept".into())
}

/// Writes and reads, then leaves the drive with reads outstanding, as a process does that is killed.
fn die(controller: Controller, nsid: Nsid, seed: u8) -> Result<(), Failure> {
    let namespace = controller.namespace(nsid)?;
    let mut queue = controller.queue_pair(&QueueOptions::default())?;
    let data: Vec<u8> =
        (0..LENGTH).map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(seed)).collect();
    let mut buffer = controller.allocate(LENGTH)?;
    buffer.copy_from(&data);
    let written = queue
        .run(Request::write(&namespace, Lba(seed.into()), buffer))
        .map_err(|rejected| rejected.reason)?;
    written.result?;
    let buffer = controller.allocate(LENGTH)?;
    let read = queue
        .run(Request::read(&namespace, Lba(seed.into()), buffer))
        .map_err(|rejected| rejected.reason)?;
    read.result?;
    if read.buffer.is_none_or(|buffer| buffer.to_vec() != data) {
        return Err("what was read is not what was written".into());
    }
    for token in 0..OUTSTANDING {
        let read = Request::read(&namespace, Lba(0), controller.allocate(LENGTH)?);
        queue.submit(read.with_token(token)).map_err(|rejected| rejected.reason)?;
    }
    std::mem::forget((queue, namespace, controller));
    Ok(())
}
