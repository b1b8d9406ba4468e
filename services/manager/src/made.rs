//! What was made through the API, beside what the configuration file names.
//!
//! Each object belongs to one of the two, and changes only there: the file never speaks of what the API made, and the
//! API changes nothing that stands in the file. What is served is both together, checked as one configuration.

use crate::object::Object;
use service::config::{Config, Mistake, Subsystem};
use std::collections::{BTreeMap, VecDeque};

/// Requests that are remembered: a caller that repeats one does so within seconds.
pub const MAX_REQUESTS: usize = 256;

/// What was made through the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The objects, each with the time when it was made, in milliseconds since 1970. What they are stands in the
    /// configuration that is served.
    pub objects: BTreeMap<Object, u64>,
    /// Identifiers that callers gave to objects whose own name says something else: a namespace's is its NSID.
    pub ids: BTreeMap<Object, String>,
    /// Requests that changed something, the newest last, at most [`MAX_REQUESTS`].
    pub requests: VecDeque<Request>,
}

/// A request that changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The caller's identifier of it.
    pub id: String,
    /// Digest of method and content.
    pub digest: u64,
    /// What it changed.
    pub object: Object,
}

impl Made {
    /// Forgets the identifiers of objects that are gone.
    pub fn forget_ids(&mut self) {
        self.ids.retain(|object, _| self.objects.contains_key(object));
    }

    /// Remembers a request, and forgets the oldest if need be.
    pub fn remember(&mut self, request: Request) {
        self.requests.push_back(request);
        while self.requests.len() > MAX_REQUESTS {
            self.requests.pop_front();
        }
    }

    /// The configuration file's `file` with all that was made, as `served` has it.
    ///
    /// # Errors
    /// What does not fit together, one line each.
    pub fn layer(&self, file: &Config, served: &Config) -> Result<Config, Vec<String>> {
        let mut all = file.clone();
        let mut wrong = Vec::new();
        for object in self.objects.keys() {
            if object.is_in(file) {
                wrong.push(format!(
                    "{object} was made through the API and stands in the configuration file too: \
                     delete it there, or remove it from the file"
                ));
            } else if let Err(line) = add(&mut all, object, served) {
                wrong.push(line);
            }
        }
        if wrong.is_empty() {
            wrong = mistakes(&all).iter().map(|mistake| self.line(mistake, &all)).collect();
        }
        if wrong.is_empty() { Ok(all) } else { Err(wrong) }
    }

    /// A mistake in one line that names what was made by its resource name.
    pub fn line(&self, mistake: &Mistake, config: &Config) -> String {
        let named = self.objects.keys().find_map(|object| {
            let key = object.key(config)?;
            let rest = mistake.key.strip_prefix(&key)?;
            (rest.is_empty() || rest.starts_with('.')).then(|| format!("{object}{rest}"))
        });
        let mistake = match named {
            Some(key) => Mistake { key, ..mistake.clone() },
            None => mistake.clone(),
        };
        mistake.to_string()
    }
}

/// What is wrong with a configuration that was put together.
pub fn mistakes(config: &Config) -> Vec<Mistake> {
    Config::parse(&config.to_toml(), []).err().unwrap_or_default()
}

/// Puts an object into `all` as `served` has it. What is not served any more was not made.
fn add(all: &mut Config, object: &Object, served: &Config) -> Result<(), String> {
    match object {
        Object::Volume(name) => all.bdevs.extend(served.bdev(name).cloned()),
        Object::Subsystem(name) => {
            let subsystem = served.subsystem(name);
            let empty = |s: &Subsystem| Subsystem { namespaces: Vec::new(), ..s.clone() };
            all.subsystems.extend(subsystem.map(empty));
        }
        Object::Namespace { subsystem, nsid } => {
            let namespaces = served.subsystem(subsystem).map(|s| s.namespaces.as_slice());
            let namespace = namespaces.unwrap_or_default().iter().find(|n| n.nsid == *nsid);
            let Some(into) = all.subsystems.iter_mut().find(|s| s.name == *subsystem) else {
                return Err(format!(
                    "{object} was made through the API: delete it there before subsystem \
                     {subsystem} is removed from the configuration file"
                ));
            };
            into.namespaces.extend(namespace.cloned());
        }
        Object::Controller(name) => {
            all.endpoints.extend(served.endpoints.iter().find(|e| e.name == *name).cloned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::config;

    const NULL: &str = "[[subsystem.namespace]]\nnsid = 7\nbdev = \"null0\"\n";
    const BDEV: &str = "[[bdev]]\nname = \"null0\"\ndriver = \"null\"\nsize = \"1GiB\"\n\
                        latency = \"10us\"\nchannel = \"ring\"\nbackend = \"b1\"\n";

    fn made(names: &[&str]) -> Made {
        let objects = names.iter().map(|name| (name.parse().unwrap(), 0)).collect();
        Made { objects, ..Made::default() }
    }

    #[test]
    fn file_and_api_together_are_what_is_served() {
        let served = config(&[]);
        let file = config(&[(NULL, ""), (BDEV, "")]);
        let made = made(&["volumes/null0", "subsystems/s0/namespaces/7"]);
        let mut all = made.layer(&file, &served).unwrap();
        all.bdevs.sort_by(|a, b| a.name.cmp(&b.name));
        let mut expected = served.clone();
        expected.bdevs.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(all, expected);
        assert_eq!(Made::default().layer(&file, &served), Ok(file));
    }

    #[test]
    fn what_stands_in_both_is_refused() {
        let served = config(&[]);
        let wrong = made(&["volumes/null0"]).layer(&served, &served).unwrap_err();
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with("volumes/null0 was made through the API"), "{wrong:?}");
    }

    #[test]
    fn a_file_that_takes_away_what_was_built_on_is_refused_by_name() {
        let served = config(&[]);
        let file = config(&[(NULL, ""), (BDEV, "")]);
        let wrong = made(&["subsystems/s0/namespaces/7"]).layer(&file, &served).unwrap_err();
        assert_eq!(wrong.len(), 1);
        assert!(
            wrong[0].starts_with("subsystems/s0/namespaces/7.bdev: there is no bdev \"null0\""),
            "{wrong:?}"
        );
        let text = "nqn = \"nqn.2024-01.org.example:s1\"";
        let file = config(&[
            ("name = \"s1\"", "name = \"s2\""),
            ("subsystem = \"s1\"", "subsystem = \"s2\""),
            (text, ""),
        ]);
        let wrong = made(&["subsystems/s1/namespaces/2"]).layer(&file, &served).unwrap_err();
        assert!(wrong[0].contains("before subsystem s1 is removed"), "{wrong:?}");
    }

    #[test]
    fn only_the_newest_requests_are_remembered() {
        let mut made = Made::default();
        for number in 0..MAX_REQUESTS as u64 + 3 {
            let object = Object::Volume("x".into());
            made.remember(Request { id: number.to_string(), digest: number, object });
        }
        assert_eq!(made.requests.len(), MAX_REQUESTS);
        assert_eq!(made.requests[0].digest, 3);
    }
}
