//! Where a transfer is cut: at the largest that a command may carry, and at the namespace's optimal boundary (NOIOB).

use nvme_spec::Lba;

/// Most blocks of one command: NLB is 16 bits, 0's based. NVM Command Set 1.0c 3.2.4.
pub(crate) const BLOCKS_MAX: u32 = 1 << 16;

/// What bounds one command, in logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Base two logarithm of the block size in bytes.
    pub(crate) block_shift: u32,
    /// Most blocks that carry data, at least 1.
    pub(crate) data_blocks: u32,
    /// No command crosses a multiple of this; 0: none.
    pub(crate) boundary: u32,
}

impl Limits {
    /// Whether `blocks` from `lba`, and at least one, may go as one command. Cheap where there is no boundary.
    #[inline]
    pub(crate) fn fits(&self, lba: Lba, blocks: u64) -> bool {
        // None at all is more than any limit.
        blocks.wrapping_sub(1) < u64::from(self.data_blocks)
            && (self.boundary == 0
                || lba.0 % u64::from(self.boundary) + blocks <= u64::from(self.boundary))
    }

    /// Blocks of the command that starts at `lba` when `left` are to be transferred: at least 1 if `left` is.
    pub(crate) fn piece(&self, lba: Lba, left: u64) -> u32 {
        let mut piece = left.min(u64::from(self.data_blocks));
        if self.boundary != 0 {
            let boundary = u64::from(self.boundary);
            piece = piece.min(boundary - lba.0 % boundary);
        }
        // At most data_blocks, which is 32 bits.
        piece as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(limits: Limits, mut lba: u64, mut left: u64) -> Vec<(u64, u32)> {
        let mut pieces = Vec::new();
        while left > 0 {
            let piece = limits.piece(Lba(lba), left);
            pieces.push((lba, piece));
            lba += u64::from(piece);
            left -= u64::from(piece);
        }
        pieces
    }

    #[test]
    fn pieces_are_no_longer_than_the_limit_and_cross_no_boundary() {
        let limits = Limits { block_shift: 9, data_blocks: 8, boundary: 0 };
        assert_eq!(cut(limits, 3, 20), [(3, 8), (11, 8), (19, 4)]);
        let limits = Limits { boundary: 6, ..limits };
        assert_eq!(cut(limits, 3, 12), [(3, 3), (6, 6), (12, 3)]);
    }

    #[test]
    fn what_fits_is_one_piece() {
        let limits = Limits { block_shift: 9, data_blocks: 8, boundary: 16 };
        for lba in 0..40 {
            for blocks in 1..20 {
                let one = limits.piece(Lba(lba), blocks) as u64 == blocks;
                assert_eq!(limits.fits(Lba(lba), blocks), one, "lba {lba} blocks {blocks}");
            }
        }
    }

    #[test]
    fn a_transfer_at_the_end_of_the_address_space_is_cut_without_overflow() {
        let limits = Limits { block_shift: 12, data_blocks: BLOCKS_MAX, boundary: 256 };
        assert_eq!(limits.piece(Lba(u64::MAX), u64::MAX), 1);
    }
}
