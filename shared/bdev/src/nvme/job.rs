//! A part of a request to a drive, command by command: what to send next, and what its completion means. No I/O here.

use super::drive::Drive;
use super::memory::Place;
use super::plan::{Bounds, Extent, contiguous, plan};
use crate::request::{ErrorKind, Op, Outcome, Request};
use ipc::guest_memory::{Access, HostSlice, Region, RegionTable};
use nvme_driver::DmaBuffer;
use nvme_spec::nvm::IoDword12;
use nvme_spec::{Command, CommandId, Lba, NvmOpcode};
use std::ops::Range;
use std::sync::Arc;

/// A part of a region, which stays mapped as long as this lives.
#[derive(Debug)]
pub(super) struct Piece {
    pub region: Arc<Region>,
    pub place: Place,
    offset: u64,
    len: u64,
    access: Access,
}

/// What a job is at. `done` of the job counts the bytes of the phase that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Read,
    Write,
    Compare,
    /// The drive has no Compare: read, and compared here.
    CompareByRead,
    Verify,
    VerifyByRead,
    Zeroes,
    ZeroesByWrite,
    CopyRead,
    CopyWrite,
    Flush,
    Finished,
}

/// A part of a request under way; mostly that is all of it. Its vectors are used again for the next one.
#[derive(Debug)]
pub(super) struct Job {
    pub tag: u32,
    pub op: Op,
    /// How often a command of it was sent again.
    pub retries: u8,
    /// A buffer of ours, once it was needed.
    pub buffer: Option<DmaBuffer>,
    pieces: Vec<Piece>,
    fua: bool,
    deallocate: bool,
    offset: u64,
    length: u64,
    source: u64,
    phase: Phase,
    done: u64,
    /// What the command under way moves, and whether through the buffer.
    moving: u64,
    bounced: bool,
}

/// Where commands are made.
#[derive(Debug)]
pub(super) struct Workshop<'a> {
    pub drive: &'a Drive,
    /// Most PRP entries of a command.
    pub pages_max: usize,
    /// Address of a page of zeroes.
    pub zeroes: u64,
    /// The command's PRP entries.
    pub pages: &'a mut Vec<u64>,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this, with the entries in [`Workshop::pages`].
    Send(Command),
    /// Give it a buffer, then ask again.
    Buffer,
    /// It is over.
    End(Outcome),
}

/// Whether a request whose device ranges are in order can be done on this drive.
///
/// # Errors
/// [`ErrorKind::Invalid`] for ranges that are no whole blocks or memory that does not add up.
pub(super) fn check(request: &Request<'_>, drive: &Drive) -> Result<(), ErrorKind> {
    request.check_memory()?;
    let whole = |value: u64| value.is_multiple_of(drive.block());
    let ranges = whole(request.offset) && whole(request.length);
    let source = request.op != Op::Copy || whole(request.source);
    match request.op == Op::Flush || (ranges && source) {
        true => Ok(()),
        false => Err(ErrorKind::Invalid),
    }
}

impl Job {
    /// A job of nothing.
    pub fn new() -> Self {
        Self {
            tag: 0,
            op: Op::Flush,
            retries: 0,
            buffer: None,
            pieces: Vec::new(),
            fua: false,
            deallocate: false,
            offset: 0,
            length: 0,
            source: 0,
            phase: Phase::Finished,
            done: 0,
            moving: 0,
            bounced: false,
        }
    }

