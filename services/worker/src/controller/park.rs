//! Before and after the poll thread sleeps: who has work for it is asked to wake it.

use super::Controller;
use crate::doorbells::{Doorbells, store_event_index};
use crate::queue_pair::State;
use bdev::channel::Channel;
use ipc::layout::controller::ControllerState;
use nix::poll::{PollFd, PollFlags};
use std::sync::atomic::{Ordering, fence};

/// Waiting commands that are looked at before sleep.
const READY_LOOKS: usize = 64;

impl Controller {
    /// Asks guest, backends and frontend to wake this thread. False if there is something to do already; the caller
    /// does not sleep then.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        if let Some(shadow) = &self.shadow {
            let regions = self.memory.regions();
            for (qid, sq) in self.sqs.iter().enumerate() {
                let Some(sq) = sq else { continue };
                store_event_index(shadow, regions, 2 * qid, sq.position.head());
                if let Some(Some(cq)) = self.cqs.get(sq.cqid)
                    && cq.position.room() == 0
                {
                    store_event_index(shadow, regions, 2 * sq.cqid + 1, cq.position.head());
                }
            }
        }
        // Full fence: the event indexes are stored before the doorbells are looked at again; pairs with the guest's own
        // between its doorbell and its look at the event index.
        fence(Ordering::SeqCst);
        self.has_nothing_to_do()
    }

    /// What wakes this thread besides its kick, while it sleeps: events of devices.
    pub(crate) fn events<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        into.extend(self.namespaces.open().iter().filter_map(|&row| {
            let channel = self.namespaces.get(usize::from(row))?.channel.as_ref()?;
            Some(PollFd::new(Channel::event(channel.as_ref())?, PollFlags::POLLIN))
        }));
    }

    /// After sleep: nobody needs to wake this thread.
    pub(crate) fn woken(&mut self) {
        for index in 0..self.namespaces.open().len() {
            let Some(&row) = self.namespaces.open().get(index) else { break };
            let entry = self.namespaces.get_mut(usize::from(row));
            if let Some(channel) = entry.and_then(|entry| entry.channel.as_mut()) {
                Channel::unpark(channel.as_mut());
            }
        }
    }

    /// When there will be something to do though nobody says so.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let channels = self.namespaces.open().iter().filter_map(|&row| {
            let channel = self.namespaces.get(usize::from(row))?.channel.as_ref()?;
            Channel::deadline(channel.as_ref())
        });
        if self.pause.is_paused() {
            // What waits goes on when it is resumed.
            return channels.min();
        }
        let waits = self.waiting.front().map(|&slot| {
            self.slots.flight(slot).since.saturating_add(super::channels::CHANNEL_WAIT)
        });
        // Those of paused namespaces have no time.
        let due = (!self.limits.is_idle()).then_some(self.limits.due);
        let limited = due.filter(|&due| due != u64::MAX);
        channels.chain(waits).chain(limited).min()
    }

    pub(super) fn has_nothing_to_do(&mut self) -> bool {
        if self.seen.is_outdated(&self.layout.signals) || self.page.load(0) != self.admin_tail {
            return false;
        }
        let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), self.memory.regions());
        let enabled = self.state == ControllerState::Enabled && self.failure.is_none();
        let rang = self.sqs.iter().enumerate().any(|(qid, sq)| {
            sq.as_ref().is_some_and(|sq| {
                let full = self.cqs.get(sq.cqid).and_then(Option::as_ref).is_none_or(|cq| {
                    cq.position.room() == 0 && doorbells.head(sq.cqid) == cq.position.head()
                });
                let waits =
                    doorbells.tail(qid) != sq.position.head() && self.slots.free_count() > 0;
                sq.state == State::Active && waits && !full
            })
        });
        // A command that waits although its channel is open and owes nothing waits for what nobody rings for: an edit of
        // the DMA table, its turn among those of several requests.
        let ready = self.failure.is_none()
            && !self.pause.is_paused()
            && self.waiting.iter().take(READY_LOOKS).any(|&slot| {
                let row = usize::from(self.slots.flight(slot).namespace);
                self.namespaces.get(row).is_some_and(|entry| {
                    let idle = entry.channel.as_ref().is_some_and(|c| c.outstanding() == 0);
                    idle && !entry.is_retiring()
                })
            });
        if (rang && enabled) || ready || self.owed != 0 {
            return false;
        }
        let mut idle = true;
        for index in 0..self.namespaces.open().len() {
            let Some(&row) = self.namespaces.open().get(index) else { break };
            let entry = self.namespaces.get_mut(usize::from(row));
            if let Some(channel) = entry.and_then(|entry| entry.channel.as_mut()) {
                idle &= Channel::park(channel.as_mut());
            }
        }
        if !idle {
            self.woken();
        }
        idle
    }
}
