//! What a lease says of queue pair and namespace, as words of its segment: written by the backend before anybody else has
//! the segment, read once and checked by the worker.

use super::drive::{BLOCKS_MAX, Drive};
use crate::error::{Error, ErrorKind};
use ipc::layout::drive_lease::{DriveTerms, drive_flags};
use nvme_driver::QueueTerms;
use nvme_driver::transport::DoorbellArea;
use nvme_spec::{Nsid, QueueId};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most buffers of a lease that are believed in.
const BUFFERS_MAX: u64 = 64;
/// Longest buffer that is believed in, in bytes.
const BUFFER_MAX: u64 = 1 << 20;

/// A lease's numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub queue: QueueTerms,
    pub drive: Drive,
    /// A descriptor of shadow doorbells goes along.
    pub shadow: bool,
    /// A descriptor of an event goes along.
    pub event: bool,
    /// Buffers behind the page of zeroes, and the bytes of each.
    pub buffers: usize,
    pub buffer_len: usize,
}

impl Terms {
    /// Writes them down. Relaxed: the descriptor is handed over after this, by a system call.
    pub fn write(&self, to: &DriveTerms) {
        let Self { queue, drive, shadow, event, buffers, buffer_len } = self;
        let set = |word: &AtomicU64, value: u64| word.store(value, Ordering::Relaxed);
        set(&to.qid, queue.qid.0.into());
        set(&to.depth, queue.depth.into());
        set(&to.cq_size, queue.cq_size.into());
        set(&to.cq_at, queue.cq_at);
        set(&to.lists_at, queue.lists_at);
        set(&to.room_at, queue.room_at);
        set(&to.page_shift, queue.page_shift.into());
        set(&to.iova, queue.iova);
        set(&to.dstrd, queue.dstrd.into());
        set(&to.doorbells_first, queue.doorbells.first);
        set(&to.doorbells_at, queue.doorbells.at);
        set(&to.doorbells_len, queue.doorbells.len);
        set(&to.buffer_len, *buffer_len as u64);
        set(&to.buffers, *buffers as u64);
        set(&to.nsid, drive.nsid.0.into());
        set(&to.block_shift, drive.block_shift.into());
        set(&to.size, drive.size);
        set(&to.data_max, drive.data_max);
        set(&to.boundary, drive.boundary);
        set(&to.zeroes_max, drive.zeroes_max);
        set(&to.verify_max, drive.verify_max);
        for (word, &delay) in to.delays.iter().zip(&drive.delays) {
            set(word, delay);
        }
        let flags = [
            (drive.writable, drive_flags::WRITABLE),
            (drive.zeroes_deallocate, drive_flags::ZEROES_DEALLOCATE),
            (drive.compare, drive_flags::COMPARE),
            (drive.volatile_cache, drive_flags::VOLATILE_CACHE),
            (queue.doorbells.device, drive_flags::DEVICE_DOORBELLS),
            (*shadow, drive_flags::SHADOW),
            (*event, drive_flags::EVENT),
        ];
        let flags = flags.iter().filter(|(there, _)| *there).map(|(_, flag)| flag);
        set(&to.flags, flags.fold(0, |all, flag| all | flag));
    }

