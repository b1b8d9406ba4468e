//! Interrupts: once per batch, and not while the guest is still reaping.
//!
//! Entries that are posted and neither reaped nor signalled are owed an interrupt, and looking after them counts as
//! work. A guest that had reaped everything when they came is signalled at once. Of any other the head is looked at
//! again: as long as it moves, the guest is still at it and will find them; once two polls see the same, it is signalled.

use super::Controller;
use crate::doorbells::Doorbells;
use crate::notify::Notifier;
use ipc::layout::queues::FailureReason;
use ipc::layout::telemetry::add;

impl Controller {
    /// Signals the vectors whose time has come. Returns how many completion queues were owed.
    pub(super) fn signal(&mut self, now: u64, notifier: &mut impl Notifier) -> usize {
        let mut left = self.owed;
        let owed = left.count_ones() as usize;
        let mut fire = 0_u128;
        let mut invalid = None;
        let doorbells = Doorbells::new(&self.page, self.shadow.as_ref(), self.memory.regions());
        while left != 0 {
            let cqid = left.trailing_zeros() as usize;
            left &= left - 1;
            let Some(Some(cq)) = self.cqs.get_mut(cqid) else {
                self.owed &= !(1 << cqid);
                continue;
            };
            let Some(vector) = cq.vector else {
                self.owed &= !(1 << cqid);
                cq.owed = false;
                continue;
            };
            if cq.valid
                && let Err(value) = cq.position.observe(doorbells.head(cqid))
            {
                invalid = Some((cqid, value));
            }
            let (reaped, posted) = (cq.position.reaped(), cq.position.posted());
            if reaped == posted {
                self.owed &= !(1 << cqid);
                cq.owed = false;
                self.vectors.let_go(vector);
            } else if self.vectors.is_connected(vector) && !cq.was_empty && cq.head_seen != reaped {
                cq.head_seen = reaped;
            } else if !self.vectors.holds_back(vector, posted - reaped, now) {
                self.owed &= !(1 << cqid);
                cq.owed = false;
                fire |= 1 << (vector % 128);
            }
            if !cq.owed {
                cq.was_empty = false;
                cq.head_seen = u64::MAX;
            }
        }
        if let Some((cqid, value)) = invalid {
            self.refuse_head(cqid, value);
        }
        while fire != 0 {
            let vector = fire.trailing_zeros() as usize;
            fire &= fire - 1;
            match self.vectors.signal(vector, notifier) {
                Ok(()) => add(&self.queues.acknowledged.interrupts, 1),
                Err(_) => self.fail(FailureReason::StuckInterrupt),
            }
        }
        owed
    }
}
