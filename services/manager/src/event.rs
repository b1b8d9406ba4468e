//! What happens, for those who watch: kept for a while, told to any number of watchers, none of which can hold up the
//! manager.

use crate::object::Object;
use service::config::Config;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Events that are kept for watchers who come later or are slow.
pub const MAX_EVENTS: usize = 256;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A resource was made.
    Created,
    /// A resource was changed.
    Updated,
    /// A resource was deleted.
    Deleted,
    /// All that is wanted is served.
    Ready,
    /// Something that is wanted is not served.
    Failed,
    /// A client came.
    Connected,
    /// A client left.
    Disconnected,
}

impl Kind {
    /// Its word in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// The resource, `target` for all of it.
    pub name: String,
    /// One line for a person.
    pub message: String,
}

/// An event with its place in the order of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Counts up, also over restarts.
    pub sequence: u64,
    /// When it was noticed.
    pub time: SystemTime,
    /// The event.
    pub event: Event,
}

/// The newest events.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<Numbered>>,
    last: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        // Microseconds since 1970: above all that an earlier manager can have come to.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(since.as_micros()).unwrap_or(0);
        Self { kept: Mutex::default(), last: watch::Sender::new(first) }
    }
}

impl Events {
    /// Tells every watcher.
    pub fn tell(&self, event: Event) {
        let mut kept = self.lock();
        let sequence = self.last.borrow().saturating_add(1);
        kept.push_back(Numbered { sequence, time: SystemTime::now(), event });
        while kept.len() > MAX_EVENTS {
            kept.pop_front();
        }
        self.last.send_replace(sequence);
    }

    /// The sequence of the newest event, now and later.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// True if somebody watches.
    pub fn is_watched(&self) -> bool {
        self.last.receiver_count() > 0
    }

    /// Events after `sequence`, and whether there were others between that are not known any more.
    pub fn after(&self, sequence: u64) -> (bool, Vec<Numbered>) {
        let kept = self.lock();
        let first = kept.front().map_or(*self.last.borrow(), |first| first.sequence - 1);
        let lost = sequence < first;
        (lost, kept.iter().filter(|event| event.sequence > sequence).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Numbered>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What changed from one configuration to another: what is gone first, from the last to the first.
pub fn differences(old: &Config, new: &Config) -> Vec<(Kind, Object)> {
    let (before, after) = (Object::all(old), Object::all(new));
    let gone = before.iter().rev().filter(|object| !object.is_in(new));
    let mut found: Vec<(Kind, Object)> = gone.map(|o| (Kind::Deleted, o.clone())).collect();
    for object in after {
        if !object.is_in(old) {
            found.push((Kind::Created, object));
        } else if is_changed(&object, old, new) {
            found.push((Kind::Updated, object));
        }
    }
    found
}

/// Whether an object that both have is another one in `new`; a subsystem's namespaces are objects of their own.
fn is_changed(object: &Object, old: &Config, new: &Config) -> bool {
    match object {
        Object::Volume(name) => old.bdev(name) != new.bdev(name),
        Object::Subsystem(_) => false,
        Object::Namespace { subsystem, nsid } => {
            let find = |config: &Config| {
                let namespaces = &config.subsystem(subsystem)?.namespaces;
                namespaces.iter().find(|namespace| namespace.nsid == *nsid).cloned()
            };
            find(old) != find(new)
        }
        Object::Controller(name) => {
            let find = |config: &Config| config.endpoints.iter().find(|e| e.name == *name).cloned();
            find(old) != find(new)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::config;

    fn event(number: usize) -> Event {
        Event { kind: Kind::Ready, name: "target".into(), message: number.to_string() }
    }

    #[test]
    fn a_watcher_who_comes_back_misses_nothing_that_is_kept() {
        let events = Events::default();
        let start = *events.watch().borrow();
        assert_eq!(events.after(start), (false, Vec::new()));
        for number in 0..MAX_EVENTS {
            events.tell(event(number));
        }
        let (lost, all) = events.after(start);
        assert_eq!((lost, all.len()), (false, MAX_EVENTS));
        events.tell(event(0));
        let (lost, rest) = events.after(start);
        assert_eq!((lost, rest.len()), (true, MAX_EVENTS));
        let (lost, rest) = events.after(rest[MAX_EVENTS - 3].sequence);
        assert_eq!((lost, rest.len()), (false, 2));
    }

    #[test]
    fn an_earlier_managers_watcher_is_told_that_events_were_lost() {
        let events = Events::default();
        let start = *events.watch().borrow();
        assert_eq!(events.after(start - 5), (true, Vec::new()));
        assert_eq!(events.after(start + 5), (false, Vec::new()));
    }

    #[test]
    fn differences_are_told_in_the_order_in_which_they_are_made() {
        let old = config(&[("subsystem = \"s0\"\nqueues", "subsystem = \"s0\"\nqueues")]);
        let namespace = "[[subsystem.namespace]]\nnsid = 7\nbdev = \"null0\"\n";
        let new = config(&[(namespace, ""), ("64MiB", "128MiB")]);
        let named = |found: Vec<(Kind, Object)>| -> Vec<String> {
            found.into_iter().map(|(kind, o)| format!("{} {o}", kind.as_str())).collect()
        };
        assert_eq!(
            named(differences(&old, &new)),
            ["deleted subsystems/s0/namespaces/7", "updated volumes/mem0"]
        );
        assert_eq!(
            named(differences(&new, &old)),
            ["updated volumes/mem0", "created subsystems/s0/namespaces/7"]
        );
        assert!(differences(&old, &old).is_empty());
    }
}
