//! A request in the words of a submission entry, and back. On the hot path.

use crate::request::{ErrorKind, Op, Request};
use ipc::guest_memory::MemRange;
use ipc::layout::channel::{
    INLINE_RANGES, MAX_REQUEST_RANGES, RangeList, SUBMISSION_WORDS, entry_flags,
};
use std::sync::atomic::Ordering;

/// A submission entry's words, see [`ipc::layout::channel::SUBMISSION_WORDS`].
pub type Words = [u64; SUBMISSION_WORDS];

/// The request's entry for a slot. Ranges that do not fit into it are written to `list`.
///
/// # Errors
/// [`ErrorKind::Invalid`] for more than [`MAX_REQUEST_RANGES`] ranges.
#[inline]
pub fn encode(request: &Request<'_>, slot: u32, list: &RangeList) -> Result<Words, ErrorKind> {
    let count = request.ranges.len();
    let mut flags = 0;
    flags |= if request.fua { entry_flags::FUA } else { 0 };
    flags |= if request.deallocate { entry_flags::DEALLOCATE } else { 0 };
    let mut words = [0; SUBMISSION_WORDS];
    if count > MAX_REQUEST_RANGES {
        return Err(ErrorKind::Invalid);
    } else if count > INLINE_RANGES {
        flags |= entry_flags::LIST;
        for (row, range) in list.0.iter().zip(request.ranges) {
            let [first, second] = range.to_words();
            row[0].store(first, Ordering::Relaxed);
            row[1].store(second, Ordering::Relaxed);
        }
    } else if request.op == Op::Copy {
        words[4] = request.source;
    } else {
        for (pair, range) in words[4..].chunks_exact_mut(2).zip(request.ranges) {
            pair.copy_from_slice(&range.to_words());
        }
    }
    words[0] = u64::from(request.op as u8)
        | u64::from(flags) << 8
        | (count as u64) << 16
        | u64::from(slot) << 32;
    words[1] = request.offset;
    words[2] = request.length;
    words[3] = request.trace;
    Ok(words)
}

/// The slot that an entry names; it may not exist.
#[inline]
pub fn slot(words: &Words) -> usize {
    (words[0] >> 32) as usize
}

/// The request of an entry, its ranges copied once into `ranges`. Whether they are good is for the caller to check.
///
/// # Errors
/// [`ErrorKind::Invalid`] for words that no honest peer writes.
pub fn decode<'a>(
    words: &Words,
    list: &RangeList,
    ranges: &'a mut Vec<MemRange>,
    tag: u32,
) -> Result<Request<'a>, ErrorKind> {
    let op = Op::from_code(words[0] as u8).ok_or(ErrorKind::Invalid)?;
    let flags = (words[0] >> 8) as u8;
    let count = (words[0] >> 16) as u16 as usize;
    let listed = flags & entry_flags::LIST != 0;
    let most = if listed { MAX_REQUEST_RANGES } else { INLINE_RANGES };
    let known = entry_flags::FUA | entry_flags::DEALLOCATE | entry_flags::LIST;
    if count > most || flags & !known != 0 || (op.memory_factor() == 0 && count != 0) {
        return Err(ErrorKind::Invalid);
    }
    ranges.clear();
    if listed {
        ranges.extend(list.0.iter().take(count).map(|row| {
            MemRange::from_words([row[0].load(Ordering::Relaxed), row[1].load(Ordering::Relaxed)])
        }));
    } else {
        let pairs = words[4..].chunks_exact(2).take(count);
        ranges.extend(pairs.map(|pair| MemRange::from_words([pair[0], pair[1]])));
    }
    Ok(Request {
        op,
        fua: flags & entry_flags::FUA != 0,
        deallocate: flags & entry_flags::DEALLOCATE != 0,
        offset: words[1],
        length: words[2],
        source: if op == Op::Copy { words[4] } else { 0 },
        ranges,
        tag,
        trace: words[3],
    })
}