    /// Reads them, each once.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for numbers that no backend writes.
    pub fn read(from: &DriveTerms) -> Result<Self, Error> {
        let get = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let flags = get(&from.flags);
        let flag = |flag| flags & flag != 0;
        let wrong = |what: &str| Error::new(ErrorKind::Invalid, format!("a lease with {what}"));
        let block_shift = get(&from.block_shift);
        let page_shift = get(&from.page_shift);
        if !(9..=12).contains(&block_shift) || !(12..=27).contains(&page_shift) {
            return Err(wrong("blocks or pages of another size"));
        }
        let block = 1 << block_shift;
        let blocks = |word: &AtomicU64, zero: bool| {
            let bytes = get(word);
            let good = bytes.is_multiple_of(block) && bytes / block <= BLOCKS_MAX;
            let good = good && (zero || bytes > 0);
            if good { Ok(bytes) } else { Err(wrong("limits that are no blocks")) }
        };
        let boundary = get(&from.boundary);
        if !boundary.is_multiple_of(block) {
            return Err(wrong("a boundary within a block"));
        }
        let (buffers, buffer_len) = (get(&from.buffers), get(&from.buffer_len));
        let usable = buffer_len.is_multiple_of(block) && (block..=BUFFER_MAX).contains(&buffer_len);
        if !usable || !(1..=BUFFERS_MAX).contains(&buffers) {
            return Err(wrong("buffers of another size"));
        }
        let narrow =
            |word: &AtomicU64| u32::try_from(get(word)).map_err(|_| wrong("large numbers"));
        let short = |word: &AtomicU64| u16::try_from(get(word)).map_err(|_| wrong("large numbers"));
        let queue = QueueTerms {
            qid: QueueId(short(&from.qid)?),
            depth: short(&from.depth)?,
            cq_size: narrow(&from.cq_size)?,
            cq_at: get(&from.cq_at),
            lists_at: get(&from.lists_at),
            room_at: get(&from.room_at),
            page_shift: page_shift as u32,
            iova: get(&from.iova),
            dstrd: (get(&from.dstrd) & 0xF) as u8,
            doorbells: DoorbellArea {
                first: get(&from.doorbells_first),
                at: get(&from.doorbells_at),
                len: get(&from.doorbells_len),
                device: flag(drive_flags::DEVICE_DOORBELLS),
            },
        };
        let drive = Drive {
            nsid: Nsid(narrow(&from.nsid)?),
            block_shift: block_shift as u32,
            size: get(&from.size),
            writable: flag(drive_flags::WRITABLE),
            page: 1 << page_shift,
            data_max: blocks(&from.data_max, false)?,
            boundary,
            zeroes_max: blocks(&from.zeroes_max, true)?,
            zeroes_deallocate: flag(drive_flags::ZEROES_DEALLOCATE),
            verify_max: blocks(&from.verify_max, true)?,
            compare: flag(drive_flags::COMPARE),
            volatile_cache: flag(drive_flags::VOLATILE_CACHE),
            delays: std::array::from_fn(|crd| get(&from.delays[crd])),
        };
        let (buffers, buffer_len) = (buffers as usize, buffer_len as usize);
        let (shadow, event) = (flag(drive_flags::SHADOW), flag(drive_flags::EVENT));
        Ok(Self { queue, drive, shadow, event, buffers, buffer_len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::layout::drive_lease::DriveLeaseLayout;
    use ipc::segment::Segment;

    fn terms() -> Terms {
        let doorbells = DoorbellArea { first: 4096, at: 8192, len: 4096, device: true };
        Terms {
            queue: QueueTerms {
                qid: QueueId(3),
                depth: 64,
                cq_size: 130,
                cq_at: 8192,
                lists_at: 12288,
                room_at: 12288 + (64 << 12),
                page_shift: 12,
                iova: 4 << 30,
                dstrd: 2,
                doorbells,
            },
            drive: Drive {
                nsid: Nsid(2),
                block_shift: 12,
                size: 1 << 30,
                writable: true,
                page: 4096,
                data_max: 512 << 10,
                boundary: 128 << 10,
                zeroes_max: 1 << 20,
                zeroes_deallocate: true,
                verify_max: 0,
                compare: false,
                volatile_cache: true,
                delays: [0, 1, 2, 3],
            },
            shadow: true,
            event: true,
            buffers: 4,
            buffer_len: 128 << 10,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let segment = Segment::<DriveLeaseLayout>::create("lease", 1).unwrap();
        terms().write(&segment.terms);
        let read = Terms::read(&segment.terms).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", terms()));
    }

    #[test]
    fn numbers_that_no_backend_writes_are_refused() {
        let segment = Segment::<DriveLeaseLayout>::create("lease", 1).unwrap();
        assert!(Terms::read(&segment.terms).is_err(), "nothing was written");
        let to = &segment.terms;
        let words = [
            (&to.block_shift, 8),
            (&to.block_shift, 64),
            (&to.page_shift, 63),
            (&to.data_max, 0),
            (&to.data_max, 4097),
            (&to.zeroes_max, 1 << 40),
            (&to.verify_max, u64::MAX),
            (&to.boundary, 512),
            (&to.buffers, 0),
            (&to.buffers, 1 << 40),
            (&to.buffer_len, 512),
            (&to.depth, 1 << 16),
            (&to.qid, 1 << 16),
            (&to.cq_size, 1 << 32),
        ];
        for (index, (word, value)) in words.into_iter().enumerate() {
            terms().write(to);
            word.store(value, Ordering::Relaxed);
            assert!(Terms::read(to).is_err(), "word {index} of {value}");
        }
    }
}
