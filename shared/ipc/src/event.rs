//! Event descriptors: our own, for kicks between processes, and the ones that a client gives for interrupts.

use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::eventfd::{EfdFlags, EventFd as RawEventFd};
use nix::unistd::{read, write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What an event descriptor's link under `/proc/self/fd` says. Whatever else a client sends could block, or run code
/// of a file system, when it is written to.
const EVENTFD_LINK: &str = "anon_inode:[eventfd]";

/// Why an event descriptor could not be made, taken or signalled.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// A descriptor from outside is something else than an eventfd.
    #[error("descriptor is {found}, not an eventfd")]
    NotEventFd {
        /// Its link under `/proc/self/fd`.
        found: String,
    },
    /// The write was broken off by a signal: the descriptor blocks, and the watchdog noticed
    /// ([`crate::watchdog`]). The counter was not raised.
    #[error("eventfd write broken off: the descriptor blocks")]
    Interrupted,
    /// A system call failed.
    #[error("{call} of eventfd")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// An eventfd.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// Makes one with counter 0, nonblocking, closed on exec.
    pub fn create() -> Result<Self, EventError> {
        RawEventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map(|event| Self { fd: event.into() })
            .map_err(|source| EventError::System { call: "eventfd2", source })
    }

    /// Takes a descriptor that a client or a peer sent, if it is an eventfd. Its flags are the sender's: it may block
    /// now or later, so whoever signals it from a thread that must not stop does so under [`crate::watchdog`].
    pub fn from_client(fd: OwnedFd) -> Result<Self, EventError> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let link = readlink(path.as_str())
            .map_err(|source| EventError::System { call: "readlink", source })?;
        if link.as_encoded_bytes() == EVENTFD_LINK.as_bytes() {
            Ok(Self { fd })
        } else {
            Err(EventError::NotEventFd { found: link.to_string_lossy().into_owned() })
        }
    }

    /// Adds 1 to the counter: one write, nothing else. A full counter (EAGAIN) counts as signalled, since the reader
    /// has not come to it yet.
    ///
    /// # Errors
    /// [`EventError::Interrupted`] if a signal broke a blocking write.
    pub fn signal(&self) -> Result<(), EventError> {
        signal(self.fd.as_fd())
    }

    /// Takes the counter's value and sets it to 0; 0 if nothing was signalled. Only for descriptors of ours: a
    /// blocking one would wait here.
    pub fn drain(&self) -> Result<u64, EventError> {
        let mut counter = [0; 8];
        loop {
            match read(&self.fd, &mut counter) {
                Ok(_) => return Ok(u64::from_ne_bytes(counter)),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(EventError::System { call: "read", source }),
            }
        }
    }

    /// A second descriptor of the same eventfd.
    pub fn try_clone(&self) -> Result<Self, EventError> {
        self.fd.try_clone().map(|fd| Self { fd }).map_err(|error| EventError::System {
            call: "dup",
            source: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        })
    }

    /// The descriptor itself, given up.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// [`EventFd::signal`] for a descriptor that [`EventFd::from_client`] took and gave up again.
pub fn signal(fd: BorrowedFd<'_>) -> Result<(), EventError> {
    match write(fd, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(Errno::EINTR) => Err(EventError::Interrupted),
        Err(source) => Err(EventError::System { call: "write", source }),
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    #[test]
    fn signals_add_up_until_drained() {
        let event = EventFd::create().unwrap();
        assert_eq!(event.drain().unwrap(), 0);
        event.signal().unwrap();
        event.try_clone().unwrap().signal().unwrap();
        assert_eq!(event.drain().unwrap(), 2);
        assert_eq!(event.drain().unwrap(), 0);
    }

    #[test]
    fn full_counter_counts_as_signalled() {
        let event = EventFd::create().unwrap();
        write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal().unwrap();
        assert_eq!(event.drain().unwrap(), u64::MAX - 1);
    }

    #[test]
    fn only_true_eventfds_are_taken_from_clients() {
        let event = EventFd::create().unwrap();
        let taken = EventFd::from_client(event.try_clone().unwrap().into_fd()).unwrap();
        taken.signal().unwrap();
        assert_eq!(event.drain().unwrap(), 1);

        let memory = memfd_create(c"anon_inode:[eventfd]", MFdFlags::MFD_CLOEXEC).unwrap();
        let (pipe, _other) = nix::unistd::pipe().unwrap();
        for fd in [memory, pipe] {
            let error = EventFd::from_client(fd).unwrap_err();
            assert!(matches!(error, EventError::NotEventFd { .. }), "{error}");
        }
    }
}