    /// Takes `part` of a request, in bytes from its beginning: all of it, or whole blocks of one of whose operations
    /// parts may be done in any order. The request's memory adds up and its ranges are whole blocks ([`check`]).
    ///
    /// # Errors
    /// [`ErrorKind::Fault`] for memory that is not there.
    pub fn begin(
        &mut self,
        request: &Request<'_>,
        memory: &RegionTable,
        drive: &Drive,
        part: Range<u64>,
    ) -> Result<(), ErrorKind> {
        let access = if request.op == Op::Read { Access::WRITE } else { Access::READ };
        self.pieces.clear();
        let part_len = part.end - part.start;
        let (mut skip, mut left) = (part.start, part_len * request.op.memory_factor());
        for range in request.ranges {
            let whole = u64::from(range.len);
            if skip >= whole {
                skip -= whole;
                continue;
            }
            let (offset, len) = (range.offset + skip, (whole - skip).min(left));
            if len == 0 {
                break;
            }
            let region = memory.get(range.region).ok_or(ErrorKind::Fault)?;
            region.slice(offset, len as usize, access).ok_or(ErrorKind::Fault)?;
            let region = Arc::clone(region);
            self.pieces.push(Piece { region, place: Place::Coming, offset, len, access });
            (skip, left) = (0, left - len);
        }
        self.tag = request.tag;
        self.op = request.op;
        (self.fua, self.deallocate) = (request.fua, request.deallocate);
        (self.offset, self.length) = (request.offset, request.length);
        if request.op != Op::Flush {
            (self.offset, self.length) = (request.offset + part.start, part_len);
        }
        self.source = request.source;
        (self.done, self.moving, self.bounced, self.retries) = (0, 0, false, 0);
        self.phase = match request.op {
            Op::Flush if drive.volatile_cache => Phase::Flush,
            Op::Flush => Phase::Finished,
            _ if self.length == 0 => Phase::Finished,
            Op::Read => Phase::Read,
            Op::Write => Phase::Write,
            Op::Compare | Op::CompareAndWrite if drive.compare => Phase::Compare,
            Op::Compare | Op::CompareAndWrite => Phase::CompareByRead,
            Op::WriteZeroes | Op::Deallocate if drive.zeroes_max > 0 => Phase::Zeroes,
            Op::WriteZeroes | Op::Deallocate => Phase::ZeroesByWrite,
            Op::Verify if drive.verify_max > 0 => Phase::Verify,
            Op::Verify => Phase::VerifyByRead,
            Op::Copy => Phase::CopyRead,
        };
        Ok(())
    }

    /// Lets go of its memory.
    pub fn finish(&mut self) {
        self.pieces.clear();
        self.phase = Phase::Finished;
    }

    /// Whether both change the device at a common place, and one of them must not be disturbed.
    pub fn excludes(&self, other: &Self) -> bool {
        let fused = self.op == Op::CompareAndWrite || other.op == Op::CompareAndWrite;
        let overlap = self.offset < other.offset.saturating_add(other.length)
            && other.offset < self.offset.saturating_add(self.length);
        fused && overlap && self.op.writes() && other.op.writes()
    }

    /// Its memory.
    pub fn pieces_mut(&mut self) -> &mut [Piece] {
        &mut self.pieces
    }

