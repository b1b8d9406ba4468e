//! What a host changed of a namespace and must outlive every process: its LBA format and its write protection. One
//! small JSON file for each subsystem, replaced by rename.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of the file's format; a file of another version is refused and left alone.
const VERSION: u32 = 1;

/// Why the file could not be read or written.
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
        source: std::io::Error,
    },
    /// The file is none of ours.
    #[error("{} is not a namespace state file: {reason}; move it away to start with none", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a host changed of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// The bdev it was changed with; another bdev under the same NSID starts anew.
    pub bdev: String,
    /// Logical block size as a shift, if the namespace was formatted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_shift: Option<u32>,
    /// Write protection state of feature 84h that outlives power cycles (1 write protect, 3 permanent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    namespaces: BTreeMap<u32, Changes>,
}

/// The file of one subsystem.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    namespaces: BTreeMap<u32, Changes>,
}

impl Store {
    /// Reads the subsystem's file below `directory`; no file means no changes.
    ///
    /// # Errors
    /// [`StoreError`]; the file is left as it is.
    pub fn open(directory: &Path, subsystem: &str) -> Result<Self, StoreError> {
        let path = directory.join(format!("subsystem-{subsystem}.json"));
        let bytes = match service::state::read(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Self { path, namespaces: BTreeMap::new() }),
            Err(source) => return Err(StoreError::Io { act: "read", path, source }),
        };
        let contents: Contents = match serde_json::from_slice(&bytes) {
            Ok(contents) => contents,
            Err(error) => return Err(StoreError::Format { path, reason: error.to_string() }),
        };
        if contents.version != VERSION {
            let reason = format!("version {} instead of {VERSION}", contents.version);
            return Err(StoreError::Format { path, reason });
        }
        Ok(Self { path, namespaces: contents.namespaces })
    }

    /// What was changed of a namespace that lies on `bdev`.
    pub fn changes(&self, nsid: u32, bdev: &str) -> Changes {
        let changes = self.namespaces.get(&nsid).filter(|changes| changes.bdev == bdev);
        changes.cloned().unwrap_or_else(|| Changes { bdev: bdev.to_owned(), ..Changes::default() })
    }

    /// Stores changes durably: when this returns, they outlive a crash of the machine.
    ///
    /// # Errors
    /// [`StoreError`]; what was stored before stands.
    pub fn put(&mut self, nsid: u32, changes: Changes) -> Result<(), StoreError> {
        let mut namespaces = self.namespaces.clone();
        namespaces.insert(nsid, changes);
        let contents = Contents { version: VERSION, namespaces };
        let io =
            |act| move |path: &Path, source| StoreError::Io { act, path: path.to_owned(), source };
        let bytes = serde_json::to_vec_pretty(&contents)
            .map_err(|error| io("encode")(&self.path, error.into()))?;
        service::state::write(&self.path, &bytes)
            .map_err(|source| io("write")(&self.path, source))?;
        self.namespaces = contents.namespaces;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(bdev: &str) -> Changes {
        Changes { bdev: bdev.to_owned(), block_shift: Some(12), protection: None }
    }

    #[test]
    fn changes_outlive_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), "s0").unwrap();
        assert_eq!(store.changes(1, "disk").block_shift, None);
        store.put(1, formatted("disk")).unwrap();
        let again = Store::open(directory.path(), "s0").unwrap();
        assert_eq!(again.changes(1, "disk"), formatted("disk"));
        assert_eq!(again.changes(1, "other").block_shift, None, "another bdev starts anew");
        assert_eq!(
            Store::open(directory.path(), "s1").unwrap().changes(1, "disk").block_shift,
            None
        );
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("subsystem-s0.json");
        for text in ["", "{}", r#"{"version":2,"namespaces":{}}"#, r#"{"version":1,"x":1}"#] {
            std::fs::write(&path, text).unwrap();
            let error = Store::open(directory.path(), "s0").unwrap_err();
            assert!(matches!(error, StoreError::Format { .. }), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
