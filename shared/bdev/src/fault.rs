//! A channel that spoils what passes through it: errors, delays, and writes that are lost, torn or misplaced while they
//! report success. Which request is hit depends on the plan and its seed alone, or on rules that an operator changes
//! while it is in use ([`live`]).

pub mod live;

use crate::channel::{AnyChannel, Channel, Geometry, Submitted};
use crate::request::{ErrorKind, Op, Outcome, Request};
use ipc::guest_memory::{MemRange, Region, RegionTable};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The rule of what no live rule holds back.
const NO_RULE: u64 = 0;
/// Unit in which a torn write ends: what a drive writes at once.
const SECTOR: u64 = 512;
/// Most requests that are held back at a time; further ones are not delayed.
const MAX_HELD: usize = 4096;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It ends with this error and does nothing.
    Fail(ErrorKind),
    /// It ends this many nanoseconds later than it would.
    Delay(u64),
    /// It does not end for this many nanoseconds, or, by a live rule, until that rule goes.
    Hang(u64),
    /// A write reports success and does nothing.
    Lose,
    /// A write reports success and does only its first part.
    Tear,
    /// A write goes this many bytes further on (modulo the device's size).
    Misplace(u64),
}

/// Which of the requests that match are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// The one of this number, counted from 1, and no other.
    Nth(u64),
    /// So many in a million, by the plan's seed.
    PerMillion(u32),
}

/// One rule. The first rule that hits a request decides.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only this operation; any if `None`.
    pub op: Option<Op>,
    /// Only requests that touch this range of the device in bytes; any if `None`.
    pub range: Option<Range<u64>>,
    /// Which of those.
    pub when: When,
    /// What happens.
    pub effect: Effect,
}

/// Rules and the seed of their chance.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Same seed, same requests: same faults.
    pub seed: u64,
    /// In order of precedence.
    pub rules: Vec<Rule>,
}

/// A channel with faults.
pub struct FaultChannel {
    inner: Box<AnyChannel>,
    rules: Vec<(Rule, u64)>,
    random: u64,
    /// Rules that change.
    live: Option<live::Follower>,
    /// What requests that are with the inner channel are held back for when they end there.
    delays: Vec<Delayed>,
    /// What ended below.
    held: Vec<Held>,
}

/// A request that is with the inner channel.
struct Delayed {
    tag: u32,
    /// Nanoseconds.
    delay: u64,
    /// Held no longer than this live rule is there; [`NO_RULE`] if none is meant.
    rule: u64,
}

/// A request that ended below.
struct Held {
    /// When to report it.
    deadline: u64,
    tag: u32,
    outcome: Outcome,
    /// As in [`Delayed`].
    rule: u64,
}

