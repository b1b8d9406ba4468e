//! What can be made through the API, and its resource name.

use service::config::Config;
use std::fmt;
use std::str::FromStr;

/// Something that the configuration file or the API makes. Its text is its resource name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A block device.
    Volume(String),
    /// A subsystem.
    Subsystem(String),
    /// A namespace.
    Namespace {
        /// Its subsystem.
        subsystem: String,
        /// Namespace identifier.
        nsid: u32,
    },
    /// An endpoint with its controller.
    Controller(String),
}

impl Object {
    /// Everything in `config`, in the order of dependence.
    pub fn all(config: &Config) -> Vec<Self> {
        let volumes = config.bdevs.iter().map(|bdev| Self::Volume(bdev.name.clone()));
        let subsystems = config.subsystems.iter().flat_map(|subsystem| {
            let name = &subsystem.name;
            let namespaces = subsystem.namespaces.iter();
            let namespaces =
                namespaces.map(|n| Self::Namespace { subsystem: name.clone(), nsid: n.nsid });
            [Self::Subsystem(name.clone())].into_iter().chain(namespaces)
        });
        let controllers = config.endpoints.iter().map(|e| Self::Controller(e.name.clone()));
        volumes.chain(subsystems).chain(controllers).collect()
    }

    /// True if `config` has it.
    pub fn is_in(&self, config: &Config) -> bool {
        match self {
            Self::Volume(name) => config.bdev(name).is_some(),
            Self::Subsystem(name) => config.subsystem(name).is_some(),
            Self::Namespace { subsystem, nsid } => config
                .subsystem(subsystem)
                .is_some_and(|subsystem| subsystem.namespaces.iter().any(|n| n.nsid == *nsid)),
            Self::Controller(name) => config.endpoints.iter().any(|e| e.name == *name),
        }
    }

    /// Where it stands in the text of `config`, as mistakes name it: `bdev[2]`.
    pub fn key(&self, config: &Config) -> Option<String> {
        match self {
            Self::Volume(name) => {
                let index = config.bdevs.iter().position(|bdev| bdev.name == *name)?;
                Some(format!("bdev[{index}]"))
            }
            Self::Subsystem(name) => {
                let index = config.subsystems.iter().position(|s| s.name == *name)?;
                Some(format!("subsystem[{index}]"))
            }
            Self::Namespace { subsystem, nsid } => {
                let index = config.subsystems.iter().position(|s| s.name == *subsystem)?;
                let namespaces = &config.subsystems[index].namespaces;
                let number = namespaces.iter().position(|n| n.nsid == *nsid)?;
                Some(format!("subsystem[{index}].namespace[{number}]"))
            }
            Self::Controller(name) => {
                let index = config.endpoints.iter().position(|e| e.name == *name)?;
                Some(format!("endpoint[{index}]"))
            }
        }
    }

    /// The process that serves it, and how that process names it in a failure: `backend b0`, `bdev mem0`.
    pub fn served_as(&self, config: &Config) -> Option<(String, String)> {
        let frontend = |subsystem: &str| {
            config.subsystem(subsystem).map(|subsystem| format!("frontend {}", subsystem.frontend))
        };
        match self {
            Self::Volume(name) => {
                Some((format!("backend {}", config.bdev(name)?.backend), format!("bdev {name}")))
            }
            Self::Subsystem(name) => Some((frontend(name)?, format!("subsystem {name}"))),
            Self::Namespace { subsystem, nsid } => {
                Some((frontend(subsystem)?, format!("namespace {nsid} of subsystem {subsystem}")))
            }
            Self::Controller(name) => {
                let endpoint = config.endpoints.iter().find(|e| e.name == *name)?;
                Some((frontend(&endpoint.subsystem)?, format!("endpoint {name}")))
            }
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volumes/{name}"),
            Self::Subsystem(name) => write!(f, "subsystems/{name}"),
            Self::Namespace { subsystem, nsid } => {
                write!(f, "subsystems/{subsystem}/namespaces/{nsid}")
            }
            Self::Controller(name) => write!(f, "controllers/{name}"),
        }
    }
}

/// The text is no resource name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a resource")]
pub struct NotAName;

impl FromStr for Object {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let parts: Vec<&str> = text.splitn(5, '/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(NotAName);
        }
        match parts.as_slice() {
            ["volumes", name] => Ok(Self::Volume((*name).to_owned())),
            ["subsystems", name] => Ok(Self::Subsystem((*name).to_owned())),
            ["subsystems", subsystem, "namespaces", nsid] => {
                let number = nsid.parse().map_err(|_| NotAName)?;
                let object = Self::Namespace { subsystem: (*subsystem).to_owned(), nsid: number };
                // One name for one namespace: no leading zeroes or signs.
                if object.to_string() == text { Ok(object) } else { Err(NotAName) }
            }
            ["controllers", name] => Ok(Self::Controller((*name).to_owned())),
            _ => Err(NotAName),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let config = crate::sample::config(&[]);
        for object in Object::all(&config) {
            assert_eq!(object.to_string().parse(), Ok(object.clone()));
            assert!(object.is_in(&config));
        }
        for wrong in [
            "",
            "volumes",
            "volumes/",
            "volumes/a/b",
            "/volumes/a",
            "subsystems/s/namespaces/01",
            "subsystems/s/namespaces/+1",
            "subsystems/s/namespaces/x",
            "subsystems//namespaces/1",
            "subsystems/s/namespaces/1/",
            "things/a",
        ] {
            assert_eq!(wrong.parse::<Object>(), Err(NotAName), "{wrong}");
        }
    }

    #[test]
    fn an_object_is_found_where_mistakes_and_processes_name_it() {
        let config = crate::sample::config(&[]);
        let object = |name: &str| name.parse::<Object>().unwrap();
        let cases = [
            ("volumes/null0", "bdev[1]", "backend b1", "bdev null0"),
            ("subsystems/s1", "subsystem[1]", "frontend f1", "subsystem s1"),
            (
                "subsystems/s0/namespaces/7",
                "subsystem[0].namespace[1]",
                "frontend f0",
                "namespace 7 of subsystem s0",
            ),
            ("controllers/vm1", "endpoint[1]", "frontend f1", "endpoint vm1"),
        ];
        for (name, key, process, label) in cases {
            assert_eq!(object(name).key(&config).as_deref(), Some(key));
            let served = object(name).served_as(&config).unwrap();
            assert_eq!((served.0.as_str(), served.1.as_str()), (process, label));
        }
        assert_eq!(object("volumes/absent").key(&config), None);
        assert!(!object("subsystems/s0/namespaces/9").is_in(&config));
    }
}
