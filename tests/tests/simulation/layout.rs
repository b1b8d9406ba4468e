//! How a command's data lies in the host's memory, and the data pointers that say so.

use nvme_spec::sgl::SglDescriptor;
use nvme_spec::{Command, Iova};
use vireo_tests::host::Buffer;
use vireo_tests::host::memory::PAGE;
use vireo_tests::random::Random;
use vireo_tests::simulated::SimulatedHost;
use zerocopy::IntoBytes;

/// Pages of a slot's memory that hold data.
pub const DATA_PAGES: u64 = 24;

/// Whole pages in any order, the first entered at any dword; the last ends anywhere.
pub fn prp_layout(random: &mut Random, slot: Buffer, bytes: u64) -> Vec<Buffer> {
    let mut pages: Vec<u64> = (0..DATA_PAGES).collect();
    for index in (1..pages.len()).rev() {
        if random.one_in(2) {
            pages.swap(index, random.in_range(0..index as u64 + 1) as usize);
        }
    }
    let mut offset = if random.one_in(2) { 0 } else { random.in_range(0..PAGE / 4) * 4 };
    let mut left = bytes;
    let mut layout = Vec::new();
    for page in pages {
        let len = left.min(PAGE - offset);
        if len == 0 {
            break;
        }
        layout.push(slot.part(page * PAGE + offset, len));
        (left, offset) = (left - len, 0);
    }
    assert_eq!(left, 0, "a slot holds its data");
    layout
}

/// Pieces of any length that is a multiple of 4, one after another with gaps.
pub fn sgl_layout(random: &mut Random, slot: Buffer, bytes: u64) -> Vec<Buffer> {
    let mut layout = Vec::new();
    let (mut at, mut left) = (random.in_range(0..64) * 4, bytes);
    while left > 0 {
        let longest = if layout.len() > 40 { left } else { left.min(8192) };
        let len = if longest == left && random.one_in(3) {
            left
        } else {
            random.in_range(1..longest / 4 + 1) * 4
        };
        layout.push(slot.part(at, len));
        at += len + random.in_range(0..32) * 4;
        left -= len;
    }
    layout
}

/// The command with PRPs for pages; a list lies in `lists`.
pub fn prps(host: &SimulatedHost, command: Command, layout: &[Buffer], lists: Buffer) -> Command {
    let mut pages = Vec::new();
    for piece in layout {
        let (mut at, end) = (piece.iova.0, piece.iova.0 + piece.len);
        while at < end {
            pages.push(at);
            at = (at / PAGE + 1) * PAGE;
        }
    }
    match pages[..] {
        [first] => command.with_prps(Iova(first), Iova(0)),
        [first, second] => command.with_prps(Iova(first), Iova(second)),
        _ => {
            // A list that does not begin at its page's start, so that it is chained sooner.
            let list: Vec<u8> = pages[1..].iter().flat_map(|page| page.to_le_bytes()).collect();
            host.memory.write(lists.iova, &list);
            command.with_prps(Iova(pages[0]), lists.iova)
        }
    }
}

/// The command with an SGL: one descriptor, or segments of any lengths.
pub fn sgl(
    random: &mut Random,
    host: &SimulatedHost,
    command: Command,
    layout: &[Buffer],
    lists: Buffer,
) -> Command {
    let blocks: Vec<_> = layout
        .iter()
        .map(|piece| SglDescriptor::data_block(piece.iova, piece.len as u32))
        .collect();
    if let [only] = blocks[..] {
        return command.with_sgl(only);
    }
    let split = random.in_range(1..blocks.len() as u64 + 1) as usize;
    let (head, tail) = blocks.split_at(split);
    if tail.is_empty() {
        host.memory.write(lists.iova, head.as_bytes());
        return command.with_sgl(SglDescriptor::last_segment(lists.iova, head.len() as u32 * 16));
    }
    let second = lists.part(2 * PAGE, 2 * PAGE);
    let mut first = head.to_vec();
    first.push(SglDescriptor::last_segment(second.iova, tail.len() as u32 * 16));
    host.memory.write(lists.iova, first.as_bytes());
    host.memory.write(second.iova, tail.as_bytes());
    command.with_sgl(SglDescriptor::segment(lists.iova, first.len() as u32 * 16))
}

/// Copies data to the pieces, in order.
pub fn scatter(host: &SimulatedHost, layout: &[Buffer], data: &[u8]) {
    let mut at = 0;
    for piece in layout {
        host.memory.write(piece.iova, &data[at..at + piece.len as usize]);
        at += piece.len as usize;
    }
}

/// What the pieces hold, in order.
pub fn gather(host: &SimulatedHost, layout: &[Buffer]) -> Vec<u8> {
    layout.iter().flat_map(|piece| host.memory.read(piece.iova, piece.len as usize)).collect()
}