impl FaultChannel {
    /// Puts a plan before a channel.
    pub fn new(inner: AnyChannel, plan: Plan) -> Self {
        Self {
            inner: Box::new(inner),
            rules: plan.rules.into_iter().map(|rule| (rule, 0)).collect(),
            // An xorshift generator's state must not be 0.
            random: plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            live: None,
            delays: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Puts rules that change before a channel. `seed` is that of their chance.
    pub fn live(inner: AnyChannel, rules: Arc<live::Rules>, seed: u64) -> Self {
        let plain = Self::new(inner, Plan { seed, rules: Vec::new() });
        Self { live: Some(live::Follower::new(rules)), ..plain }
    }

    /// The channel behind.
    pub fn inner(&self) -> &AnyChannel {
        &self.inner
    }

    /// The channel behind.
    pub fn inner_mut(&mut self) -> &mut AnyChannel {
        &mut self.inner
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// What happens to a request, and the live rule that says so.
    fn effect(&mut self, request: &Request<'_>) -> Option<(Effect, u64)> {
        if let Some(live) = &mut self.live {
            live.follow();
            if live.is_idle() {
                return None;
            }
            let chance = self.next_random() % 1_000_000;
            return self.live.as_ref()?.hit(request, chance);
        }
        let chance = self.next_random() % 1_000_000;
        for (rule, count) in &mut self.rules {
            if !rule.matches(request) {
                continue;
            }
            *count += 1;
            let hit = match rule.when {
                When::Always => true,
                When::Nth(number) => *count == number,
                When::PerMillion(rate) => chance < u64::from(rate),
            };
            if hit {
                return Some((rule.effect, NO_RULE));
            }
        }
        None
    }

    fn delayed(
        &mut self,
        request: &Request<'_>,
        memory: &RegionTable,
        now: u64,
        delay: u64,
        rule: u64,
    ) -> Submitted {
        let submitted = self.inner.submit(request, memory, now);
        if self.held.len() + self.delays.len() >= MAX_HELD {
            return submitted;
        }
        match submitted {
            Submitted::Done(outcome) => {
                let deadline = now.saturating_add(delay);
                self.held.push(Held { deadline, tag: request.tag, outcome, rule });
                Submitted::Pending
            }
            Submitted::Pending => {
                self.delays.push(Delayed { tag: request.tag, delay, rule });
                Submitted::Pending
            }
            Submitted::Full => Submitted::Full,
        }
    }

    fn torn(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        let sectors = request.length / SECTOR;
        let length = self.next_random().checked_rem(sectors).unwrap_or(0) * SECTOR;
        let mut left = length * request.op.memory_factor();
        let mut ranges = Vec::new();
        for range in request.ranges {
            let len = left.min(u64::from(range.len));
            left -= len;
            ranges.push(MemRange { len: len as u32, ..*range });
        }
        let torn = Request { length, ranges: &ranges, ..*request };
        self.inner.submit(&torn, memory, now)
    }

    /// Polls the inner channel; not generic, since a channel of channels would have no end of types.
    fn poll_inner(&mut self, now: u64) {
        let Self { inner, delays, held, .. } = self;
        inner.poll(now, &mut |tag, outcome| {
            let (delay, rule) = match delays.iter().position(|delayed| delayed.tag == tag) {
                Some(index) => {
                    let Delayed { delay, rule, .. } = delays.swap_remove(index);
                    (delay, rule)
                }
                None => (0, NO_RULE),
            };
            held.push(Held { deadline: now.saturating_add(delay), tag, outcome, rule });
        });
    }
}

impl Rule {
    fn matches(&self, request: &Request<'_>) -> bool {
        let end = request.offset.saturating_add(request.length);
        let touches = |range: &Range<u64>| request.offset < range.end && range.start < end;
        // An effect on writes passes everything else by.
        let applies = match self.effect {
            Effect::Fail(_) | Effect::Delay(_) | Effect::Hang(_) => true,
            Effect::Lose => request.op.writes(),
            Effect::Tear | Effect::Misplace(_) => {
                matches!(request.op, Op::Write | Op::WriteZeroes)
            }
        };
        applies
            && self.op.is_none_or(|op| op == request.op)
            && self.range.as_ref().is_none_or(touches)
    }
}

impl Channel for FaultChannel {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        match self.effect(request) {
            None => self.inner.submit(request, memory, now),
            Some((Effect::Fail(kind), _)) => Submitted::Done(Err(kind)),
            Some((Effect::Delay(delay) | Effect::Hang(delay), rule)) => {
                self.delayed(request, memory, now, delay, rule)
            }
            Some((Effect::Lose, _)) => Submitted::Done(Ok(())),
            Some((Effect::Tear, _)) => self.torn(request, memory, now),
            Some((Effect::Misplace(shift), _)) => {
                let places = self.inner.geometry().size.saturating_sub(request.length) + 1;
                let offset = request.offset.wrapping_add(shift) % places;
                self.inner.submit(&Request { offset, ..*request }, memory, now)
            }
        }
    }

    fn publish(&mut self) {
        self.inner.publish();
    }

    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        self.poll_inner(now);
        if let Some(live) = &mut self.live {
            live.follow();
        }
        let gone = self.inner.is_gone();
        let before = self.held.len();
        let live = &self.live;
        self.held.retain(|&Held { deadline, tag, outcome, rule }| {
            let freed = live.as_ref().is_some_and(|live| rule != NO_RULE && !live.has(rule));
            let due = deadline <= now || freed || gone;
            if due {
                complete(tag, outcome);
            }
            !due
        });
        before - self.held.len()
    }

    fn outstanding(&self) -> usize {
        self.inner.outstanding() + self.held.len()
    }

    fn deadline(&self) -> Option<u64> {
        let held = self.held.iter().map(|held| held.deadline).min();
        held.into_iter().chain(self.inner.deadline()).min()
    }

    fn park(&mut self) -> bool {
        self.inner.park()
    }

    fn unpark(&mut self) {
        self.inner.unpark();
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.inner.event()
    }

    fn forget(&mut self, region: &Arc<Region>) {
        self.inner.forget(region);
    }

    fn is_gone(&self) -> bool {
        self.inner.is_gone()
    }
}
