//! Faults that an operator injects: put before every channel that this worker opens, where the configuration allows them.
//! Where it does not, no channel has anything to do with them.

use bdev::channel::AnyChannel;
use bdev::fault::live::{LiveRule, Rules, When};
use bdev::fault::{Effect, FaultChannel};
use bdev::request::{ErrorKind, Op};
use ipc::layout::faults::{FaultsLayout, MAX_FAULTS};
use ipc::segment::Segment;
use service::control::Incoming;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vireo_proto::Failure;
use vireo_proto::handoff::{self, FaultError, FaultOperation, SetFaults, fault};

/// The rules of every block device.
#[derive(Default)]
pub(super) struct Faults {
    present: Mutex<Present>,
    random: RandomState,
}

#[derive(Default)]
struct Present {
    /// Shared with the channels.
    rules: HashMap<String, Arc<Rules>>,
    /// What is in force, for channels that are still to be opened.
    wanted: HashMap<String, Vec<LiveRule>>,
    counters: Option<Arc<Segment<FaultsLayout>>>,
    channels: u64,
}

impl Faults {
    /// A channel of `bdev` with its faults before it.
    pub(super) fn before(&self, bdev: &str, channel: AnyChannel) -> AnyChannel {
        let mut present = self.present();
        present.channels += 1;
        let seed = self.random.hash_one(present.channels);
        let rules = present.rules_of(bdev);
        AnyChannel::Fault(FaultChannel::live(channel, rules, seed))
    }

    /// Has these faults injected and no others. Channels know when this returns.
    ///
    /// # Errors
    /// What is wrong with them; nothing is changed.
    pub(super) fn set(&self, incoming: &mut Incoming, set: &SetFaults) -> Result<(), Failure> {
        let [counters] = incoming.take_fds()?;
        if set.faults.len() > MAX_FAULTS {
            return Err(Failure::invalid(format!("more than {MAX_FAULTS} faults")));
        }
        let counters = Segment::open(counters).map_err(|error| Failure::internal(&error))?;
        let mut wanted: HashMap<String, Vec<LiveRule>> = HashMap::new();
        for fault in &set.faults {
            wanted.entry(fault.bdev.clone()).or_default().push(rule(fault)?);
        }
        let mut present = self.present();
        present.counters = Some(Arc::new(counters));
        present.wanted = wanted;
        // Bdevs come and go: what no channel uses any more, and no fault names, goes.
        let Present { rules, wanted, .. } = &mut *present;
        rules.retain(|bdev, rules| Arc::strong_count(rules) > 1 || wanted.contains_key(bdev));
        let named: Vec<String> = present.rules.keys().cloned().collect();
        named.iter().for_each(|bdev| present.put_in_force(bdev));
        Ok(())
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Present {
    fn rules_of(&mut self, bdev: &str) -> Arc<Rules> {
        if let Some(rules) = self.rules.get(bdev) {
            return Arc::clone(rules);
        }
        let rules = Arc::<Rules>::default();
        self.rules.insert(bdev.to_owned(), Arc::clone(&rules));
        self.put_in_force(bdev);
        rules
    }

    fn put_in_force(&self, bdev: &str) {
        if let (Some(rules), Some(counters)) = (self.rules.get(bdev), &self.counters) {
            let wanted = self.wanted.get(bdev).cloned().unwrap_or_default();
            rules.replace(wanted, Arc::clone(counters));
        }
    }
}

fn rule(fault: &handoff::Fault) -> Result<LiveRule, Failure> {
    let wrong = |what: &str| Failure::invalid(format!("fault {} has no known {what}", fault.id));
    let ops: Option<Vec<Op>> = fault.operations().map(op).collect();
    let when = match fault.when {
        Some(fault::When::PerMillion(rate)) => When::PerMillion(rate),
        Some(fault::When::Every(every)) => When::Every(every),
        Some(fault::When::Next(most)) => When::Next(most),
        None => return Err(wrong("condition")),
    };
    let effect = match fault.effect {
        Some(fault::Effect::Error(code)) => {
            let kind = FaultError::try_from(code).ok().and_then(kind);
            Effect::Fail(kind.ok_or_else(|| wrong("error"))?)
        }
        Some(fault::Effect::DelayNs(delay)) => Effect::Delay(delay),
        Some(fault::Effect::HangNs(bound)) => Effect::Hang(bound),
        None => return Err(wrong("effect")),
    };
    let end = fault.offset.saturating_add(fault.length);
    Ok(LiveRule {
        id: fault.id,
        slot: fault.slot as usize,
        ops: ops.ok_or_else(|| wrong("operation"))?,
        range: (fault.length > 0).then_some(fault.offset..end),
        when,
        effect,
    })
}

fn op(operation: FaultOperation) -> Option<Op> {
    Some(match operation {
        FaultOperation::Unspecified => return None,
        FaultOperation::Read => Op::Read,
        FaultOperation::Write => Op::Write,
        FaultOperation::Flush => Op::Flush,
        FaultOperation::Compare => Op::Compare,
        FaultOperation::WriteZeroes => Op::WriteZeroes,
        FaultOperation::Deallocate => Op::Deallocate,
        FaultOperation::Verify => Op::Verify,
        FaultOperation::Copy => Op::Copy,
    })
}

fn kind(error: FaultError) -> Option<ErrorKind> {
    Some(match error {
        FaultError::Unspecified => return None,
        FaultError::Medium => ErrorKind::Medium,
        FaultError::NoSpace => ErrorKind::NoSpace,
        FaultError::ReadOnly => ErrorKind::ReadOnly,
        FaultError::Busy => ErrorKind::Busy,
        FaultError::Internal => ErrorKind::Internal,
        FaultError::Transfer => ErrorKind::Fault,
        FaultError::OutOfRange => ErrorKind::OutOfRange,
        FaultError::CompareFailed => ErrorKind::CompareFailed,
        FaultError::Unsupported => ErrorKind::Unsupported,
    })
}
