//! What commands cost, and the accounts in which that is kept.

use ipc::layout::limits::{BURST, LimitRow, RATES, Rate};
use nvme::nvm::Namespace;
use nvme_spec::command::{Command, NvmOpcode};
use nvme_spec::nvm::BlockIo;

const SECOND: u64 = 1_000_000_000;
/// Times that a place is tried to be taken while its rates are being changed.
const TRIES: usize = 4;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// The change after which they were taken in.
    generation: u64,
    rates: [u64; RATES],
}

/// A place in a row's accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// Time at which it is due; what is due at once may have any that is over.
    pub(super) release: u64,
    /// The rate that says so. None if none of them concerns the command.
    pub(super) rate: Option<Rate>,
}

impl Account {
    pub(super) fn load(row: &LimitRow) -> Self {
        let (generation, rates) = row.load();
        Self { generation, rates }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.rates != [0; RATES]
    }

    /// Takes a place in the row's accounts, by the rates as they are: those that were taken in, or others that the
    /// frontend has set since. A command that meets nothing but changes goes free.
    pub(super) fn charge(&mut self, row: &LimitRow, cost: Cost, now: u64) -> Due {
        for _ in 0..TRIES {
            if let Some(due) = self.try_charge(row, cost, now) {
                return due;
            }
            *self = Self::load(row);
        }
        Due::default()
    }

    /// Takes a place. None if a rate is another one by now; then nothing is taken.
    fn try_charge(&self, row: &LimitRow, cost: Cost, now: u64) -> Option<Due> {
        let mut last = Due::default();
        for (taken, (index, price)) in cost.prices(&self.rates).enumerate() {
            let Some(before) = row.take(index, self.rates[index % RATES], price, now) else {
                self.give_back(row, cost, taken);
                return None;
            };
            let release = before.saturating_sub(BURST);
            if last.rate.is_none() || release > last.release {
                last = Due { release, rate: Rate::ALL.get(index).copied() };
            }
        }
        Some(last)
    }

    /// Gives a place back.
    pub(super) fn refund(&self, row: &LimitRow, cost: Cost) {
        self.give_back(row, cost, RATES);
    }

    /// Gives back what a place took of the first `most` rates that concern it.
    fn give_back(&self, row: &LimitRow, cost: Cost, most: usize) {
        for (index, price) in cost.prices(&self.rates).take(most) {
            row.give_back(index, self.rates[index % RATES], price);
        }
    }
}

#[cfg(test)]
mod tests;
