//! What happens when things go wrong: time-outs, resets, a target that ends. Off the hot path.
//!
//! A queue pair looks about itself every so many polls. A command that is too old is aborted; if that does not help, the
//! controller is reset. When the controller was disabled, by whomever, or is gone, every outstanding request ends with
//! an error; after a reset the queues are made again.
//!
//! Age is counted in epochs, which only pass while the queue pair is polled: whoever does not poll for a minute finds
//! completions, not time-outs.

use std::time::{Duration, Instant};

use nvme_spec::{CommandId, QueueId};

use super::slot::{NONE, Slot, State};
use super::{Completed, HOUSEKEEPING_INTERVAL, QueuePair};
use crate::error::{Error, IoError, chain};

/// Epochs until a command is too old.
const EPOCHS: u32 = 8;
/// Epochs after which it is asked whether the controller still works.
const LATE_EPOCHS: u32 = 1;
/// Epochs that an aborted command has to complete.
const ABORT_EPOCHS: u32 = 4;
/// Epochs after which the controller is reset although no Abort could be sent.
const HOPELESS_EPOCHS: u32 = 2 * EPOCHS;
/// How often the target's health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_millis(10);

/// The requests that were outstanding are handed back one by one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failing {
    error: IoError,
    /// Next slot to look at, then next parent.
    slot: u16,
    parent: u16,
}

impl QueuePair {
    /// Looks at everything that is not looked at each poll. Returns a request that ended by it.
    #[cold]
    pub(super) fn housekeep(&mut self) -> Option<Completed> {
        self.budget = HOUSEKEEPING_INTERVAL;
        if self.cold.failing.is_some() {
            return self.next_failed();
        }
        if self.cold.dead {
            // Whatever its memory holds is not looked at again.
            self.budget = 0;
            return None;
        }
        if self.unacked > 0 {
            self.ack();
        }
        if self.is_stale() {
            return self.fail();
        }
        if !self.is_busy() {
            return None;
        }
        let now = Instant::now();
        if now.duration_since(self.cold.looked) >= HEALTH_INTERVAL {
            self.cold.looked = now;
            if self.cold.inner.check_alive() {
                return self.fail();
            }
        }
        self.send_delayed(now);
        if now.duration_since(self.cold.epoch_started)
            >= self.cold.inner.options.io_timeout / EPOCHS
        {
            self.cold.epoch_started = now;
            self.epoch = self.epoch.wrapping_add(1);
            self.expire();
        }
        None
    }

    /// Sends what has waited long enough.
    fn send_delayed(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(&(cid, due)) = self.cold.delayed.get(at) {
            if due > now {
                at += 1;
                continue;
            }
            self.cold.delayed.swap_remove(at);
            self.send_slot(cid);
        }
        self.ring();
    }

