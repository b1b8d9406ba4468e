//! The manager's state file: the configuration that is served now, what is still being removed, and the names that must
//! last. One JSON file in the state directory, replaced as a whole; a lock beside it keeps a second manager out.

use crate::identity::{Identities, NamespaceKey, Uuid};
use serde::{Deserialize, Serialize};
use service::config::Config;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Version of the file's format.
const VERSION: u64 = 1;
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
}

/// The file, held by this process alone.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    state: State,
    /// Locked as long as it is open.
    _lock: File,
}

impl Store {
    /// Takes the lock and reads the file in `directory`, which is made if need be. No file is an empty state.
    ///
    /// # Errors
    /// [`StoreError`]; the file is left as it is.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
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
            Some(bytes) => decode(&path, &bytes)?,
            None => State::default(),
        };
        Ok(Self { path, state, _lock: lock })
    }

    /// What is stored.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Stores another state: when this returns, it outlives a crash of the machine.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what was stored before stands.
    pub fn replace(&mut self, state: State) -> Result<(), StoreError> {
        service::state::write(&self.path, &encode(&state)).map_err(failed("write", &self.path))?;
        self.state = state;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Header {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u64,
    subsystems: Vec<SubsystemRow>,
    namespaces: Vec<NamespaceRow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leaving: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubsystemRow {
    name: String,
    nqn: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceRow {
    subsystem: String,
    nsid: u32,
    bdev: String,
    uuid: String,
}

fn failed(act: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { act, path: path.clone(), source }
}

fn encode(state: &State) -> Vec<u8> {
    let identities = &state.identities;
    let subsystem =
        |(name, nqn): (&String, &String)| SubsystemRow { name: name.clone(), nqn: nqn.clone() };
    let namespace = |(key, uuid): (&NamespaceKey, &Uuid)| NamespaceRow {
        subsystem: key.subsystem.clone(),
        nsid: key.nsid,
        bdev: key.bdev.clone(),
        uuid: uuid.to_string(),
    };
    let contents = Contents {
        version: VERSION,
        subsystems: identities.subsystems.iter().map(subsystem).collect(),
        namespaces: identities.namespaces.iter().map(namespace).collect(),
        config: state.config.as_ref().map(Config::to_toml),
        leaving: state.leaving.iter().map(Config::to_toml).collect(),
    };
    // Text and numbers: nothing in it that JSON cannot say.
    let mut bytes = serde_json::to_vec_pretty(&contents).expect("state is encodable");
    bytes.push(b'\n');
    bytes
}

fn decode(path: &Path, bytes: &[u8]) -> Result<State, StoreError> {
    let wrong = |reason: String| StoreError::Format { path: path.to_owned(), reason };
    let json = |error: serde_json::Error| wrong(error.to_string());
    let Header { version } = serde_json::from_slice(bytes).map_err(json)?;
    if version > VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found: version });
    }
    if version < VERSION {
        return Err(wrong(format!("there was no version {version}")));
    }
    let contents: Contents = serde_json::from_slice(bytes).map_err(json)?;
    let mut identities = Identities::default();
    for SubsystemRow { name, nqn } in contents.subsystems {
        if identities.subsystems.insert(name.clone(), nqn).is_some() {
            return Err(wrong(format!("subsystem {name} is there twice")));
        }
    }
    for NamespaceRow { subsystem, nsid, bdev, uuid } in contents.namespaces {
        let uuid = uuid.parse().map_err(|()| wrong(format!("\"{uuid}\" is not a UUID")))?;
        let again = wrong(format!("namespace {nsid} of {subsystem} is there twice"));
        if identities.namespaces.insert(NamespaceKey { subsystem, nsid, bdev }, uuid).is_some() {
            return Err(again);
        }
    }
    let parse = |text: String| {
        Config::parse(&text, []).map_err(|mistakes| {
            let first = mistakes.first().map_or_else(String::new, ToString::to_string);
            wrong(format!("its configuration is not valid: {first}"))
        })
    };
    Ok(State {
        config: contents.config.map(parse).transpose()?,
        leaving: contents.leaving.into_iter().map(parse).collect::<Result<_, _>>()?,
        identities,
    })
}

#[cfg(test)]
mod tests;
