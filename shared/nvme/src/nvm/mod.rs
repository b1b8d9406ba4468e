//! I/O commands of the NVM command set: one submission queue entry, checked, as requests to a block device. NVM Command
//! Set 1.0c 3. On the hot path of a worker: nothing here allocates.
//!
//! [`parse`] looks at a copy of the entry, never at guest memory twice. What it lets pass is within the namespace, within
//! the transfer size, and has its memory in the list. Dataset Management and Copy are several requests: [`Steps`].

mod outcome;
mod steps;
#[cfg(test)]
mod tests;

pub use outcome::{FusedOutcome, fused_outcome, status};
pub use steps::{MAX_STEPS, Step, Steps};

use crate::prp::{self, PageShift, Prps};
use crate::range_list::RangeList;
use crate::sgl;
use bdev::request::{Op, Request};
use ipc::guest_memory::{Access, GuestMemory, MemRange};
use nvme_spec::command::{Command, NvmOpcode, Psdt};
use nvme_spec::nvm::{BlockIo, CopyDword12, CopyFormat, DatasetDword10, DatasetDword11};
use nvme_spec::{BlockCount, Lba, Nsid, Status};

/// Most source ranges of a Copy (MSRC + 1).
pub const COPY_RANGES: usize = 128;
/// Longest source range of a Copy in bytes; MSSRL is this in logical blocks.
pub const COPY_RANGE_BYTES: u64 = 16 << 20;
/// Most bytes of a Copy; MCL is this in logical blocks.
pub const COPY_BYTES: u64 = 64 << 20;

const _: () = assert!(COPY_RANGES <= MAX_STEPS);

/// What the registers and features say to an I/O command.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Memory page size.
    pub page: PageShift,
    /// Largest data transfer in bytes (MDTS).
    pub max_transfer: u32,
    /// The volatile write cache is on (feature 06h); off makes every write FUA.
    pub write_cache: bool,
}

/// A namespace as an I/O command sees it.
#[derive(Clone, Copy, Debug)]
pub struct Namespace {
    /// Size in logical blocks.
    pub blocks: BlockCount,
    /// Logical block size as a shift: 9 to 16.
    pub block_shift: u32,
    /// Writes are refused.
    pub write_protected: bool,
    /// A format is under way.
    pub formatting: bool,
}

/// One request to the block device, in bytes; its memory is in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// What to do.
    pub op: Op,
    /// Force unit access.
    pub fua: bool,
    /// The space may be given back, with Write Zeroes.
    pub deallocate: bool,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u64,
    /// First byte of a Copy's source.
    pub source: u64,
}

/// What a command comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One request.
    Io(Io),
    /// Nothing to do: hints.
    Nothing,
    /// Several requests, one after the other: the list holds the memory of the command's ranges.
    Steps(Ranges),
}

/// A command whose ranges are still to be read by [`Steps::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// Dataset Management, Deallocate, of this many ranges.
    Deallocate(usize),
    /// Copy of this many source ranges to here.
    Copy {
        /// Number of source ranges.
        count: usize,
        /// First block of the destination (SDLBA).
        destination: Lba,
        /// Force unit access.
        fua: bool,
    },
}

impl Io {
    /// An operation on a range, in bytes.
    #[inline]
    pub const fn new(op: Op, offset: u64, length: u64) -> Self {
        Self { op, fua: false, deallocate: false, offset, length, source: 0 }
    }

    /// The request, with its memory, named `tag`.
    #[inline]
    pub fn request<'a>(&self, ranges: &'a [MemRange], tag: u32, trace: u64) -> Request<'a> {
        let &Self { op, fua, deallocate, offset, length, source } = self;
        Request { op, fua, deallocate, offset, length, source, ranges, tag, trace }
    }
}

/// Index of the namespace table row for an identifier of one namespace.
#[inline]
pub fn namespace_index(nsid: Nsid) -> Option<usize> {
    let index = (nsid.0 as usize).wrapping_sub(1);
    (index < ipc::layout::MAX_NAMESPACES).then_some(index)
}

/// Whether a command is a Flush of all namespaces.
#[inline]
pub fn is_flush_of_all(command: &Command) -> bool {
    command.nvm_opcode() == NvmOpcode::FLUSH && command.nsid == Nsid::BROADCAST
}

