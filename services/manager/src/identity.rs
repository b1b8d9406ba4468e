//! Names that the manager makes and that must last: a host knows a namespace by its UUID and a subsystem by its NQN, so
//! that a restart must not change them.

use service::config::{Config, Subsystem, Uuid, random_uuid};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Names of what is configured no more are kept, as it may come back; above this many they are forgotten.
const MAX_UNUSED: usize = 4096;

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
                let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{}", random_uuid()?);
                self.subsystems.insert(subsystem.name.clone(), nqn);
            }
            for namespace in &subsystem.namespaces {
                let key = key(subsystem, namespace);
                if namespace.uuid.is_none() && !self.namespaces.contains_key(&key) {
                    self.namespaces.insert(key.clone(), random_uuid()?);
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

    /// The namespace's UUID: the configured one, else the one that was made.
    pub fn uuid(
        &self,
        subsystem: &Subsystem,
        namespace: &service::config::Namespace,
    ) -> Option<Uuid> {
        namespace.uuid.or_else(|| self.namespaces.get(&key(subsystem, namespace)).copied())
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
