//! The subsystem's namespaces as this controller shows them: rows for the workers, notices for the host.

use crate::admin::event::Event;
use crate::controller::Controller;
use crate::controller::effect::{Context, Effect};
use crate::controller::state::State;
use crate::controller::work::{Step, Work};
use crate::namespace::{Namespace, store_row};
use ipc::layout::MAX_NAMESPACES;
use nvme_spec::Nsid;
use std::sync::atomic::Ordering;

/// A namespace as the controller knows it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    change: u64,
    shown: Option<Shown>,
}

/// What Identify shows of a namespace: a host is told when this changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    generation: u32,
    blocks: u64,
    block_shift: u32,
    write_protected: bool,
}

/// A controller that has seen no namespace.
pub(crate) fn nothing_seen() -> Vec<Seen> {
    vec![Seen::default(); MAX_NAMESPACES]
}

impl From<&Namespace> for Shown {
    fn from(namespace: &Namespace) -> Self {
        Self {
            generation: namespace.generation,
            blocks: namespace.blocks().0,
            block_shift: namespace.config().block_shift,
            write_protected: namespace.is_write_protected(),
        }
    }
}

impl Controller {
    /// The subsystem changed: namespaces came, went, grew, were formatted or protected. The workers' rows follow, and
    /// an enabled host is told by an asynchronous event and the Changed Namespace List.
    pub fn subsystem_changed(&mut self, cx: &mut Context<'_>) {
        self.synchronise(None, cx);
        self.poll(cx);
    }

    /// Brings rows up to date with the subsystem; the host is told, but not of `silent`, which it changed itself.
    /// Returns the version that says so.
    pub(crate) fn synchronise(&mut self, silent: Option<Nsid>, cx: &mut Context<'_>) -> u64 {
        let mut drains = Vec::new();
        let mut changed = false;
        for (index, nsid) in (0..MAX_NAMESPACES).zip((1..).map(Nsid)) {
            let (Some(seen), change) = (self.seen.get_mut(index), cx.subsystem.change_of(index))
            else {
                continue;
            };
            if seen.change == change {
                continue;
            }
            let namespace = cx.subsystem.namespace(nsid);
            let shown = namespace.map(Shown::from);
            let visible = shown != seen.shown;
            *seen = Seen { change, shown };
            changed = true;
            if let Some(row) = self.segment.namespaces.get(index) {
                store_row(row, namespace);
            }
            let waits = namespace.and_then(|space| space.formatting.as_ref());
            if waits.is_some_and(|waiting| waiting.contains(&self.config.id)) {
                drains.push(nsid);
            }
            if visible && silent != Some(nsid) && self.state == State::Enabled {
                self.raise_namespace_changed(index);
            }
        }
        if !changed {
            return self.segment.signals.version.load(Ordering::Relaxed);
        }
        let version = self.publish(cx);
        self.work.extend(
            drains
                .into_iter()
                .map(|nsid| Work { cid: None, step: Step::Draining { nsid, version } }),
        );
        version
    }

    /// Nothing of this controller is in flight to a namespace that is to be formatted.
    pub(crate) fn drained(&mut self, nsid: Nsid, cx: &mut Context<'_>) {
        if cx.subsystem.drained(nsid, self.config.id) {
            cx.effect(Effect::SubsystemChanged);
        }
    }

    fn raise_namespace_changed(&mut self, index: usize) {
        if let Some(word) = self.segment.admin.changed_namespaces.get(index / 64) {
            word.fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
        self.raise(Event::NamespaceAttributeChanged);
    }
}