    /// Aborts what is too old, and resets the controller if that was in vain.
    fn expire(&mut self) {
        if self.cq.peek().is_some() {
            // Not all was taken that is there.
            return;
        }
        // Something is late: a controller that says it failed is not waited for.
        let late = |slot: &Slot| {
            !matches!(slot.state, State::Free | State::Delayed)
                && self.epoch.wrapping_sub(slot.epoch) > LATE_EPOCHS
        };
        if self.slots.iter().any(late) && self.cold.inner.csts().is_ok_and(|csts| csts.cfs()) {
            tracing::warn!(controller = %self.cold.inner.address, qid = self.qid, "controller reports a fatal error");
            self.reset_controller();
            return;
        }
        let mut reset = false;
        for (cid, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.state, State::Free | State::Delayed) {
                continue;
            }
            let age = self.epoch.wrapping_sub(slot.epoch);
            if slot.aborted {
                reset |= age > ABORT_EPOCHS;
            } else if age > EPOCHS {
                let inner = &self.cold.inner;
                // Whoever holds the admin queue is not waited for; the next epoch tries again.
                let sent = inner.admin.try_lock().is_ok_and(|mut admin| {
                    admin.post_abort(QueueId(self.qid), CommandId(cid as u16))
                });
                if sent {
                    tracing::warn!(controller = %inner.address, qid = self.qid, cid, "command timed out, aborting it");
                    self.cold.counters.aborted += 1;
                    slot.aborted = true;
                    slot.epoch = self.epoch;
                }
                reset |= age > HOPELESS_EPOCHS;
            }
        }
        if reset {
            tracing::warn!(controller = %self.cold.inner.address, qid = self.qid, "aborted command did not complete");
            self.reset_controller();
        }
    }

    /// The controller does what it must not: it is reset before anything it says is believed again.
    #[cold]
    pub(super) fn distrust(&mut self, what: &'static str) {
        tracing::warn!(controller = %self.cold.inner.address, qid = self.qid, what, "controller broke the protocol");
        self.reset_controller();
    }

    /// Resets the controller; the next housekeeping, which is the next poll, ends what was outstanding.
    fn reset_controller(&mut self) {
        let inner = &self.cold.inner;
        if let Err(error) = inner.reset(self.cold.generation) {
            // It is given up by now, and everything ends with that.
            tracing::debug!(controller = %inner.address, error = %chain(&error), "reset failed");
        }
        self.budget = 0;
    }

    /// Begins to hand everything outstanding back: the controller was disabled, or is gone.
    fn fail(&mut self) -> Option<Completed> {
        let error = match self.cold.inner.is_gone() {
            true => IoError::Gone,
            false => IoError::Reset,
        };
        if self.is_busy() {
            self.cold.counters.resets += 1;
        }
        self.cold.failing = Some(Failing { error, slot: 0, parent: 0 });
        self.cold.delayed.clear();
        self.set_starved(false);
        // Nothing is submitted by the short way until the queues are there again.
        self.free = NONE;
        self.next_failed()
    }

    /// The next request that ends by the failure; after the last the queues are made again.
    fn next_failed(&mut self) -> Option<Completed> {
        let mut failing = self.cold.failing?;
        let mut ended = None;
        while ended.is_none() && usize::from(failing.slot) < self.slots.len() {
            let cid = failing.slot;
            failing.slot += 1;
            if self.slots[usize::from(cid)].state != State::Free {
                ended = self.finish(cid, Err(failing.error));
                self.free = NONE;
            }
        }
        while ended.is_none() && usize::from(failing.parent) < self.cold.parents.len() {
            let index = failing.parent;
            failing.parent += 1;
            let parent = &mut self.cold.parents[usize::from(index)];
            if parent.used {
                parent.error = parent.error.or(Some(failing.error));
                ended = self.finish_parent(index);
            }
        }
        self.set_starved(false);
        self.budget = 0;
        self.cold.failing = Some(failing);
        if ended.is_none() || !self.is_busy() {
            self.cold.failing = None;
            self.cold.waiting.clear();
            self.in_flight = 0;
            self.budget = HOUSEKEEPING_INTERVAL;
            self.revive();
        }
        ended
    }

    /// Whether the controller was disabled or given up since the queues were made.
    #[inline]
    pub(super) fn is_stale(&self) -> bool {
        self.cold.inner.generation() != self.cold.generation
    }

    /// Makes stale queues again before anything is submitted to them: what comes after a reset is not ended by it.
    pub(super) fn renew_if_idle(&mut self) {
        if self.is_stale() && !self.is_busy() && self.cold.failing.is_none() && !self.cold.dead {
            self.revive();
        }
    }

    /// Makes the queues again after a reset, or is dead.
    fn revive(&mut self) {
        if let Err(error) = self.create_again() {
            let inner = &self.cold.inner;
            tracing::debug!(controller = %inner.address, qid = self.qid, error = %chain(&error), "queue pair is of no use any more");
            self.cold.dead = true;
            self.free = NONE;
            self.budget = 0;
        }
    }

    fn create_again(&mut self) -> Result<(), Error> {
        (self.unacked, self.sqhd) = (0, 0);
        let (sq, cq) = ((&mut self.sq, &mut self.sq_bell), (&mut self.cq, &mut self.cq_bell));
        let cold = &mut self.cold;
        cold.generation = cold.inner.renew_queues(QueueId(self.qid), sq, cq, cold.vector)?;
        self.cold.epoch_started = Instant::now();
        self.link_free();
        Ok(())
    }
}
