//! What can go wrong with a block device: a kind that travels, and an error with its source that does not.

/// Why a request failed. `Copy` and one byte wide, for the path where nothing may be allocated; travels in completion
/// ring entries as [`ErrorKind::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum ErrorKind {
    /// The range ends past the device's size.
    #[error("range past the end of the device")]
    OutOfRange = 1,
    /// A write to a device that is read-only.
    #[error("device is read-only")]
    ReadOnly = 2,
    /// A write found no space below (ENOSPC, EDQUOT).
    #[error("no space left below the device")]
    NoSpace = 3,
    /// The medium could not be read or written (EIO).
    #[error("medium error")]
    Medium = 4,
    /// The data compared is not the data stored.
    #[error("compare failed")]
    CompareFailed = 5,
    /// A resource is short for now; the same request may succeed later.
    #[error("busy")]
    Busy = 6,
    /// The device does not do this operation.
    #[error("operation not supported")]
    Unsupported = 7,
    /// The backend, or the channel to it, is no more. The request may or may not have taken effect.
    #[error("channel is gone")]
    Gone = 8,
    /// A memory range is not there, or its memory faulted.
    #[error("guest memory fault")]
    Fault = 9,
    /// The request contradicts itself: its memory ranges do not add up to its length, an offset is not aligned.
    #[error("invalid request")]
    Invalid = 10,
    /// Anything else.
    #[error("internal error")]
    Internal = 11,
}

impl ErrorKind {
    /// The kind that `code` stands for; `None` for 0 (success) and for unknown codes.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::OutOfRange,
            2 => Self::ReadOnly,
            3 => Self::NoSpace,
            4 => Self::Medium,
            5 => Self::CompareFailed,
            6 => Self::Busy,
            7 => Self::Unsupported,
            8 => Self::Gone,
            9 => Self::Fault,
            10 => Self::Invalid,
            11 => Self::Internal,
            _ => return None,
        })
    }

    /// The code that stands for this kind on the wire; never 0.
    pub fn code(self) -> u32 {
        u32::from(self as u8)
    }

    /// The kind that a system call's failure amounts to.
    pub fn from_errno(errno: nix::errno::Errno) -> Self {
        use nix::errno::Errno;
        match errno {
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => Self::NoSpace,
            Errno::EROFS | Errno::EPERM | Errno::EBADF => Self::ReadOnly,
            Errno::EFAULT => Self::Fault,
            Errno::EOPNOTSUPP | Errno::ENOSYS => Self::Unsupported,
            Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM | Errno::EBUSY => Self::Busy,
            Errno::ENXIO | Errno::ENODEV => Self::Gone,
            Errno::EINVAL => Self::Invalid,
            Errno::EIO | Errno::EREMOTEIO | Errno::EUCLEAN => Self::Medium,
            _ => Self::Internal,
        }
    }
}

/// How a request ended.
pub type Outcome = Result<(), ErrorKind>;

/// The code of an outcome on the wire: 0 for success, else [`ErrorKind::code`].
pub fn outcome_code(outcome: Outcome) -> u32 {
    match outcome {
        Ok(()) => 0,
        Err(kind) => kind.code(),
    }
}

/// The outcome of a code on the wire; an unknown code (a newer or a corrupt peer) is [`ErrorKind::Internal`].
pub fn outcome_from_code(code: u32) -> Outcome {
    match code {
        0 => Ok(()),
        code => Err(ErrorKind::from_code(code).unwrap_or(ErrorKind::Internal)),
    }
}

/// Why a device could not be opened, made, resized or erased.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    /// The kind.
    pub kind: ErrorKind,
    /// What was tried, with its arguments.
    pub what: String,
    /// The cause below, if there is one.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a cause of its own.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// A failed system call.
    pub fn system(what: impl Into<String>, errno: nix::errno::Errno) -> Self {
        Self {
            kind: ErrorKind::from_errno(errno),
            what: what.into(),
            source: Some(Box::new(errno)),
        }
    }

    /// A failed call that reports `std::io::Error`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        let errno = nix::errno::Errno::from_raw(source.raw_os_error().unwrap_or(0));
        Self {
            kind: ErrorKind::from_errno(errno),
            what: what.into(),
            source: Some(Box::new(source)),
        }
    }
}
