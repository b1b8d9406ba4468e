//! What commands cost, and the accounts in which that is kept.

use ipc::layout::limits::{LimitRow, RATES, Rate};
use nvme::nvm::Namespace;
use nvme_spec::command::{Command, NvmOpcode};
use nvme_spec::nvm::BlockIo;
use std::sync::atomic::{AtomicU64, Ordering};

/// What of a rate is saved up while nobody uses it, in nanoseconds: longer than a machine with more threads than cores
/// keeps a worker waiting as a rule, short enough that a second sees a tenth more at most.
pub const BURST: u64 = 100_000_000;
const SECOND: u64 = 1_000_000_000;
/// Times that a refund is tried while others change the account.
const REFUND_TRIES: usize = 64;

/// Which of the rates a command counts for beside those of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Read,
    Write,
    Other,
}

/// What a command, or a part of one, takes of the rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) class: Class,
    pub(super) commands: u64,
    pub(super) bytes: u64,
}

impl Cost {
    /// Of a command of a namespace; a pair is its write. What is too long to be carried out moves nothing.
    pub(super) fn of(
        command: &Command,
        pair: bool,
        space: Option<&Namespace>,
        max_transfer: u32,
    ) -> Self {
        let blocks = BlockIo::parse(command).blocks.0;
        let bytes = space.map_or(0, |space| blocks.checked_shl(space.block_shift).unwrap_or(0));
        let moved = if bytes <= u64::from(max_transfer) { bytes } else { 0 };
        let (class, bytes) = match command.nvm_opcode() {
            _ if pair => (Class::Write, moved),
            NvmOpcode::READ | NvmOpcode::COMPARE => (Class::Read, moved),
            NvmOpcode::VERIFY => (Class::Read, bytes),
            NvmOpcode::WRITE => (Class::Write, moved),
            // What a Copy moves is known when its ranges are (`Controller::charge_step`).
            NvmOpcode::WRITE_ZEROES | NvmOpcode::COPY => (Class::Write, 0),
            _ => (Class::Other, 0),
        };
        Self { class, commands: 1, bytes }
    }

    /// Nanoseconds of each rate, by its index.
    pub(super) fn prices(self, rates: &[u64; RATES]) -> impl Iterator<Item = (usize, u64)> + use<> {
        let of = |rate: Rate, amount: u64| {
            let price = match rates[rate as usize] {
                0 => 0,
                a_second => amount.saturating_mul(SECOND).div_ceil(a_second),
            };
            (rate as usize, price)
        };
        let own = match self.class {
            Class::Read => Some((Rate::ReadIops, Rate::ReadBandwidth)),
            Class::Write => Some((Rate::WriteIops, Rate::WriteBandwidth)),
            Class::Other => None,
        };
        let own = own.map(|(iops, bytes)| [of(iops, self.commands), of(bytes, self.bytes)]);
        let all = [of(Rate::Iops, self.commands), of(Rate::Bandwidth, self.bytes)];
        all.into_iter().chain(own.into_iter().flatten()).filter(|(_, price)| *price > 0)
    }
}

/// The rates of a row as they were last taken in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    generation: u64,
    rates: [u64; RATES],
}

impl Account {
    pub(super) fn load(row: &LimitRow) -> Self {
        let (generation, rates) = row.load();
        Self { generation, rates }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.rates != [0; RATES]
    }

    /// Takes a place in the row's accounts. Returns when it is due.
    pub(super) fn charge(&self, row: &LimitRow, cost: Cost, now: u64) -> u64 {
        let mut release = 0;
        for (index, price) in cost.prices(&self.rates) {
            let due = &row.due.0[index % RATES];
            // Relaxed: each account is one number, and says nothing of other memory. Not one step: what others add in
            // between lies on top, as if they had come before.
            due.fetch_max(now, Ordering::Relaxed);
            let before = due.fetch_add(price, Ordering::Relaxed);
            release = release.max(before.saturating_sub(BURST));
        }
        release
    }

    /// Gives a place back.
    pub(super) fn refund(&self, row: &LimitRow, cost: Cost) {
        // Rates that changed have forgotten it.
        if row.generation.load(Ordering::Acquire) != self.generation {
            return;
        }
        for (index, price) in cost.prices(&self.rates) {
            subtract(&row.due.0[index % RATES], price);
        }
    }
}

/// Bounded: what cannot be given back for others' hurry is lost.
fn subtract(due: &AtomicU64, price: u64) {
    let mut value = due.load(Ordering::Relaxed);
    for _ in 0..REFUND_TRIES {
        let less = value.saturating_sub(price);
        match due.compare_exchange_weak(value, less, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(changed) => value = changed,
        }
    }
}

#[cfg(test)]
mod tests;
