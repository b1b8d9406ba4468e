//! Names that the manager makes and that must last: a host knows a namespace by its UUID and a subsystem by its NQN, so
//! that a restart must not change them.

use service::config::{Config, Subsystem};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

/// Names of what is configured no more are kept, as it may come back; above this many they are forgotten.
const MAX_UNUSED: usize = 4096;

/// A UUID, its bytes in the order in which it is written (RFC 9562).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A random one (version 4, RFC 9562 5.4).
    ///
    /// # Errors
    /// The kernel's, if it gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        bytes[6] = bytes[6] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let mut bytes = [0; 16];
        if digits.len() != 32 {
            return Err(());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(());
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        // Only the way that we write it ourselves.
        let uuid = Self(bytes);
        if uuid.to_string() == text { Ok(uuid) } else { Err(()) }
    }
}

/// What a namespace is to its host: another NSID or another block device is another namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceKey {
    /// The subsystem's name.
    pub subsystem: String,
    /// Namespace identifier.
    pub nsid: u32,
    /// The block device's name.
    pub bdev: String,
}

/// All names that were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities {
    /// NQN by the subsystem's name.
    pub subsystems: BTreeMap<String, String>,
    /// UUID by namespace.
    pub namespaces: BTreeMap<NamespaceKey, Uuid>,
}

impl Identities {
    /// Makes names for everything in `config` that has none.
    ///
    /// # Errors
    /// The kernel's, if it gives no random bytes; some names may have been made then.
    pub fn complete(&mut self, config: &Config) -> io::Result<()> {
        let (mut names, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for subsystem in &config.subsystems {
            names.insert(subsystem.name.clone());
            if subsystem.nqn.is_none() && !self.subsystems.contains_key(&subsystem.name) {
                let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{}", Uuid::random()?);
                self.subsystems.insert(subsystem.name.clone(), nqn);
            }
            for namespace in &subsystem.namespaces {
                let key = key(subsystem, namespace);
                if !self.namespaces.contains_key(&key) {
                    self.namespaces.insert(key.clone(), Uuid::random()?);
                }
                keys.insert(key);
            }
        }
        let unused = self.subsystems.keys().filter(|name| !names.contains(*name)).count()
            + self.namespaces.keys().filter(|key| !keys.contains(*key)).count();
        if unused > MAX_UNUSED {
            self.subsystems.retain(|name, _| names.contains(name));
            self.namespaces.retain(|key, _| keys.contains(key));
        }
        Ok(())
    }

    /// The subsystem's NQN: the configured one, else the one that was made.
    pub fn nqn<'a>(&'a self, subsystem: &'a Subsystem) -> Option<&'a str> {
        let made = || self.subsystems.get(&subsystem.name);
        subsystem.nqn.as_ref().or_else(made).map(String::as_str)
    }

    /// The namespace's UUID.
    pub fn uuid(
        &self,
        subsystem: &Subsystem,
        namespace: &service::config::Namespace,
    ) -> Option<Uuid> {
        self.namespaces.get(&key(subsystem, namespace)).copied()
    }

    /// Gives a namespace the UUID that it had elsewhere.
    pub fn set_uuid(
        &mut self,
        subsystem: &Subsystem,
        namespace: &service::config::Namespace,
        uuid: Uuid,
    ) {
        self.namespaces.insert(key(subsystem, namespace), uuid);
    }
}

fn key(subsystem: &Subsystem, namespace: &service::config::Namespace) -> NamespaceKey {
    NamespaceKey {
        subsystem: subsystem.name.clone(),
        nsid: namespace.nsid,
        bdev: namespace.bdev.clone(),
    }
}
