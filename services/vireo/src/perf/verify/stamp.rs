//! The stamp of one logical block: a head of 32 bytes, then words that follow from it.

use super::Verify;

/// First bytes of every stamped block.
const MAGIC: [u8; 4] = *b"VpF1";
/// Bytes before the words.
const HEAD: usize = 32;
/// Where the checksum lies.
const SUM: std::ops::Range<usize> = 24..28;

/// What a block says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its address.
    pub lba: u64,
    /// How often it was written in its run.
    pub generation: u32,
    /// Its run.
    pub run: u64,
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No stamp.
    Nothing,
    /// A stamp whose block is not what it says.
    Broken,
    /// A stamp, and all of its block.
    Whole(Stamp),
}

/// Fills a block, which is at least 512 bytes and a multiple of 8.
pub fn fill(method: Verify, block: &mut [u8], stamp: Stamp) {
    let Some((head, body)) = block.split_at_mut_checked(HEAD) else { return };
    head[0..4].copy_from_slice(&MAGIC);
    head[4..8].copy_from_slice(&stamp.generation.to_le_bytes());
    head[8..16].copy_from_slice(&stamp.lba.to_le_bytes());
    head[16..24].copy_from_slice(&stamp.run.to_le_bytes());
    head[24..28].fill(0);
    head[28..32].copy_from_slice(&method_word(method).to_le_bytes());
    let mut words = Words::new(stamp);
    for word in body.chunks_exact_mut(8) {
        word.copy_from_slice(&words.next_word().to_le_bytes());
    }
    let sum = sum(method, block);
    block[SUM].copy_from_slice(&sum.to_le_bytes());
}

/// Reads a block. The method of the block counts for its body; a block stamped by the other method is checked by that.
#[must_use]
pub fn check(_method: Verify, block: &[u8]) -> Found {
    let Some((head, body)) = block.split_at_checked(HEAD) else { return Found::Nothing };
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
    if head[0..4] != MAGIC {
        return Found::Nothing;
    }
    let stamp = Stamp { lba: word(8), generation: half(4), run: word(16) };
    let method = match half(28) {
        0 => Verify::Pattern,
        1 => Verify::Crc32c,
        _ => return Found::Broken,
    };
    let whole = half(SUM.start) == sum(method, block)
        && match method {
            Verify::Crc32c => true,
            Verify::Pattern => {
                let mut words = Words::new(stamp);
                body.chunks_exact(8).all(|word| word == words.next_word().to_le_bytes())
            }
        };
    if whole { Found::Whole(stamp) } else { Found::Broken }
}

fn method_word(method: Verify) -> u32 {
    match method {
        Verify::Pattern => 0,
        Verify::Crc32c => 1,
    }
}

/// The checksum: over all of the block but itself, or, where every byte is compared anyway, over the head.
fn sum(method: Verify, block: &[u8]) -> u32 {
    let before = crc32c::crc32c(&block[..SUM.start]);
    match method {
        Verify::Crc32c => crc32c::crc32c_append(before, &block[SUM.end..]),
        Verify::Pattern => crc32c::crc32c_append(before, &block[SUM.end..HEAD]),
    }
}

/// The words behind the head: no two stamps have the same.
struct Words {
    state: u64,
}

impl Words {
    fn new(stamp: Stamp) -> Self {
        let state = mix(stamp.lba ^ mix(u64::from(stamp.generation) ^ mix(stamp.run)));
        Self { state }
    }

    #[inline]
    fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.state ^ (self.state >> 31)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
