//! The manager's state file: the configuration that is served now, which parts of it were made through the API, what is
//! still being removed, and the names that must last. One JSON file in the state directory, replaced as a whole; a lock
//! beside it keeps a second manager out.

mod encoding;
pub mod file_system;

use crate::identity::Identities;
use crate::made::Made;
use file_system::{Disk, FileSystem};
use service::config::Config;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Version of the file's format: 1 had no objects of the API, 2 no identifiers of theirs.
const VERSION: u64 = 3;
/// Name of the file in the state directory.
const FILE: &str = "manager.json";
/// Name of the lock beside it.
const LOCK: &str = "manager.lock";

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{act} {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another manager runs.
    #[error("{} is locked: another manager runs on this state_dir; stop it first", path.display())]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// The file was written by a newer version.
    #[error(
        "{} has version {found}, this manager knows up to {VERSION}; start the version that wrote it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The file is none of ours, or damaged.
    #[error(
        "{} is not a manager's state: {reason}; restore it, or move it away to begin with new NQNs and UUIDs",
        path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What the manager must know again after its death.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The configuration that was accepted last; absent before the first.
    pub config: Option<Config>,
    /// Earlier configurations with bdevs that are wanted no more but may still be in use.
    pub leaving: Vec<Config>,
    /// Names that were made.
    pub identities: Identities,
    /// What of the configuration was made through the API.
    pub made: Made,
}

/// The file, held by this process alone.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    path: PathBuf,
    state: State,
    files: Box<dyn FileSystem>,
    /// Locked as long as it is open.
    _lock: File,
}

impl Store {
    /// Takes the lock and reads the file in `directory`, which is made if need be. No file is an empty state.
    ///
    /// # Errors
    /// [`StoreError`]; the file is left as it is.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        Self::open_with(directory, Box::new(Disk))
    }

    /// [`Store::open`] that writes by way of `files`.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(directory: &Path, files: Box<dyn FileSystem>) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(failed("make", directory))?;
        let lock_path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { path: lock_path }),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &lock_path)(source)),
        }
        let path = directory.join(FILE);
        let state = match service::state::read(&path).map_err(failed("read", &path))? {
            Some(bytes) => encoding::decode(&path, &bytes)?,
            None => State::default(),
        };
        Ok(Self { directory: directory.to_owned(), path, state, files, _lock: lock })
    }

    /// What is stored.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Stores another state: when this returns, it outlives a crash of the machine.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what was stored before stands, unless it could only not be made durable
    /// ([`file_system::replace`]).
    pub fn replace(&mut self, state: State) -> Result<(), StoreError> {
        let content = encoding::encode(&state);
        file_system::replace(&mut *self.files, &self.directory, &self.path, &content)
            .map_err(failed("write", &self.path))?;
        self.state = state;
        Ok(())
    }
}

fn failed(act: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
