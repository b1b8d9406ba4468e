//! What is asked of a namespace. On the hot path.

use nvme_spec::command::CommandDword0;
use nvme_spec::nvm::{CopyRange, DatasetRange, IoDword12};
use nvme_spec::{BlockCount, Lba, Nsid, NvmOpcode};
use zerocopy::IntoBytes;

use crate::memory::DmaBuffer;
use crate::namespace::Namespace;
use crate::split::Limits;

/// One request: an I/O command, or several where the controller's limits make it so. It owns its buffer.
#[derive(Debug)]
pub struct Request {
    pub(crate) buffer: Option<DmaBuffer>,
    pub(crate) token: u64,
    pub(crate) slba: Lba,
    /// Blocks, or 0 for a command that has none.
    pub(crate) blocks: u64,
    pub(crate) nsid: Nsid,
    /// Dword 12 without the number of blocks; of Dataset Management dword 11.
    pub(crate) flags: u32,
    pub(crate) limits: Limits,
    pub(crate) opcode: NvmOpcode,
    pub(crate) shape: Shape,
    /// Whether the namespace takes it: a write to a write-protected one is refused.
    pub(crate) allowed: bool,
}

/// How a request becomes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Blocks with data: as many as the buffer holds.
    Data,
    /// Blocks without data.
    Blocks,
    /// One command whose buffer, if any, is its argument: dwords 10 to 12 as they are.
    Argument,
}

impl Request {
    #[inline]
    fn data(opcode: NvmOpcode, namespace: &Namespace, lba: Lba, buffer: DmaBuffer) -> Self {
        let limits = namespace.limits;
        let blocks = (buffer.len() as u64) >> limits.block_shift;
        Self {
            buffer: Some(buffer),
            blocks,
            shape: Shape::Data,
            ..Self::bare(opcode, namespace, lba)
        }
    }

    #[inline]
    fn bare(opcode: NvmOpcode, namespace: &Namespace, slba: Lba) -> Self {
        Self {
            buffer: None,
            token: 0,
            slba,
            blocks: 0,
            nsid: namespace.nsid(),
            flags: 0,
            limits: namespace.limits,
            opcode,
            shape: Shape::Argument,
            allowed: true,
        }
    }

    /// Fills the buffer from `lba` on. Its length is a multiple of the block size.
    #[inline]
    #[must_use]
    pub fn read(namespace: &Namespace, lba: Lba, buffer: DmaBuffer) -> Self {
        Self::data(NvmOpcode::READ, namespace, lba, buffer)
    }

    /// Writes the buffer from `lba` on. Its length is a multiple of the block size.
    #[inline]
    #[must_use]
    pub fn write(namespace: &Namespace, lba: Lba, buffer: DmaBuffer) -> Self {
        let allowed = namespace.is_writable();
        Self { allowed, ..Self::data(NvmOpcode::WRITE, namespace, lba, buffer) }
    }

    /// Compares the buffer with what is stored from `lba` on; a difference is the status Compare Failure.
    #[must_use]
    pub fn compare(namespace: &Namespace, lba: Lba, buffer: DmaBuffer) -> Self {
        Self::data(NvmOpcode::COMPARE, namespace, lba, buffer)
    }

    /// Makes `blocks` from `lba` on read as zeroes; with `deallocate` they may lose their storage.
    #[must_use]
    pub fn write_zeroes(
        namespace: &Namespace,
        lba: Lba,
        blocks: BlockCount,
        deallocate: bool,
    ) -> Self {
        let flags = IoDword12::new().with_deac(deallocate).into_bits();
        Self {
            blocks: blocks.0,
            flags,
            shape: Shape::Blocks,
            allowed: namespace.is_writable(),
            ..Self::bare(NvmOpcode::WRITE_ZEROES, namespace, lba)
        }
    }

    /// Checks that `blocks` from `lba` on can be read, without transferring them.
    #[must_use]
    pub fn verify(namespace: &Namespace, lba: Lba, blocks: BlockCount) -> Self {
        Self {
            blocks: blocks.0,
            shape: Shape::Blocks,
            ..Self::bare(NvmOpcode::VERIFY, namespace, lba)
        }
    }

    /// Makes completed writes durable.
    #[must_use]
    pub fn flush(namespace: &Namespace) -> Self {
        Self::bare(NvmOpcode::FLUSH, namespace, Lba(0))
    }

