//! Whether what is read is what was written.
//!
//! Every logical block carries a stamp: its address, a generation that counts the writes of the I/O it belongs to, the
//! number of the run, and a checksum ([`stamp`]). The [`Ledger`] remembers the generation that each I/O-sized block has
//! to have. A write that went nowhere leaves an older generation (lost), one that went elsewhere leaves a stamp with
//! another address (misplaced), one that was cut off leaves blocks of two generations or a checksum that does not hold
//! (torn).

pub mod ledger;
pub mod stamp;

pub use ledger::Ledger;

use super::options::Verify;
use stamp::{Found, Stamp};

/// What is wrong with an I/O that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// It still holds what was there before the write that was completed.
    Lost,
    /// It holds part of a write.
    Torn,
    /// It holds what was written to another address.
    Misplaced,
    /// It holds something that was never written.
    Corrupt,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it has to be.
    Good,
    /// Nothing is known of what it should be, and nothing speaks against it.
    Unknown,
    /// It is not.
    Bad(Damage),
}

/// How one run stamps and checks.
#[derive(Debug, Clone, Copy)]
pub struct Verifier {
    /// By comparing or by checksum.
    pub method: Verify,
    /// Number of the run: stamps of earlier runs have another.
    pub run: u64,
    /// Bytes of a logical block.
    pub lba_size: usize,
}

impl Verifier {
    /// Fills the data of a write of `generation` that starts at logical block `lba`.
    pub fn fill(&self, data: &mut [u8], lba: u64, generation: u32) {
        for (index, block) in data.chunks_exact_mut(self.lba_size).enumerate() {
            let stamp = Stamp { lba: lba + index as u64, generation, run: self.run };
            stamp::fill(self.method, block, stamp);
        }
    }

    /// Judges what was read from `lba` on. `generation` is what it has to be; `None`: not written in this run.
    #[must_use]
    pub fn check(&self, data: &[u8], lba: u64, generation: Option<u32>) -> Verdict {
        let (mut good, mut old, mut foreign, mut blocks) = (0, 0, 0, 0);
        for (index, block) in data.chunks_exact(self.lba_size).enumerate() {
            blocks += 1;
            match stamp::check(self.method, block) {
                Found::Nothing => foreign += 1,
                Found::Broken => return Verdict::Bad(Damage::Torn),
                Found::Whole(stamp) if stamp.lba != lba + index as u64 => {
                    // Of another run it may be the rest of another partition of the drive.
                    if stamp.run == self.run || generation.is_none() {
                        return Verdict::Bad(Damage::Misplaced);
                    }
                    foreign += 1;
                }
                Found::Whole(stamp) if stamp.run != self.run => old += 1,
                Found::Whole(stamp) if generation == Some(stamp.generation) => good += 1,
                Found::Whole(_) => old += 1,
            }
        }
        match generation {
            Some(_) if good == blocks => Verdict::Good,
            Some(_) if good > 0 => Verdict::Bad(Damage::Torn),
            // The first write of a block: whatever was there before is still there.
            Some(1) => Verdict::Bad(Damage::Lost),
            Some(_) if foreign == 0 => Verdict::Bad(Damage::Lost),
            Some(_) => Verdict::Bad(Damage::Corrupt),
            None if old == blocks => Verdict::Good,
            None => Verdict::Unknown,
        }
    }
}

impl Damage {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost write",
            Self::Torn => "torn write",
            Self::Misplaced => "misplaced write",
            Self::Corrupt => "corrupt data",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LBA: usize = 512;

    fn verifier(method: Verify) -> Verifier {
        Verifier { method, run: 77, lba_size: LBA }
    }

    fn written(verifier: &Verifier, lba: u64, generation: u32) -> Vec<u8> {
        let mut data = vec![0; 8 * LBA];
        verifier.fill(&mut data, lba, generation);
        data
    }

    #[test]
    fn what_was_written_is_good() {
        for method in [Verify::Pattern, Verify::Crc32c] {
            let v = verifier(method);
            let data = written(&v, 80, 3);
            assert_eq!(v.check(&data, 80, Some(3)), Verdict::Good);
            assert_eq!(v.check(&data, 80, None), Verdict::Good);
        }
    }

    #[test]
    fn every_damage_has_its_name() {
        for method in [Verify::Pattern, Verify::Crc32c] {
            let v = verifier(method);
            let (old, new) = (written(&v, 80, 3), written(&v, 80, 4));
            assert_eq!(v.check(&old, 80, Some(4)), Verdict::Bad(Damage::Lost));
            let mut torn = new.clone();
            torn[5 * LBA..].copy_from_slice(&old[5 * LBA..]);
            assert_eq!(v.check(&torn, 80, Some(4)), Verdict::Bad(Damage::Torn));
            let mut within = new.clone();
            within[3 * LBA + 200..4 * LBA].copy_from_slice(&old[3 * LBA + 200..4 * LBA]);
            assert_eq!(v.check(&within, 80, Some(4)), Verdict::Bad(Damage::Torn));
            let elsewhere = written(&v, 160, 4);
            assert_eq!(v.check(&elsewhere, 80, Some(4)), Verdict::Bad(Damage::Misplaced));
            assert_eq!(v.check(&elsewhere, 80, None), Verdict::Bad(Damage::Misplaced));
            assert_eq!(v.check(&[0; 8 * LBA], 80, Some(4)), Verdict::Bad(Damage::Corrupt));
            assert_eq!(v.check(&[0; 8 * LBA], 80, Some(1)), Verdict::Bad(Damage::Lost));
            assert_eq!(v.check(&[0; 8 * LBA], 80, None), Verdict::Unknown);
        }
    }

    #[test]
    fn one_bit_anywhere_is_noticed() {
        for method in [Verify::Pattern, Verify::Crc32c] {
            let v = verifier(method);
            let data = written(&v, 80, 3);
            for bit in (0..data.len() * 8).step_by(7) {
                let mut flipped = data.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let verdict = v.check(&flipped, 80, Some(3));
                assert!(matches!(verdict, Verdict::Bad(_)), "{method:?} bit {bit}: {verdict:?}");
            }
        }
    }

    #[test]
    fn what_an_earlier_run_left_counts_as_a_lost_write() {
        let v = verifier(Verify::Crc32c);
        let earlier = written(&Verifier { run: 76, ..v }, 80, 1);
        assert_eq!(v.check(&earlier, 80, Some(1)), Verdict::Bad(Damage::Lost));
        assert_eq!(v.check(&earlier, 80, None), Verdict::Good);
    }
}
