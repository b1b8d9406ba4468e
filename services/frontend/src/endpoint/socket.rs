//! The socket of an endpoint, which is this process's as long as the directory's lock is.

use super::EndpointError;
use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Name of the socket in the endpoint's directory, as every vfio-user client of this kind expects it.
const NAME: &str = "cntrl";

/// A socket that is taken away when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// The directory, locked: two frontends that both find a dead one's socket do not both replace it, one of them the
    /// other's. The lock of a process that is killed goes with it.
    _lock: File,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock goes after this. An error means that somebody took the file away.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Listens on the socket in `directory`. One that nobody answers on is replaced.
pub(super) fn listen(directory: &Path) -> Result<(UnixListener, Socket), EndpointError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| EndpointError::Socket { act, path, source }
    };
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o750);
    builder.create(directory).map_err(failed("create", directory))?;
    let path = directory.join(NAME);
    let lock = File::open(directory).map_err(failed("open", directory))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(EndpointError::InUse { path }),
        Err(TryLockError::Error(source)) => return Err(failed("lock", directory)(source)),
    }
    // Whoever serves here without our lock is no frontend of ours, but may be alive.
    if UnixStream::connect(&path).is_ok() {
        return Err(EndpointError::InUse { path });
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("replace", &path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed("listen on", &path))?;
    let socket = Socket { path, _lock: lock };
    let mode = Permissions::from_mode(0o660);
    std::fs::set_permissions(&socket.path, mode)
        .map_err(failed("set the mode of", &socket.path))?;
    Ok((listener, socket))
}
