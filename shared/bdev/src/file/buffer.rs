//! Memory that a submission to io_uring reads or writes, kept until the kernel is done with it.

use ipc::guest_memory::{Access, HostSlice, Region};
use std::ops::Range;
use std::sync::Arc;

/// Alignment of bounce buffers: what any O_DIRECT asks for.
pub const BUFFER_ALIGN: usize = 4096;
/// Most ranges of one system call (UIO_MAXIOV).
pub const MAX_IOVECS: usize = 1024;

/// A buffer of our own, aligned, with the part of it that the next operation uses.
#[derive(Debug)]
pub struct OwnBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    /// What the next operation reads or writes, within the buffer.
    pub window: Range<usize>,
}

impl OwnBuffer {
    /// A zeroed buffer of `len` bytes; the window is all of it.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + BUFFER_ALIGN];
        let start = memory.as_ptr().align_offset(BUFFER_ALIGN).min(BUFFER_ALIGN);
        Self { memory, start, len, window: 0..len }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// All bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// The window, for the kernel.
    pub fn window_mut(&mut self) -> &mut [u8] {
        let Range { start, end } = self.window;
        self.bytes_mut().get_mut(start..end).unwrap_or_default()
    }
}

/// A part of a region, which stays mapped as long as this lives.
#[derive(Clone, Debug)]
pub struct Piece {
    region: Arc<Region>,
    offset: u64,
    len: u64,
    access: Access,
}

impl Piece {
    /// A piece that lies within its region and may be accessed so; `None` otherwise.
    pub fn new(region: &Arc<Region>, offset: u64, len: u64, access: Access) -> Option<Self> {
        region.slice(offset, usize::try_from(len).ok()?, access)?;
        Some(Self { region: region.clone(), offset, len, access })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The memory; empty only if the piece is.
    pub fn slice(&self) -> Option<HostSlice<'_>> {
        self.region.slice(self.offset, self.len as usize, self.access)
    }

    /// Whether its memory has faulted.
    pub fn failed(&self) -> bool {
        self.region.failed()
    }

    /// The piece without its first `skip` bytes and cut to `len`.
    fn part(&self, skip: u64, len: u64) -> Self {
        let skip = skip.min(self.len);
        let len = len.min(self.len - skip);
        Self { offset: self.offset + skip, len, ..self.clone() }
    }
}

/// What the kernel works on.
#[derive(Debug, Default)]
pub enum Buffers {
    /// Nothing.
    #[default]
    None,
    /// Guest memory itself; at most [`MAX_IOVECS`] pieces.
    Guest(Vec<Piece>),
    /// A buffer of ours: its window.
    Own(OwnBuffer),
}

/// The parts of `pieces` from byte `position` on, at most `len` bytes and `most` parts.
pub fn cut(pieces: &[Piece], position: u64, len: u64, most: usize) -> Vec<Piece> {
    let (mut skip, mut left) = (position, len);
    let mut parts = Vec::with_capacity(pieces.len().min(most));
    for piece in pieces {
        if skip >= piece.len {
            skip -= piece.len;
            continue;
        }
        if left == 0 || parts.len() == most {
            break;
        }
        let part = piece.part(skip, left);
        skip = 0;
        left -= part.len;
        parts.push(part);
    }
    parts
}

/// Copies from the pieces into `to`.
pub fn gather(pieces: &[Piece], to: &mut [u8]) {
    let mut rest = to;
    for slice in pieces.iter().filter_map(Piece::slice) {
        let copied = slice.copy_to(rest);
        rest = rest.get_mut(copied..).unwrap_or_default();
    }
}

/// Copies `from` into the pieces.
pub fn scatter(pieces: &[Piece], from: &[u8]) {
    let mut rest = from;
    for slice in pieces.iter().filter_map(Piece::slice) {
        let copied = slice.copy_from(rest);
        rest = rest.get(copied..).unwrap_or_default();
    }
}

/// Whether the pieces hold the same bytes as `bytes`, which is as long as they are together.
pub fn equal(pieces: &[Piece], bytes: &[u8]) -> bool {
    let mut rest = bytes;
    pieces.iter().filter_map(Piece::slice).all(|slice| {
        let Some((part, after)) = rest.split_at_checked(slice.len()) else { return false };
        rest = after;
        slice.compare(part)
    })
}