    /// Its memory.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The next command.
    pub fn next(&mut self, shop: &mut Workshop<'_>) -> Next {
        let left = self.length - self.done;
        let drive = shop.drive;
        shop.pages.clear();
        match self.phase {
            Phase::Finished => Next::End(self.memory_outcome()),
            Phase::Flush => Next::Send(Command::nvm(NvmOpcode::FLUSH, CommandId(0), drive.nsid)),
            Phase::Read => self.data(NvmOpcode::READ, 0, shop),
            Phase::Write => self.data(NvmOpcode::WRITE, self.written_from(), shop),
            Phase::Compare => self.data(NvmOpcode::COMPARE, 0, shop),
            Phase::CompareByRead | Phase::VerifyByRead => {
                let at = self.offset + self.done;
                let most = drive.data_piece(at, left);
                self.by_buffer(NvmOpcode::READ, at, most, shop)
            }
            Phase::Verify => {
                self.moving = left.min(drive.verify_max);
                let at = self.offset + self.done;
                Next::Send(self.command(NvmOpcode::VERIFY, at, drive))
            }
            Phase::Zeroes => {
                self.moving = left.min(drive.zeroes_max);
                let at = self.offset + self.done;
                let mut command = self.command(NvmOpcode::WRITE_ZEROES, at, drive);
                let frees = self.deallocate || self.op == Op::Deallocate;
                let flags = IoDword12::from_bits(command.cdw12);
                let deac = frees && drive.zeroes_deallocate;
                command.cdw12 = flags.with_deac(deac).into_bits();
                Next::Send(command)
            }
            Phase::ZeroesByWrite => {
                let at = self.offset + self.done;
                self.moving = drive.data_piece(at, left);
                let pages = self.moving.div_ceil(drive.page) as usize;
                shop.pages.resize(pages, shop.zeroes);
                Next::Send(self.command(NvmOpcode::WRITE, at, drive))
            }
            Phase::CopyRead => {
                let Some(buffer) = &self.buffer else { return Next::Buffer };
                let len = left.min(drive.data_max).min(buffer.len() as u64);
                let at = self.source + self.chunk(len);
                self.by_buffer(NvmOpcode::READ, at, len, shop)
            }
            Phase::CopyWrite => {
                let at = self.offset + self.chunk(self.moving);
                self.by_buffer(NvmOpcode::WRITE, at, self.moving, shop)
            }
        }
    }

    /// Takes a command's success; an error ends the job.
    pub fn succeeded(&mut self) -> Result<(), ErrorKind> {
        match self.phase {
            Phase::Read if self.bounced => {
                self.each_moved(0, |guest, own| {
                    guest.copy_from_slice(&own);
                    true
                })?;
            }
            Phase::CompareByRead => {
                self.each_moved(0, |guest, own| guest.compare_slice(&own))?;
            }
            Phase::CopyRead => {
                self.phase = Phase::CopyWrite;
                return Ok(());
            }
            Phase::CopyWrite => self.phase = Phase::CopyRead,
            Phase::Flush => self.phase = Phase::Finished,
            Phase::Read
            | Phase::Write
            | Phase::Compare
            | Phase::Verify
            | Phase::VerifyByRead
            | Phase::Zeroes
            | Phase::ZeroesByWrite
            | Phase::Finished => {}
        }
        self.done += self.moving;
        if self.done < self.length || self.phase == Phase::Finished {
            return Ok(());
        }
        let compared = matches!(self.phase, Phase::Compare | Phase::CompareByRead);
        self.phase = match self.op {
            Op::CompareAndWrite if compared => Phase::Write,
            _ => Phase::Finished,
        };
        self.done = 0;
        Ok(())
    }

    /// The drive says that it does not know the command: `true` if there is another way, which `drive` remembers.
    pub fn fall_back(&mut self, drive: &mut Drive) -> bool {
        self.phase = match self.phase {
            Phase::Zeroes if drive.zeroes_deallocate => {
                drive.zeroes_deallocate = false;
                Phase::Zeroes
            }
            Phase::Zeroes => {
                drive.zeroes_max = 0;
                Phase::ZeroesByWrite
            }
            Phase::Verify => {
                drive.verify_max = 0;
                Phase::VerifyByRead
            }
            Phase::Compare => {
                drive.compare = false;
                Phase::CompareByRead
            }
            _ => return false,
        };
        true
    }

    /// Data between the request's memory and the drive, as it lies where it can go so.
    fn data(&mut self, opcode: NvmOpcode, from: u64, shop: &mut Workshop<'_>) -> Next {
        let (at, left) = (self.offset + self.done, self.length - self.done);
        let drive = shop.drive;
        let most = drive.data_piece(at, left);
        let bounds =
            Bounds { block: drive.block(), page: drive.page, most, pages_max: shop.pages_max };
        let planned = plan(self.extents(from + self.done), &bounds, shop.pages);
        // A command for less than a page costs more than the copy that it saves.
        if planned >= most.min(drive.page) {
            self.moving = planned;
            self.bounced = false;
            return Next::Send(self.command(opcode, at, drive));
        }
        let next = self.by_buffer(opcode, at, most, shop);
        if matches!(next, Next::Send(_)) && opcode != NvmOpcode::READ {
            // A fault shows by the region's mark when the job ends.
            self.each_moved(from, |guest, own| {
                own.copy_from_slice(&guest);
                true
            })
            .ok();
        }
        next
    }

