//! What blocks may hold. A block is one number, repeated; 0 is a block of zeroes.

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// For each block, the numbers it may hold: one if that is certain, more after a write whose end is not known.
pub struct Model {
    blocks: Vec<Vec<u64>>,
}

impl Model {
    /// All zeroes.
    pub fn new(blocks: usize) -> Self {
        Self { blocks: vec![vec![0]; blocks] }
    }

    /// A write that succeeded.
    pub fn wrote(&mut self, first: usize, stamps: &[u64]) {
        for (block, &stamp) in self.blocks[first..].iter_mut().zip(stamps) {
            *block = vec![stamp];
        }
    }

    /// A write of which each block may have happened or not.
    pub fn may_have_written(&mut self, first: usize, stamps: &[u64]) {
        for (block, &stamp) in self.blocks[first..].iter_mut().zip(stamps) {
            if !block.contains(&stamp) {
                block.push(stamp);
            }
        }
    }

    /// A copy of which each block may have happened or not, from blocks that may hold several numbers.
    pub fn may_have_copied(&mut self, from: usize, first: usize, count: usize) {
        for index in 0..count {
            for stamp in self.blocks[from + index].clone() {
                self.may_have_written(first + index, &[stamp]);
            }
        }
    }

    /// A read that succeeded: it must be possible, and is certain from now on.
    #[track_caller]
    pub fn read(&mut self, first: usize, data: &[u8]) {
        for (index, bytes) in data.chunks(BLOCK).enumerate() {
            let (stamp, possible) = (stamp_of(bytes), &mut self.blocks[first + index]);
            let lba = first + index;
            let Some(stamp) = stamp else {
                panic!("block {lba} is torn, or of no write: {bytes:x?}")
            };
            assert!(
                possible.contains(&stamp),
                "block {lba} holds {stamp:#x}, not one of {possible:x?}"
            );
            *possible = vec![stamp];
        }
    }

    /// What blocks hold, if that is certain.
    pub fn certain(&self, first: usize, count: usize) -> Option<Vec<u64>> {
        let blocks = self.blocks[first..first + count].iter();
        blocks.map(|block| (block.len() == 1).then(|| block[0])).collect()
    }
}

/// The bytes of blocks that hold these numbers.
pub fn bytes_of(stamps: &[u64]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| stamp.to_le_bytes().repeat(BLOCK / 8)).collect()
}

fn stamp_of(block: &[u8]) -> Option<u64> {
    let first: [u8; 8] = block.first_chunk().copied()?;
    block.chunks(8).all(|word| word == first).then(|| u64::from_le_bytes(first))
}
