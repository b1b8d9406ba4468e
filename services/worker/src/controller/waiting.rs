//! Where commands wait that no block device has, and how they end there otherwise than by going on.

use super::Controller;
use crate::slots::Flight;
use nvme_spec::Status;

/// A line of waiting commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// For their channels.
    Channel,
    /// For the end of their namespaces' pauses.
    Pause,
    /// For their turn at a limit: the line of a namespace.
    Limit(usize),
}

impl Controller {
    /// Ends commands that are `wanted`, wherever they wait, at most `most`. Returns how many.
    #[cold]
    pub(super) fn abort_waiting(
        &mut self,
        wanted: impl Fn(&Flight) -> bool,
        status: Status,
        most: usize,
    ) -> usize {
        let mut found = 0;
        for line in [Line::Channel, Line::Pause] {
            found += self.abort_in(line, &wanted, status, most - found);
        }
        found + self.abort_parked(wanted, status, most - found)
    }

    /// The same in one line.
    #[cold]
    pub(super) fn abort_in(
        &mut self,
        line: Line,
        wanted: impl Fn(&Flight) -> bool,
        status: Status,
        most: usize,
    ) -> usize {
        let mut found = 0;
        let count = if most > 0 { self.count_in(line) } else { 0 };
        // Once around: those that stay come to stand as they stood.
        for _ in 0..count {
            let Some(slot) = self.take_from(line) else { break };
            let flight = *self.slots.flight(slot);
            if found >= most || !wanted(&flight) {
                self.put_into(line, slot);
                continue;
            }
            found += 1;
            if line != Line::Channel {
                self.unpark(usize::from(flight.sqid));
            }
            self.abort_slot(slot, status);
        }
        found
    }

    fn count_in(&self, line: Line) -> usize {
        match line {
            Line::Channel => self.waiting.len(),
            Line::Pause => self.pause.held(),
            Line::Limit(line) => self.limits.waiting_in(line),
        }
    }

    fn take_from(&mut self, line: Line) -> Option<u16> {
        match line {
            Line::Channel => self.waiting.pop_front(),
            Line::Pause => self.pause.take_held(),
            Line::Limit(line) => self.limits.pop(line),
        }
    }

    fn put_into(&mut self, line: Line, slot: u16) {
        match line {
            Line::Channel => self.waiting.push_back(slot),
            Line::Pause => self.pause.put_held(slot),
            Line::Limit(line) => self.limits.push(line, slot),
        }
    }
}