    /// Tells that these ranges (at most 256) are not needed any more. `buffer` carries them to the controller and is 16
    /// bytes a range; those that do not fit it are left out.
    #[must_use]
    pub fn deallocate(
        namespace: &Namespace,
        ranges: &[DatasetRange],
        mut buffer: DmaBuffer,
    ) -> Self {
        let room =
            (buffer.len() / size_of::<DatasetRange>()).min(nvme_spec::nvm::DATASET_RANGES_MAX);
        let ranges = &ranges[..ranges.len().min(room)];
        buffer.copy_from(ranges.as_bytes());
        Self {
            buffer: Some(buffer),
            slba: Lba((ranges.len() as u64).saturating_sub(1) & 0xFF | 0x4 << 32),
            allowed: namespace.is_writable(),
            ..Self::bare(NvmOpcode::DATASET_MANAGEMENT, namespace, Lba(0))
        }
    }

    /// Copies these ranges (at most 256), one behind the other, to `lba`. `buffer` carries them to the controller and is
    /// 32 bytes a range; those that do not fit it are left out.
    #[must_use]
    pub fn copy(
        namespace: &Namespace,
        ranges: &[CopyRange],
        lba: Lba,
        mut buffer: DmaBuffer,
    ) -> Self {
        let room = (buffer.len() / size_of::<CopyRange>()).min(nvme_spec::nvm::COPY_RANGES_MAX);
        let ranges = &ranges[..ranges.len().min(room)];
        buffer.copy_from(ranges.as_bytes());
        Self {
            buffer: Some(buffer),
            flags: (ranges.len() as u32).saturating_sub(1) & 0xFF,
            allowed: namespace.is_writable(),
            ..Self::bare(NvmOpcode::COPY, namespace, lba)
        }
    }

    /// With a number of the caller's, which comes back with the completion.
    #[inline]
    #[must_use]
    pub fn with_token(mut self, token: u64) -> Self {
        self.token = token;
        self
    }

    /// With Force Unit Access: completed only when the data is on the medium.
    #[must_use]
    pub fn with_fua(mut self) -> Self {
        self.flags = IoDword12::from_bits(self.flags).with_fua(true).into_bits();
        self
    }

    /// The caller's number.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The buffer, if it has one, taken back.
    #[must_use]
    pub fn into_buffer(self) -> Option<DmaBuffer> {
        self.buffer
    }

    /// The words of a submission queue entry with these fields, the rest zero. NVMe Base 2.0c figure 87.
    #[inline]
    pub(crate) fn entry(
        cdw0: CommandDword0,
        nsid: Nsid,
        data: [u64; 2],
        slba: Lba,
        cdw12: u32,
    ) -> [u64; 8] {
        let first = u64::from(cdw0.into_bits()) | u64::from(nsid.0) << 32;
        [first, 0, 0, data[0], data[1], slba.0, cdw12.into(), 0]
    }
}

impl Request {
    /// Whether it goes as one command.
    pub(crate) fn is_one_command(&self) -> bool {
        match self.shape {
            Shape::Data => self.limits.fits(self.slba, self.blocks),
            // Without data only the field's width bounds it.
            Shape::Blocks => self.blocks <= u64::from(crate::split::BLOCKS_MAX),
            Shape::Argument => true,
        }
    }

    /// Bytes of the buffer that are the command's argument.
    pub(crate) fn argument_len(&self) -> usize {
        Self::argument_bytes(self.opcode, self.slba, self.flags)
    }

    /// As [`argument_len`](Self::argument_len), from the dwords: the number of ranges is 0's based.
    pub(crate) fn argument_bytes(opcode: NvmOpcode, slba: Lba, cdw12: u32) -> usize {
        match opcode {
            NvmOpcode::DATASET_MANAGEMENT => {
                (slba.0 as usize & 0xFF) * size_of::<DatasetRange>() + size_of::<DatasetRange>()
            }
            NvmOpcode::COPY => {
                (cdw12 as usize & 0xFF) * size_of::<CopyRange>() + size_of::<CopyRange>()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use nvme_spec::{Command, CommandId, Iova};

    use super::*;

    #[test]
    fn the_words_of_an_entry_are_those_of_the_command() {
        let mut command = Command::nvm(NvmOpcode::WRITE, CommandId(0xABCD), Nsid(0x1234_5678))
            .with_prps(Iova(0x1111_2222_3333_4444), Iova(0x5555_6666_7777_8888))
            .with_slba(Lba(0x9999_AAAA_BBBB_CCCC));
        command.cdw12 = 0xDDDD_EEEE;
        let data = [command.prp1().0, command.prp2().0];
        let words = Request::entry(command.cdw0, command.nsid, data, command.slba(), command.cdw12);
        assert_eq!(words, command.into_words());
    }
}
