//! Rules that an operator changes while guests run: one list for a block device, followed by all of its channels.
//!
//! A channel looks at one number per request and takes the list anew when that has changed. What rules count stands in a
//! segment, so that a rule for the next N requests hits N of them, however many workers they come through.

use super::Effect;
use crate::request::{Op, Request};
use ipc::layout::faults::{FaultsLayout, MAX_FAULTS};
use ipc::segment::Segment;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Which of the requests that match are hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So many in a million.
    PerMillion(u32),
    /// One in so many: the last of each; 0 is none.
    Every(u64),
    /// So many, from the first on.
    Next(u64),
}

/// One rule. The first that hits a request decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRule {
    /// Tells rules apart; never 0.
    pub id: u64,
    /// Its counters in the segment.
    pub slot: usize,
    /// Only these operations; any if empty. A fused pair is both a compare and a write.
    pub ops: Vec<Op>,
    /// Only requests that touch this range of the device in bytes; any if `None`.
    pub range: Option<Range<u64>>,
    /// Which of those.
    pub when: When,
    /// What happens.
    pub effect: Effect,
}

/// What is in force.
struct List {
    rules: Vec<LiveRule>,
    counters: Option<Arc<Segment<FaultsLayout>>>,
}

/// The rules of one block device.
pub struct Rules {
    /// Raised with every change.
    generation: AtomicU64,
    list: Mutex<Arc<List>>,
}

/// One channel's view of the rules.
pub(super) struct Follower {
    rules: Arc<Rules>,
    seen: u64,
    list: Arc<List>,
}

impl Default for Rules {
    fn default() -> Self {
        let list = List { rules: Vec::new(), counters: None };
        Self { generation: AtomicU64::new(0), list: Mutex::new(Arc::new(list)) }
    }
}

