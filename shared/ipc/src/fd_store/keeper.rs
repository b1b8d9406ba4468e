//! The keeper's side: receives notifications, keeps descriptors.

use super::FdStoreError;
use super::message::{Notification, StoreRequest};
use crate::handoff::packet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Longest notification; systemd's own bound is 4 KiB.
const MAX_NOTIFICATION: usize = 8192;

/// The socket that services know as NOTIFY_SOCKET. Its path is removed when it is dropped.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
    path: PathBuf,
}

/// A notification as it came in.
#[derive(Debug)]
pub struct Received {
    /// The sender, as the kernel says.
    pub pid: i32,
    /// What it said.
    pub notification: Notification,
    /// The descriptors beside it.
    pub fds: Vec<OwnedFd>,
}

impl NotifySocket {
    /// Binds the socket, for the owner alone. A file that is there is replaced: the caller is the only keeper.
    pub fn bind(path: &Path) -> Result<Self, FdStoreError> {
        let system = |call| move |source| FdStoreError::System { call, source };
        let address = UnixAddr::new(path).map_err(system("address"))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)
            .map_err(system("socket"))?;
        setsockopt(&fd, sockopt::PassCred, &true).map_err(system("SO_PASSCRED"))?;
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(system("fchmod"))?;
        std::fs::remove_file(path).ok();
        bind(fd.as_raw_fd(), &address).map_err(system("bind"))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Takes the next notification; `None` if there is none. One without credentials, too long, or whose descriptors
    /// got lost, is dropped.
    pub fn receive(&self) -> Result<Option<Received>, FdStoreError> {
        let mut buffer = [0; MAX_NOTIFICATION];
        loop {
            let packet = match packet::receive(self.fd.as_fd(), &mut buffer) {
                Ok(packet) => packet,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(source) => return Err(FdStoreError::System { call: "recvmsg", source }),
            };
            if packet.truncated || packet.lost_descriptors {
                continue;
            }
            let Some(credentials) = packet.credentials else { continue };
            let notification = Notification::parse(&buffer[..packet.length]);
            return Ok(Some(Received { pid: credentials.pid, notification, fds: packet.fds }));
        }
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for NotifySocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// The descriptors that are kept for one service, in the order in which they came.
#[derive(Debug)]
pub struct Kept {
    limit: usize,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    fd: OwnedFd,
    poll: bool,
}

/// What became of a request to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or nothing to do.
    Done,
    /// That many descriptors were dropped: the store is full.
    Full(usize),
}

impl Kept {
    /// An empty store for at most `limit` descriptors.
    pub fn new(limit: usize) -> Self {
        Self { limit, entries: Vec::new() }
    }

    /// Does what a notification asks of the store. A descriptor whose open file is kept already is dropped, whatever
    /// its name.
    pub fn apply(&mut self, request: &StoreRequest, fds: Vec<OwnedFd>) -> Outcome {
        match request {
            // Dropping a barrier's descriptor is the answer.
            StoreRequest::Nothing | StoreRequest::Barrier => Outcome::Done,
            StoreRequest::Remove { name } => {
                self.entries.retain(|entry| &entry.name != name);
                Outcome::Done
            }
            StoreRequest::Keep { name, poll } => {
                let mut dropped = 0;
                for fd in fds {
                    if self.entries.iter().any(|e| same_open_file(e.fd.as_fd(), fd.as_fd())) {
                        continue;
                    }
                    if self.entries.len() >= self.limit {
                        dropped += 1;
                        continue;
                    }
                    self.entries.push(Entry { name: name.clone(), fd, poll: *poll });
                }
                if dropped == 0 { Outcome::Done } else { Outcome::Full(dropped) }
            }
        }
    }

    /// Drops those that hung up (unless FDPOLL=0 was said).
    pub fn prune(&mut self) {
        self.entries.retain(|entry| {
            let mut polled = [PollFd::new(entry.fd.as_fd(), PollFlags::empty())];
            let ready = entry.poll && poll(&mut polled, PollTimeout::ZERO) == Ok(1);
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
            !(ready && polled[0].revents().is_some_and(|events| events.intersects(gone)))
        });
    }

    /// Names and descriptors, to hand to the service's successor.
    pub fn entries(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), entry.fd.as_fd()))
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if none is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

/// True if both descriptors are of one open file description. (Inodes do not tell: all eventfds share one.)
fn same_open_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let pid = std::process::id() as libc::c_long;
    let (a, b) = (libc::c_long::from(a.as_raw_fd()), libc::c_long::from(b.as_raw_fd()));
    // SAFETY: kcmp compares and changes nothing. A kernel without it, or that refuses, gives -1: not the same.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, libc::c_long::from(KCMP_FILE), a, b) == 0 }
}
