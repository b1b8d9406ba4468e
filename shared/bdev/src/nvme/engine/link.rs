//! What happens to the drive as a whole: memory that comes and goes, queues made again, a drive lost and found.

use super::super::control::{Ask, Attachment, Told};
use super::super::memory::key;
use super::super::places::{PlaceInUse, Reason, State, uses};
use super::{Engine, Link, RETRIES};
use crate::error::ErrorKind;
use crate::request::Outcome;
use ipc::guest_memory::Region;
use std::sync::Arc;

impl Engine {
    /// Takes what the control thread tells.
    pub fn told(&mut self, told: Told, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        self.stirred = true;
        match told {
            Told::Memory(key, answer) => {
                self.memory.told(key, answer, &mut self.outbox);
                let Self { gates, memory, outbox, .. } = self;
                gates.place(memory, outbox);
                self.settle();
            }
            Told::Renewed(queue) => self.link = Link::Up(queue),
            Told::Changed(drive) => self.drive = drive,
            Told::Unleased(id) => self.gates.remove(id),
            // The device's own: it hands leases on.
            Told::Leased(_) | Told::Freed => {}
            Told::Lost => return self.lose(complete),
            Told::Found(found) => {
                let Attachment { drive, queue, buffers, zeroes } = *found;
                self.link = Link::Up(Box::new(queue));
                (self.drive, self.buffers, self.zeroes) = (drive, buffers, Some(zeroes));
                self.resetting = false;
            }
        }
        0
    }

    /// Lets go of a region as soon as no request uses it.
    pub fn forget(&mut self, region: &Arc<Region>) {
        let used = uses(&self.places, key(region)) || self.gates.uses(key(region));
        self.memory.forget(region, used, &mut self.outbox);
    }

    /// The drive is gone: everything ends, and what may take a while to let go of is the control thread's to drop.
    pub fn lose(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        if let Link::Up(queue) = std::mem::replace(&mut self.link, Link::Lost) {
            self.outbox.push_back(Ask::Discard(queue));
        }
        self.waiting.clear();
        self.blocked.clear();
        let mut ended = 0;
        for place in 0..self.places.len() as u16 {
            if self.places[usize::from(place)].state != State::Free {
                let mut count = |tag, outcome| {
                    ended += 1;
                    complete(tag, outcome);
                };
                self.finish(place, Err(ErrorKind::Gone), &mut count);
            }
        }
        self.sent = 0;
        self.gates.clear();
        self.memory.clear(&mut self.outbox);
        let buffers = (std::mem::take(&mut self.buffers), self.zeroes.take());
        self.outbox.push_back(Ask::Discard(Box::new(buffers)));
        ended
    }

    /// Lets go of memory that waits for its last request to end.
    #[inline]
    pub(super) fn settle(&mut self) {
        if self.memory.is_leaving() {
            let Self { places, memory, gates, outbox, .. } = self;
            memory.settle(|key| uses(places, key) || gates.uses(key), outbox);
        }
    }

    /// The controller was disabled: what it had is over and is sent again to its successor.
    #[cold]
    pub fn renew(&mut self, complete: &mut impl FnMut(u32, Outcome)) {
        if let Link::Up(queue) = std::mem::replace(&mut self.link, Link::Renewing) {
            self.outbox.push_back(Ask::Renew(queue));
        }
        self.resetting = false;
        self.sent = 0;
        for place in 0..self.places.len() as u16 {
            let PlaceInUse { job, state, .. } = &mut self.places[usize::from(place)];
            if !matches!(state, State::Sent { .. }) {
                continue;
            }
            job.retries += 1;
            if job.retries > RETRIES {
                self.finish(place, Err(ErrorKind::Busy), complete);
            } else {
                self.wait(place, Reason::Queue);
            }
        }
    }
}
