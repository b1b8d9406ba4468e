//! Opening a file: creation, lock, size, and what its O_DIRECT asks for.

use super::buffer::{BUFFER_ALIGN, OwnBuffer};
use super::{Alignment, system};
use crate::error::{Error, ErrorKind};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Smallest unit in which a size is served: the smallest logical block.
const SIZE_UNIT: u64 = 512;
/// Units that are tried with O_DIRECT where the kernel does not tell, in this order.
const UNITS: [u64; 2] = [512, 4096];
/// Pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How a file is to be opened.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The file or block device.
    pub path: PathBuf,
    /// Bytes to serve; 0 for all there are. A regular file that is smaller grows, unless it is read-only.
    pub size: u64,
    /// Make a regular file if there is nothing; `size` is needed then.
    pub create: bool,
    /// Bypass the page cache if the file can.
    pub direct: bool,
    /// Open for reading only.
    pub read_only: bool,
    /// How long to wait for a predecessor's lock, that is, for its last request to end.
    pub lock_wait: Duration,
    /// Have threads do the I/O even where io_uring is to be had.
    pub threads: bool,
}

/// What [`FileOptions::open`] found.
pub(super) struct Opened {
    pub file: File,
    pub size: u64,
    pub alignment: Alignment,
    pub direct: bool,
    pub block_device: bool,
}

impl FileOptions {
    /// Options for a path, all else as is usual: served whole, O_DIRECT, for writing, five seconds for the lock.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            size: 0,
            create: false,
            direct: true,
            read_only: false,
            lock_wait: Duration::from_secs(5),
            threads: false,
        }
    }

    pub(super) fn open(&self) -> Result<Opened, Error> {
        let (file, opened_direct) = self.open_file()?;
        let kind = file.metadata().map_err(|error| self.failed("stat", error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = format!("{} is neither a file nor a block device", self.path.display());
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        // It was for what is no disk, such as a pipe. Left on, io_uring would try every operation on the serve loop first.
        let file = without(file, OFlag::O_NONBLOCK)?;
        self.lock(&file)?;
        let block_device = kind.is_block_device();
        let may_grow = !block_device && !self.read_only;
        let mut size = settle_size(&file, self.size, may_grow, SIZE_UNIT)?;
        let probed = opened_direct.then(|| alignment(&file)).flatten();
        let file = match probed {
            // What O_DIRECT asks for is not to be had: the same description without it, so that the lock stays.
            None if opened_direct => without(file, OFlag::O_DIRECT)?,
            _ => file,
        };
        let alignment = probed.unwrap_or(Alignment { unit: 1, memory: 1 });
        size -= size % alignment.unit;
        Ok(Opened { file, size, alignment, direct: probed.is_some(), block_device })
    }

    /// Opens with O_DIRECT if wanted, without it where the file system refuses the flag.
    fn open_file(&self) -> Result<(File, bool), Error> {
        let open = |flags| {
            let create = self.create && !self.read_only;
            let mut options = OpenOptions::new();
            options.read(true).write(!self.read_only).create(create).truncate(false);
            options.mode(0o600).custom_flags(flags | libc::O_CLOEXEC | libc::O_NONBLOCK);
            options.open(&self.path)
        };
        if self.direct {
            match open(libc::O_DIRECT) {
                Ok(file) => return Ok((file, true)),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(self.failed("open", error)),
            }
        }
        Ok((open(0).map_err(|error| self.failed("open", error))?, false))
    }

    fn lock(&self, file: &File) -> Result<(), Error> {
        let deadline = Instant::now() + self.lock_wait;
        loop {
            let tried = if self.read_only { file.try_lock_shared() } else { file.try_lock() };
            match tried {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(error)) => return Err(self.failed("lock", error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let what = format!("{} is locked by another process", self.path.display());
                    return Err(Error::new(ErrorKind::Busy, what));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            }
        }
    }

    fn failed(&self, call: &str, error: std::io::Error) -> Error {
        Error::io(format!("{call} {}", self.path.display()), error)
    }
}

/// The size to serve: `wanted`, or what there is if that is 0, in whole units. Lengthens a file that may grow.
pub(super) fn settle_size(
    file: &File,
    wanted: u64,
    may_grow: bool,
    unit: u64,
) -> Result<u64, Error> {
    // The end by seeking, because a block device's stat has no size; nobody uses the position.
    let found = lseek(file, 0, Whence::SeekEnd).map_err(|errno| Error::system("seek", errno))?;
    let found = u64::try_from(found).unwrap_or(0);
    let wanted = if wanted == 0 { found } else { wanted };
    if wanted > found {
        if !may_grow {
            let what = format!("{wanted} bytes are wanted, there are {found}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        file.set_len(wanted).map_err(|error| Error::io(format!("grow to {wanted}"), error))?;
    }
    let size = wanted - wanted % unit.max(SIZE_UNIT);
    if size == 0 {
        let what = format!("{wanted} bytes are less than one block; give the size");
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    Ok(size)
}

/// What direct transfers need: what the kernel says, or, before Linux 6.1, the smallest unit that can be read. `None` if
/// the file cannot do them.
fn alignment(file: &File) -> Option<Alignment> {
    match system::direct_alignment(file) {
        Some(Alignment { unit: 0, .. } | Alignment { memory: 0, .. }) => None,
        Some(alignment) => Some(alignment),
        // A read of a hole succeeds with any memory, so that cannot be found out by trying.
        None => Some(Alignment { unit: probe_unit(file)?, memory: BUFFER_ALIGN as u64 }),
    }
}

fn probe_unit(file: &File) -> Option<u64> {
    let mut buffer = OwnBuffer::new(BUFFER_ALIGN);
    let mut reads = |unit: u64| {
        let Some(part) = buffer.bytes_mut().get_mut(..unit as usize) else { return false };
        loop {
            match pread(file, &mut *part, 0) {
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    };
    UNITS.into_iter().find(|&unit| reads(unit))
}

fn without(file: File, flag: OFlag) -> Result<File, Error> {
    let failed = |errno| Error::system(format!("clear {flag:?}"), errno);
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(failed)?);
    fcntl(&file, FcntlArg::F_SETFL(flags - flag)).map_err(failed)?;
    Ok(file)
}