/// Checks a command if it is a Read or a Write that passes: what is nearly always the case, kept in registers. Its
/// memory goes to `list`, which is cleared first. Of `None` [`parse`] tells what it is instead.
#[inline(always)]
pub fn transfer(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Option<Io> {
    list.clear();
    let op = match command.nvm_opcode() {
        NvmOpcode::READ => Op::Read,
        NvmOpcode::WRITE => Op::Write,
        _ => return None,
    };
    if namespace.formatting {
        return None;
    }
    blocks(command, namespace, settings, op, memory, list).ok()
}

/// Checks one command of a namespace. Its memory goes to `list`, which is cleared first.
///
/// # Errors
/// The status that the command is completed with.
#[inline(never)]
pub fn parse(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<Work, Status> {
    list.clear();
    if namespace.formatting {
        return Err(Status::FORMAT_IN_PROGRESS);
    }
    match command.nvm_opcode() {
        NvmOpcode::READ => {
            blocks(command, namespace, settings, Op::Read, memory, list).map(Work::Io)
        }
        NvmOpcode::WRITE => {
            blocks(command, namespace, settings, Op::Write, memory, list).map(Work::Io)
        }
        _ => parse_other(command, namespace, settings, memory, list),
    }
}

/// Checks a fused Compare and Write. The list then holds the memory to compare, and behind it the memory to write.
///
/// # Errors
/// Which of the two was at fault, and its status; the other is aborted.
pub fn parse_fused(
    pair: [&Command; 2],
    namespace: &Namespace,
    settings: &Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<Io, (usize, Status)> {
    list.clear();
    if namespace.formatting {
        return Err((0, Status::FORMAT_IN_PROGRESS));
    }
    let [first, second] = pair;
    if first.nvm_opcode() != NvmOpcode::COMPARE {
        return Err((0, Status::INVALID_FIELD.with_dnr()));
    }
    if second.nvm_opcode() != NvmOpcode::WRITE {
        return Err((1, Status::INVALID_FIELD.with_dnr()));
    }
    let (a, b) = (BlockIo::parse(first), BlockIo::parse(second));
    if first.nsid != second.nsid || a.slba != b.slba || a.blocks != b.blocks {
        return Err((1, Status::INVALID_FIELD.with_dnr()));
    }
    blocks(first, namespace, settings, Op::Compare, memory, list).map_err(|status| (0, status))?;
    let write = blocks(second, namespace, settings, Op::Write, memory, list)
        .map_err(|status| (1, status))?;
    Ok(Io { op: Op::CompareAndWrite, ..write })
}

fn parse_other(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<Work, Status> {
    match command.nvm_opcode() {
        NvmOpcode::FLUSH => Ok(Work::Io(Io::new(Op::Flush, 0, 0))),
        NvmOpcode::COMPARE => {
            blocks(command, namespace, settings, Op::Compare, memory, list).map(Work::Io)
        }
        NvmOpcode::WRITE_ZEROES => without_data(command, namespace, settings, Op::WriteZeroes),
        NvmOpcode::VERIFY => without_data(command, namespace, settings, Op::Verify),
        NvmOpcode::DATASET_MANAGEMENT => {
            dataset_management(command, namespace, settings, memory, list)
        }
        NvmOpcode::COPY => copy(command, namespace, settings, memory, list),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

/// A command that moves logical blocks between the namespace and memory.
#[inline(always)]
fn blocks(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    op: Op,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<Io, Status> {
    let io = BlockIo::parse(command);
    let (offset, length) = range(namespace, io.slba, io.blocks)?;
    let writes = op.writes();
    if writes && namespace.write_protected {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    // Access is what we do to the memory: a Read of the namespace writes it.
    let access = if op == Op::Read { Access::WRITE } else { Access::READ };
    let transfer = data_length(length, settings)?;
    data(command, transfer, settings.page, access, memory, list)?;
    let fua = io.flags.fua() || (writes && !settings.write_cache);
    Ok(Io { op, fua, deallocate: false, offset, length, source: 0 })
}

fn without_data(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    op: Op,
) -> Result<Work, Status> {
    let io = BlockIo::parse(command);
    let (offset, length) = range(namespace, io.slba, io.blocks)?;
    let writes = op.writes();
    if writes && namespace.write_protected {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let fua = io.flags.fua() || (writes && !settings.write_cache);
    let deallocate = writes && io.flags.deac();
    Ok(Work::Io(Io { op, fua, deallocate, offset, length, source: 0 }))
}

fn dataset_management(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<Work, Status> {
    if !DatasetDword11::from_bits(command.cdw11).ad() {
        return Ok(Work::Nothing);
    }
    if namespace.write_protected {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let count = DatasetDword10::from_bits(command.cdw10).ranges();
    let bytes = count as u64 * steps::DATASET_RANGE;
    let transfer = data_length(bytes, settings)?;
    data(command, transfer, settings.page, Access::READ, memory, list)?;
    Ok(Work::Steps(Ranges::Deallocate(count)))
}

fn copy(
    command: &Command,
    namespace: &Namespace,
    settings: &Settings,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<Work, Status> {
    let flags = CopyDword12::from_bits(command.cdw12);
    if flags.desfmt() != CopyFormat::RANGES_16B_GUARD {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if namespace.write_protected {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr());
    }
    let count = flags.ranges();
    if count > COPY_RANGES {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr());
    }
    let bytes = count as u64 * steps::COPY_RANGE;
    let transfer = data_length(bytes, settings)?;
    data(command, transfer, settings.page, Access::READ, memory, list)?;
    let fua = flags.fua() || !settings.write_cache;
    Ok(Work::Steps(Ranges::Copy { count, destination: command.slba(), fua }))
}

/// Offset and length in bytes of a range that lies within the namespace.
#[inline(always)]
fn range(namespace: &Namespace, slba: Lba, blocks: BlockCount) -> Result<(u64, u64), Status> {
    let out_of_range = Status::LBA_OUT_OF_RANGE.with_dnr();
    if !slba.fits(blocks, namespace.blocks) {
        return Err(out_of_range);
    }
    match (slba.byte_offset(namespace.block_shift), blocks.bytes(namespace.block_shift)) {
        (Some(offset), Some(length)) => Ok((offset, length)),
        _ => Err(out_of_range),
    }
}

/// The length of a command's data, if MDTS allows it.
#[inline(always)]
fn data_length(bytes: u64, settings: &Settings) -> Result<u32, Status> {
    match u32::try_from(bytes) {
        Ok(bytes) if bytes <= settings.max_transfer => Ok(bytes),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

/// Walks the command's data pointer.
#[inline(always)]
fn data(
    command: &Command,
    length: u32,
    page: PageShift,
    access: Access,
    memory: &GuestMemory,
    list: &mut RangeList,
) -> Result<(), Status> {
    match command.psdt() {
        Psdt::PRP => {
            let prps = Prps { first: command.prp1(), second: command.prp2() };
            prp::walk(memory, prps, length, page, access, list)
        }
        // No namespace has metadata, so where its pointer leads does not matter.
        Psdt::SGL_METADATA_BUFFER | Psdt::SGL_METADATA_SGL => {
            sgl::walk(memory, command.sgl(), length, access, list)
        }
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}
