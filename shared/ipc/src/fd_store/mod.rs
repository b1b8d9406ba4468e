//! The descriptor store: systemd's protocol (sd_notify(3), sd_listen_fds(3)), both sides.
//!
//! A service ([`FdStore`]) hands descriptors to its keeper and gets them back when it is started again. The keeper is
//! systemd, or `vireo up` by [`NotifySocket`], [`Kept`] and [`launch`].

mod keeper;
mod launch;
mod message;
#[cfg(test)]
mod tests;

use crate::handoff::packet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use keeper::{Kept, NotifySocket, Outcome, Received};
pub use launch::{EXIT_EXEC, Launched, launch, signal, watch};
pub use message::{Notification, StoreRequest};

/// Longest name: 2,000 of them stay below the 128 KiB that one environment variable may have.
pub const MAX_NAME: usize = 24;
/// Most descriptors that one service stores; systemd's own bound (FileDescriptorStoreMax) is set twice as high.
pub const MAX_STORED: usize = 2000;
/// How long a keeper may leave its socket full.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a descriptor could not be stored or a service not be started.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    /// The name has no place in the store.
    #[error("descriptor name \"{name}\", expected <kind>.<hex id> of at most {MAX_NAME} bytes")]
    BadName {
        /// The name.
        name: String,
    },
    /// [`MAX_STORED`] are stored already.
    #[error("descriptor store is full with {MAX_STORED}")]
    Full,
    /// The keeper does not take messages, or did not answer a barrier.
    #[error("keeper is silent since {} ms", after.as_millis())]
    Silent {
        /// How long was waited.
        after: Duration,
    },
    /// A system call failed.
    #[error("{call} of descriptor store")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// A stored descriptor's name: `<kind>.<hex id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdName(String);

impl FdName {
    /// The name for the object `id` of a kind.
    ///
    /// # Errors
    /// [`FdStoreError::BadName`] if it is longer than [`MAX_NAME`] or has other than letters and digits before the dot.
    pub fn new(kind: &str, id: u64) -> Result<Self, FdStoreError> {
        Self::parse(&format!("{kind}.{id:x}"))
    }

    /// A name as it came back from the keeper.
    pub fn parse(name: &str) -> Result<Self, FdStoreError> {
        let well_formed = name.split_once('.').is_some_and(|(kind, id)| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !kind.is_empty() && kind.chars().all(plain) && u64::from_str_radix(id, 16).is_ok()
        });
        if well_formed && name.len() <= MAX_NAME {
            Ok(Self(name.to_owned()))
        } else {
            Err(FdStoreError::BadName { name: name.to_owned() })
        }
    }

    /// What kind of object it is.
    pub fn kind(&self) -> &str {
        self.0.split_once('.').map_or("", |(kind, _)| kind)
    }

    /// Which object it is.
    pub fn id(&self) -> u64 {
        let id = self.0.split_once('.').and_then(|(_, id)| u64::from_str_radix(id, 16).ok());
        id.unwrap_or_default()
    }
}

impl fmt::Display for FdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service's side of the store. Without a keeper (NOTIFY_SOCKET is not set) nothing is stored, and nothing fails.
#[derive(Debug)]
pub struct FdStore {
    address: Option<UnixAddr>,
    names: BTreeSet<FdName>,
}

impl FdStore {
    /// The store of this process, and what the keeper gave back: to be called once, before other descriptors are opened
    /// by number; a second call gets none back.
    pub fn from_environment() -> Result<(Self, Vec<(String, OwnedFd)>), FdStoreError> {
        let mut store = Self { address: notify_address()?, names: BTreeSet::new() };
        let fds = listen_fds();
        store.names = fds.iter().filter_map(|(name, _)| FdName::parse(name).ok()).collect();
        Ok((store, fds))
    }

    /// Has a descriptor kept. One of this name is replaced. `poll`: the keeper drops it once it hangs up; only for a
    /// client's connection.
    pub fn put(
        &mut self,
        name: &FdName,
        fd: BorrowedFd<'_>,
        poll: bool,
    ) -> Result<(), FdStoreError> {
        if self.names.contains(name) {
            self.remove(name)?;
        } else if self.names.len() >= MAX_STORED {
            return Err(FdStoreError::Full);
        }
        let poll = u8::from(poll);
        self.tell(&format!("FDSTORE=1\nFDNAME={name}\nFDPOLL={poll}\n"), &[fd])?;
        self.names.insert(name.clone());
        Ok(())
    }

    /// Has the keeper forget a descriptor.
    pub fn remove(&mut self, name: &FdName) -> Result<(), FdStoreError> {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[])?;
        self.names.remove(name);
        Ok(())
    }

    /// Waits until the keeper has done everything that it was told before.
    pub fn barrier(&self, timeout: Duration) -> Result<(), FdStoreError> {
        if self.address.is_none() {
            return Ok(());
        }
        let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|source| FdStoreError::System { call: "pipe2", source })?;
        self.tell("BARRIER=1\n", &[theirs.as_fd()])?;
        drop(theirs);
        wait(ours.as_fd(), PollFlags::empty(), Instant::now() + timeout, timeout)
    }

    /// True if there is a keeper.
    pub fn is_kept(&self) -> bool {
        self.address.is_some()
    }

    /// Names that are stored.
    pub fn names(&self) -> impl Iterator<Item = &FdName> {
        self.names.iter()
    }

    fn tell(&self, text: &str, fds: &[BorrowedFd<'_>]) -> Result<(), FdStoreError> {
        let Some(address) = self.address else { return Ok(()) };
        let system = |call| move |source| FdStoreError::System { call, source };
        // A new socket each time: the keeper may be a new one.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)
            .map_err(system("socket"))?;
        connect(fd.as_raw_fd(), &address).map_err(system("connect"))?;
        let deadline = Instant::now() + SEND_TIMEOUT;
        loop {
            match packet::send(fd.as_fd(), text.as_bytes(), fds) {
                Err(Errno::EAGAIN) => wait(fd.as_fd(), PollFlags::POLLOUT, deadline, SEND_TIMEOUT)?,
                result => return result.map_err(system("sendmsg")),
            }
        }
    }
}

fn notify_address() -> Result<Option<UnixAddr>, FdStoreError> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => UnixAddr::new(OsStr::new(&path)),
    };
    address.map(Some).map_err(|source| FdStoreError::System { call: "NOTIFY_SOCKET", source })
}

/// What was passed by LISTEN_FDS to this very process, with its names; closed on exec from now on.
fn listen_fds() -> Vec<(String, OwnedFd)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").unwrap_or(0).min(2 * MAX_STORED as u32) as RawFd;
    // Relaxed: only which of two callers comes first matters.
    if !ours || count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut fds = Vec::new();
    for raw in launch::FIRST..launch::FIRST + count {
        let name = names.next().unwrap_or("unknown").to_owned();
        // SAFETY: fcntl on a number; it fails on one that is not open.
        let open = unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        if open {
            // SAFETY: open (just seen), passed to this process by its keeper (LISTEN_PID) and taken once (TAKEN).
            fds.push((name, unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    fds
}

fn wait(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    deadline: Instant,
    after: Duration,
) -> Result<(), FdStoreError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(FdStoreError::Silent { after });
        }
        let left = left + Duration::from_millis(1);
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, flags)], left) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(source) => return Err(FdStoreError::System { call: "poll", source }),
        }
    }
}