impl Rules {
    /// Replaces all rules; what they count stands in `counters`. In force for requests from now on.
    pub fn replace(&self, rules: Vec<LiveRule>, counters: Arc<Segment<FaultsLayout>>) {
        let list = Arc::new(List { rules, counters: Some(counters) });
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = list;
        // Release: pairs with the Acquire in `Follower::follow`.
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Follower {
    pub(super) fn new(rules: Arc<Rules>) -> Self {
        let seen = rules.generation.load(Ordering::Acquire);
        let list = Arc::clone(&rules.list.lock().unwrap_or_else(PoisonError::into_inner));
        Self { rules, seen, list }
    }

    /// Takes the list as it is now, unless it is just being replaced: then with the next request.
    pub(super) fn follow(&mut self) {
        // Acquire: pairs with the Release in `Rules::replace`.
        let generation = self.rules.generation.load(Ordering::Acquire);
        if generation != self.seen
            && let Ok(list) = self.rules.list.try_lock()
        {
            self.list = Arc::clone(&list);
            self.seen = generation;
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.list.rules.is_empty()
    }

    /// Whether a rule is still there.
    pub(super) fn has(&self, rule: u64) -> bool {
        self.list.rules.iter().any(|other| other.id == rule)
    }

    /// What happens to a request, and by which rule. `chance` is a number below a million.
    pub(super) fn hit(&self, request: &Request<'_>, chance: u64) -> Option<(Effect, u64)> {
        let counters = self.list.counters.as_ref()?;
        let hit = self.list.rules.iter().filter(|rule| rule.matches(request)).find(|rule| {
            let counter = &counters.rules[rule.slot % MAX_FAULTS];
            // Relaxed: counters that stand for themselves.
            let number = counter.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            let hit = match rule.when {
                When::PerMillion(rate) => chance < u64::from(rate),
                When::Every(every) => every != 0 && number.is_multiple_of(every),
                When::Next(most) => number <= most,
            };
            if hit {
                counter.hit.fetch_add(1, Ordering::Relaxed);
            }
            hit
        })?;
        Some((hit.effect, hit.id))
    }
}

impl LiveRule {
    fn matches(&self, request: &Request<'_>) -> bool {
        let op = request.op;
        let is = |wanted: &Op| {
            *wanted == op || op == Op::CompareAndWrite && matches!(wanted, Op::Compare | Op::Write)
        };
        let end = request.offset.saturating_add(request.length);
        let touches =
            |range: &Range<u64>| op != Op::Flush && request.offset < range.end && range.start < end;
        (self.ops.is_empty() || self.ops.iter().any(is)) && self.range.as_ref().is_none_or(touches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{AnyChannel, Channel, Geometry, Submitted};
    use crate::fault::FaultChannel;
    use crate::null::NullChannel;
    use crate::request::ErrorKind;
    use ipc::guest_memory::RegionTable;

    fn rule(when: When, effect: Effect) -> LiveRule {
        LiveRule { id: 7, slot: 3, ops: vec![Op::Write], range: Some(4096..8192), when, effect }
    }

    fn rig() -> (Arc<Rules>, Arc<Segment<FaultsLayout>>, FaultChannel) {
        let rules = Arc::new(Rules::default());
        let counters = Arc::new(Segment::create("faults", 1).unwrap());
        let geometry = Geometry { size: 1 << 20, read_only: false };
        let null = AnyChannel::Null(NullChannel::new(geometry, 0));
        (Arc::clone(&rules), counters, FaultChannel::live(null, rules, 1))
    }

    fn submit(channel: &mut FaultChannel, op: Op, offset: u64, tag: u32) -> Submitted {
        channel.submit(&Request::new(op, offset, 4096, &[], tag), &RegionTable::new(), 10)
    }

    const FAILED: Submitted = Submitted::Done(Err(ErrorKind::Medium));
    const DONE: Submitted = Submitted::Done(Ok(()));

    #[test]
    fn the_next_requests_are_hit_through_whatever_channel_and_no_other() {
        let (rules, counters, mut channel) = rig();
        let geometry = Geometry { size: 1 << 20, read_only: false };
        let null = AnyChannel::Null(NullChannel::new(geometry, 0));
        let mut other = FaultChannel::live(null, Arc::clone(&rules), 2);
        assert_eq!(submit(&mut channel, Op::Write, 4096, 0), DONE);
        rules.replace(vec![rule(When::Next(2), Effect::Fail(ErrorKind::Medium))], counters.clone());
        assert_eq!(submit(&mut channel, Op::Read, 4096, 0), DONE, "another operation");
        assert_eq!(submit(&mut channel, Op::Write, 0, 0), DONE, "ends where the range begins");
        assert_eq!(submit(&mut channel, Op::Write, 8192, 0), DONE, "begins where the range ends");
        assert_eq!(submit(&mut channel, Op::Write, 512, 0), FAILED);
        assert_eq!(submit(&mut other, Op::Write, 4096, 0), FAILED);
        assert_eq!(submit(&mut channel, Op::Write, 4096, 0), DONE);
        assert_eq!(counters.rules[3].hit.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn one_in_so_many_is_hit_until_the_rule_goes() {
        let (rules, counters, mut channel) = rig();
        rules
            .replace(vec![rule(When::Every(3), Effect::Fail(ErrorKind::Medium))], counters.clone());
        let mut hits =
            || (0..9).filter(|_| submit(&mut channel, Op::Write, 4096, 0) == FAILED).count();
        assert_eq!(hits(), 3);
        rules.replace(Vec::new(), counters);
        assert_eq!(hits(), 0);
    }

    #[test]
    fn what_hangs_ends_when_its_rule_goes_or_its_time_is_over() {
        let (rules, counters, mut channel) = rig();
        let polled = |channel: &mut FaultChannel, now| {
            let mut ended = Vec::new();
            channel.poll(now, &mut |tag, outcome| ended.push((tag, outcome)));
            ended
        };
        rules
            .replace(vec![rule(When::PerMillion(1_000_000), Effect::Hang(1000))], counters.clone());
        assert_eq!(submit(&mut channel, Op::Write, 4096, 1), Submitted::Pending);
        assert_eq!(channel.deadline(), Some(1010));
        assert_eq!(polled(&mut channel, 1009), []);
        assert_eq!(polled(&mut channel, 1010), [(1, Ok(()))]);
        assert_eq!(submit(&mut channel, Op::Write, 4096, 2), Submitted::Pending);
        rules.replace(Vec::new(), counters);
        assert_eq!(polled(&mut channel, 11), [(2, Ok(()))]);
        assert_eq!(channel.outstanding(), 0);
    }
}
