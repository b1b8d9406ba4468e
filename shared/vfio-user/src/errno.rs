//! Error numbers as the protocol carries them: UNIX errno values in a reply's header.

use std::fmt;

/// A UNIX error number in the `error` field of a reply's header. Any value is data: a peer may
/// send numbers that have no name here, and zero beside a set error flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such entry: an unmap of a range that is not mapped.
    pub const ENOENT: Self = Self(2);
    /// Input or output failed.
    pub const EIO: Self = Self(5);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// Permission denied.
    pub const EACCES: Self = Self(13);
    /// Bad address.
    pub const EFAULT: Self = Self(14);
    /// Busy.
    pub const EBUSY: Self = Self(16);
    /// Already there: a map over an existing mapping.
    pub const EEXIST: Self = Self(17);
    /// Invalid argument: the message is malformed or out of range.
    pub const EINVAL: Self = Self(22);
    /// No space left: a table is full.
    pub const ENOSPC: Self = Self(28);
    /// Value too large.
    pub const EOVERFLOW: Self = Self(75);
    /// Not supported: a message of the protocol that this server does not serve.
    pub const ENOTSUP: Self = Self(95);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i32::try_from(self.0) {
            Ok(raw) if raw != 0 => write!(f, "{}", std::io::Error::from_raw_os_error(raw)),
            _ => write!(f, "error number {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    /// The error's own number, or [`Errno::EIO`] where it has none.
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error().and_then(|raw| u32::try_from(raw).ok()) {
            Some(raw) if raw != 0 => Self(raw),
            _ => Self::EIO,
        }
    }
}