    /// At most `most` bytes from `at` of the drive on, through the buffer.
    fn by_buffer(
        &mut self,
        opcode: NvmOpcode,
        at: u64,
        most: u64,
        shop: &mut Workshop<'_>,
    ) -> Next {
        let Some(buffer) = &self.buffer else { return Next::Buffer };
        // The buffer holds whole blocks.
        let len = most.min(buffer.len() as u64);
        contiguous(buffer.iova().0, len, shop.drive.page, shop.pages);
        self.moving = len;
        self.bounced = true;
        Next::Send(self.command(opcode, at, shop.drive))
    }

    fn command(&self, opcode: NvmOpcode, at: u64, drive: &Drive) -> Command {
        // At least one block and at most 65,536: `moving` is bounded by what a command may carry.
        let nlb_z = ((self.moving >> drive.block_shift).saturating_sub(1)) as u16;
        let durable = self.fua && matches!(opcode, NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES);
        let flags = IoDword12::new().with_nlb_z(nlb_z).with_fua(durable);
        let mut command =
            Command::nvm(opcode, CommandId(0), drive.nsid).with_slba(Lba(at >> drive.block_shift));
        command.cdw12 = flags.into_bits();
        command
    }

    /// Where in the request's memory the data to be written starts.
    fn written_from(&self) -> u64 {
        if self.op == Op::CompareAndWrite { self.length } else { 0 }
    }

    /// Where a copy's present chunk of `len` bytes starts: upwards, or downwards where the source lies below an
    /// overlapping destination, so that nothing is overwritten before it was read.
    fn chunk(&self, len: u64) -> u64 {
        let down =
            self.source < self.offset && self.offset < self.source.saturating_add(self.length);
        if down { self.length - self.done - len } else { self.done }
    }

    /// The request's memory from byte `from` on, as the drive sees it.
    fn extents(&self, from: u64) -> impl Iterator<Item = Extent> {
        let mut skip = from;
        self.pieces.iter().filter_map(move |piece| {
            if skip >= piece.len {
                skip -= piece.len;
                return None;
            }
            let iova = match piece.place {
                Place::At(first) => Some(first + piece.offset + skip),
                Place::Beyond | Place::Coming => None,
            };
            let len = piece.len - std::mem::take(&mut skip);
            Some(Extent { iova, len })
        })
    }

    /// Walks what the present command moves, in the request's memory and in the buffer. `act` says whether to go on.
    fn each_moved(
        &self,
        from: u64,
        mut act: impl FnMut(HostSlice<'_>, HostSlice<'_>) -> bool,
    ) -> Result<(), ErrorKind> {
        let own = self.buffer.as_ref().ok_or(ErrorKind::Internal)?.host();
        let (mut skip, mut at) = (from + self.done, 0);
        for piece in &self.pieces {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let len = (piece.len - skip).min(self.moving - at);
            if len == 0 {
                break;
            }
            let guest = piece.region.slice(piece.offset + skip, len as usize, piece.access);
            let guest = guest.ok_or(ErrorKind::Fault)?;
            let own = own.sub(at as usize, len as usize).ok_or(ErrorKind::Internal)?;
            if !act(guest, own) {
                return Err(ErrorKind::CompareFailed);
            }
            skip = 0;
            at += len;
        }
        Ok(())
    }

    /// Copies through buffers of ours see zeroes where the guest's memory was gone.
    fn memory_outcome(&self) -> Outcome {
        match self.pieces.iter().any(|piece| piece.region.failed()) {
            true => Err(ErrorKind::Fault),
            false => Ok(()),
        }
    }
}
