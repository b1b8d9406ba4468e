//! The lines in which commands wait for their turn, one for each namespace.

use super::account::{Account, Cost, Due};
use crate::namespaces::Paused;
use ipc::layout::limits::{Limit, LimitsLayout, MAX_CONTROLLERS};
use ipc::layout::{MAX_IN_FLIGHT, MAX_NAMESPACES, MAX_QUEUES};
use ipc::segment::Segment;

/// Longest that the first of a line waits, in nanoseconds, whatever the accounts say: what the largest transfer takes at the
/// lowest rate.
const LONGEST_WAIT: u64 = 64_000_000_000;
/// One for each namespace, and one for commands of none.
pub(super) const LINES: usize = MAX_NAMESPACES + 1;
/// No slot.
const NONE: u16 = u16::MAX;

const _: () = assert!(MAX_IN_FLIGHT < NONE as usize);

/// The place of a line's first command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// When it is due.
    pub(super) release: u64,
    /// The limit that says so.
    pub(super) limit: Option<Limit>,
    cost: Cost,
    /// The accounts it was taken in.
    own: Account,
    space: Account,
}

/// Waiting commands of one namespace, linked by [`Limits::next`].
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub(super) head: u16,
    tail: u16,
    pub(super) len: u32,
    /// Of the first command, once it has one.
    pub(super) place: Option<Place>,
}

impl Line {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0, place: None };
}

/// A controller's part in limits.
pub(in crate::controller) struct Limits {
    pub(super) segment: Option<Segment<LimitsLayout>>,
    /// The controller's row.
    pub(super) row: usize,
    /// [`LimitsLayout::generation`] that was taken in.
    pub(super) generation: Option<u64>,
    /// Whether anything of this controller is limited.
    pub(in crate::controller) any: bool,
    /// When waiting commands are to be looked at; `u64::MAX` if there are none.
    pub(in crate::controller) due: u64,
    pub(super) own: Account,
    pub(super) spaces: Vec<Account>,
    pub(super) lines: Vec<Line>,
    pub(super) next: Vec<u16>,
    /// Lines that are not empty.
    pub(super) busy: Vec<u16>,
    /// The busy line that comes first.
    pub(super) turn: usize,
    /// Waiting commands by submission queue.
    pub(super) parked: [u16; MAX_QUEUES],
    /// Commands of one queue that may wait before it is not fetched from.
    pub(super) share: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment: None,
            row: 0,
            generation: None,
            any: false,
            due: u64::MAX,
            own: Account::default(),
            spaces: Vec::new(),
            lines: Vec::new(),
            next: Vec::new(),
            busy: Vec::new(),
            turn: 0,
            parked: [0; MAX_QUEUES],
            share: MAX_IN_FLIGHT as u16,
        }
    }
}

impl Limits {
    /// Whether no command waits.
    pub(in crate::controller) fn is_idle(&self) -> bool {
        self.busy.is_empty()
    }

    /// Commands that wait in a line.
    pub(in crate::controller) fn waiting_in(&self, line: usize) -> usize {
        self.lines.get(line).map_or(0, |line| line.len as usize)
    }

    pub(super) fn space(&self, line: usize) -> Account {
        self.spaces.get(line).copied().unwrap_or_default()
    }

    /// The line of a namespace's row.
    pub(super) fn line_of(row: usize) -> usize {
        row.min(MAX_NAMESPACES)
    }

    /// Takes a place for what goes to a line's namespace.
    pub(super) fn place(&mut self, line: usize, cost: Cost, now: u64) -> Place {
        let (mut own, mut space) = (self.own, self.space(line));
        let (mut of_own, mut of_space) = (Due::default(), Due::default());
        if let Some(segment) = &self.segment {
            of_own = own.charge(&segment.controllers[self.row % MAX_CONTROLLERS], cost, now);
            if let Some(row) = segment.namespaces.get(line) {
                of_space = space.charge(row, cost, now);
            }
        }
        self.own = own;
        if let Some(known) = self.spaces.get_mut(line) {
            *known = space;
        }
        let by_own = of_space.rate.is_none() || of_own.release > of_space.release;
        let by_own = by_own && of_own.rate.is_some();
        let last = if by_own { of_own } else { of_space };
        let release = last.release.min(now.saturating_add(LONGEST_WAIT));
        let limit = last.rate.map(|rate| Limit { of_controller: by_own, rate });
        Place { release, limit, cost, own, space }
    }

    /// The first of a line leaves it otherwise than by its turn, or its rates are others.
    pub(super) fn give_back(&mut self, line: usize) {
        let place = self.lines.get_mut(line).and_then(|line| line.place.take());
        if let (Some(segment), Some(place)) = (&self.segment, place) {
            place.own.refund(&segment.controllers[self.row % MAX_CONTROLLERS], place.cost);
            if let Some(row) = segment.namespaces.get(line) {
                place.space.refund(row, place.cost);
            }
        }
        self.due = 0;
    }

    /// Gives back what was taken by rates of before.
    pub(super) fn give_changed_back(&mut self) {
        for index in 0..self.busy.len() {
            let Some(line) = self.busy.get(index).map(|&line| usize::from(line)) else { break };
            let place = self.lines.get(line).and_then(|line| line.place);
            let same = |place: Place| place.own == self.own && place.space == self.space(line);
            if !place.is_some_and(same) {
                self.give_back(line);
            }
        }
    }

    pub(in crate::controller) fn push(&mut self, line: usize, slot: u16) {
        let Some(end) = self.lines.get_mut(line) else { return };
        if let Some(next) = self.next.get_mut(usize::from(slot)) {
            *next = NONE;
        }
        if end.len == 0 {
            end.head = slot;
            self.busy.push(line as u16);
        } else if let Some(next) = self.next.get_mut(usize::from(end.tail)) {
            *next = slot;
        }
        end.tail = slot;
        end.len += 1;
    }

    pub(in crate::controller) fn pop(&mut self, line: usize) -> Option<u16> {
        let end = self.lines.get_mut(line).filter(|line| line.len > 0)?;
        let slot = end.head;
        end.head = self.next.get(usize::from(slot)).copied().unwrap_or(NONE);
        end.len -= 1;
        if end.len == 0 {
            (end.head, end.tail) = (NONE, NONE);
            self.busy.retain(|&busy| usize::from(busy) != line);
        }
        Some(slot)
    }

    /// The busy lines in turn: another one comes first than the last time, or it would have all that may go at once.
    pub(super) fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// The busy line that comes after so many others.
    pub(super) fn busy_line(&self, place: usize) -> Option<usize> {
        let index = self.turn.wrapping_add(place).checked_rem(self.busy.len())?;
        self.busy.get(index).map(|&line| usize::from(line))
    }

    /// When the first of all waiting commands may go, but for those of paused namespaces.
    pub(super) fn next_due(&self, paused: Paused) -> u64 {
        let busy = self.busy.iter().map(|&line| usize::from(line));
        let lines = busy.filter(|&line| !paused.has(line)).filter_map(|line| self.lines.get(line));
        lines.map(|line| line.place.map_or(0, |place| place.release)).min().unwrap_or(u64::MAX)
    }
}
