//! Taking requests in: cut into parts, started, or held back by a fused pair.

use super::super::job;
use super::super::parts::{Parts, cut};
use super::super::places::{Member, State};
use super::{Engine, Link};
use crate::channel::Submitted;
use crate::error::ErrorKind;
use crate::request::{Op, Outcome, Request};
use ipc::guest_memory::RegionTable;
use std::ops::Range;

impl Engine {
    /// Takes a request.
    pub fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        self.now = self.now.max(now);
        if matches!(self.link, Link::Lost) {
            return Submitted::Done(Err(ErrorKind::Gone));
        }
        if self.free.is_empty() {
            return Submitted::Full;
        }
        if let Err(kind) = job::check(request, &self.drive) {
            return Submitted::Done(Err(kind));
        }
        let Request { op, offset, length, .. } = *request;
        let parts = cut(op, offset, length, &self.drive, self.free.len());
        if parts.count() > 1 {
            return self.submit_parts(request, memory, &parts);
        }
        match self.start(request, memory, 0..length, None) {
            Err(kind) => Submitted::Done(Err(kind)),
            Ok((place, Some(outcome))) => {
                self.release(place);
                Submitted::Done(outcome)
            }
            Ok((_, None)) => {
                self.requests += 1;
                Submitted::Pending
            }
        }
    }

    /// Takes a request in several parts.
    #[cold]
    fn submit_parts(
        &mut self,
        request: &Request<'_>,
        memory: &RegionTable,
        parts: &Parts,
    ) -> Submitted {
        // There are as many as places, of which each group has two.
        let Some(group) = self.groups.begin(request.tag, parts.count()) else {
            return Submitted::Full;
        };
        let mut ended = None;
        for number in 0..parts.count() {
            let member = Member { group, number: number as u16 };
            let outcome = match self.start(request, memory, parts.range(number), Some(member)) {
                Ok((_, None)) => continue,
                Ok((place, Some(outcome))) => {
                    self.release(place);
                    outcome
                }
                Err(kind) => Err(kind),
            };
            ended = self.groups.end(group, member.number, outcome);
        }
        match ended {
            Some((_, outcome)) => Submitted::Done(outcome),
            None => {
                self.requests += 1;
                Submitted::Pending
            }
        }
    }

    /// Starts a part at a free place, of which there is one: the place, and its outcome if it is over.
    #[inline]
    fn start(
        &mut self,
        request: &Request<'_>,
        memory: &RegionTable,
        part: Range<u64>,
        group: Option<Member>,
    ) -> Result<(u16, Option<Outcome>), ErrorKind> {
        let Some(&place) = self.free.last() else { return Err(ErrorKind::Busy) };
        let Self { places, drive, .. } = self;
        let entry = &mut places[usize::from(place)];
        if let Err(kind) = entry.job.begin(request, memory, drive, part) {
            entry.job.finish();
            return Err(kind);
        }
        entry.group = group;
        self.free.pop();
        self.writing += usize::from(request.op.writes());
        if request.op == Op::CompareAndWrite {
            self.fused += 1;
            if self.fused == 1 && !self.gates.is_empty() {
                self.gates.set_exclusive(true);
            }
        }
        if self.fused > 0 && self.must_wait(place, self.blocked.len()) {
            self.places[usize::from(place)].state = State::Blocked;
            self.blocked.push_back(place);
            return Ok((place, None));
        }
        Ok((place, self.run(place)))
    }

    /// Whether a request must wait: one that excludes it is under way, or is among the first `older` that wait.
    fn must_wait(&self, place: u16, older: usize) -> bool {
        let job = &self.places[usize::from(place)].job;
        if job.op == Op::CompareAndWrite && self.gates.writers_inside() {
            return true;
        }
        let excluded =
            |index: usize| index != usize::from(place) && self.places[index].job.excludes(job);
        let under_way = |index: usize| {
            matches!(self.places[index].state, State::Sent { .. } | State::Waiting(_))
        };
        (0..self.places.len()).any(|index| under_way(index) && excluded(index))
            || self.blocked.iter().take(older).any(|&place| excluded(place.into()))
    }

    /// Whether a fused pair may be waiting for leased writes to end.
    #[inline]
    pub(super) fn is_gated(&self) -> bool {
        self.fused > 0 && !self.gates.is_empty() && !self.blocked.is_empty()
    }

    /// Starts requests that were excluded and are not any more.
    #[cold]
    pub(super) fn unblock(&mut self, complete: &mut impl FnMut(u32, Outcome)) {
        let mut at = 0;
        while let Some(&place) = self.blocked.get(at) {
            if self.must_wait(place, at) {
                at += 1;
                continue;
            }
            self.blocked.remove(at);
            if let Some(outcome) = self.run(place) {
                self.finish(place, outcome, complete);
            }
        }
    }
}
