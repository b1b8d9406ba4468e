//! Data as PRP entries: which part of scattered memory one command can carry as it lies. NVMe Base 2.0c 4.1.1.
//!
//! The first entry may begin anywhere in its page, at a multiple of 4; every other begins its page, and all but the last
//! fill theirs. Memory that does not lie so is cut between logical blocks, or goes through a buffer.

/// A part of a request's memory as the drive sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First address; `None` if the drive cannot reach it.
    pub iova: Option<u64>,
    /// Bytes.
    pub len: u64,
}

/// What bounds one command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of a logical block, a power of two.
    pub block: u64,
    /// Bytes of a memory page, a power of two.
    pub page: u64,
    /// Most bytes.
    pub most: u64,
    /// Most entries.
    pub pages_max: usize,
}

/// Fills `pages` with the entries of as much as can go as one command, and returns its bytes: a multiple of the block,
/// at most `bounds.most`. 0: not even one block can go as it lies.
pub(super) fn plan(
    extents: impl Iterator<Item = Extent>,
    bounds: &Bounds,
    pages: &mut Vec<u64>,
) -> u64 {
    pages.clear();
    let Bounds { block, page, most, pages_max } = *bounds;
    let (mut bytes, mut first, mut end) = (0, 0, 0);
    for extent in extents {
        let Some(start) = extent.iova.filter(|_| bytes < most) else { break };
        let len = extent.len.min(most - bytes);
        if bytes == 0 {
            if !start.is_multiple_of(4) {
                break;
            }
            first = start;
        } else if start != end && !(end.is_multiple_of(page) && start.is_multiple_of(page)) {
            break;
        }
        // Where it continues within a page, that page is there already.
        let mut at = if start == end && bytes > 0 { start.next_multiple_of(page) } else { start };
        let stop = start + len;
        while at < stop && pages.len() < pages_max {
            pages.push(at);
            at = (at & !(page - 1)) + page;
        }
        let reached = at.min(stop).max(start);
        bytes += reached - start;
        end = reached;
        if reached < stop {
            break;
        }
    }
    let whole = bytes & !(block - 1);
    let entries = if whole == 0 { 0 } else { (first % page + whole).div_ceil(page) };
    pages.truncate(entries as usize);
    whole
}

/// The entries of `len` bytes that lie together.
pub(super) fn contiguous(iova: u64, len: u64, page: u64, pages: &mut Vec<u64>) {
    pages.clear();
    let mut at = iova;
    while at < iova + len {
        pages.push(at);
        at = (at & !(page - 1)) + page;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { block: 512, page: 4096, most: 1 << 20, pages_max: 513 };

    fn extent(iova: u64, len: u64) -> Extent {
        Extent { iova: Some(iova), len }
    }

    fn planned(extents: &[Extent], bounds: &Bounds) -> (u64, Vec<u64>) {
        let mut pages = vec![7];
        let bytes = plan(extents.iter().copied(), bounds, &mut pages);
        (bytes, pages)
    }

    #[test]
    fn a_guests_own_pages_go_as_they_lie() {
        let list = [extent(0x1200, 0xE00), extent(0x9000, 0x1000), extent(0x5000, 0x200)];
        assert_eq!(planned(&list, &BOUNDS), (0x2000, vec![0x1200, 0x9000, 0x5000]));
    }

    #[test]
    fn memory_in_one_piece_is_one_entry_a_page() {
        let expected: Vec<u64> = [0x1FFC].into_iter().chain((2..6).map(|n| n << 12)).collect();
        assert_eq!(planned(&[extent(0x1FFC, 0x4000)], &BOUNDS), (0x4000, expected));
    }

    #[test]
    fn neighbours_within_a_page_share_its_entry() {
        let list = [extent(0x1000, 0x200), extent(0x1200, 0x400), extent(0x1600, 0xC00)];
        assert_eq!(planned(&list, &BOUNDS), (0x1200, vec![0x1000, 0x2000]));
    }

    #[test]
    fn what_does_not_fit_is_cut_between_blocks() {
        let list = [extent(0x1000, 0x300), extent(0x9000, 0x1000)];
        assert_eq!(planned(&list, &BOUNDS), (0x200, vec![0x1000]));
        let list = [extent(0x1000, 0x100), extent(0x9000, 0x1000)];
        assert_eq!(planned(&list, &BOUNDS), (0, vec![]), "not a block");
    }

    #[test]
    fn misaligned_and_unreachable_memory_does_not_go_as_it_lies() {
        assert_eq!(planned(&[extent(0x1002, 0x1000)], &BOUNDS), (0, vec![]));
        assert_eq!(planned(&[Extent { iova: None, len: 0x1000 }], &BOUNDS), (0, vec![]));
        let list = [extent(0x1000, 0x1000), Extent { iova: None, len: 0x1000 }];
        assert_eq!(planned(&list, &BOUNDS), (0x1000, vec![0x1000]));
    }

    #[test]
    fn no_command_is_longer_than_its_bounds() {
        let bounds = Bounds { most: 0x2000, ..BOUNDS };
        assert_eq!(planned(&[extent(0x1000, 0x9000)], &bounds), (0x2000, vec![0x1000, 0x2000]));
        let bounds = Bounds { pages_max: 2, ..BOUNDS };
        assert_eq!(planned(&[extent(0x1800, 0x9000)], &bounds), (0x1800, vec![0x1800, 0x2000]));
    }

    proptest! {
        /// Whatever the extents: read back as a controller does, the entries lead to the same addresses.
        #[test]
        fn entries_lead_where_the_extents_do(
            list in prop::collection::vec((0_u64..64, 0_u64..4, 1_u64..24), 1..12),
            most in 1_u64..64,
        ) {
            let extents: Vec<Extent> = list
                .iter()
                .map(|&(page, part, len)| extent((page << 12) + (part << 10), len << 9))
                .collect();
            let bounds = Bounds { most: most << 9, ..BOUNDS };
            let (bytes, pages) = planned(&extents, &bounds);
            prop_assert!(bytes <= bounds.most && bytes % 512 == 0);
            let wanted: Vec<u64> = extents
                .iter()
                .flat_map(|extent| (0..extent.len / 4).map(|word| extent.iova.unwrap() + word * 4))
                .take((bytes / 4) as usize)
                .collect();
            let mut seen = Vec::new();
            for (index, &entry) in pages.iter().enumerate() {
                prop_assert!(index == 0 || entry % 4096 == 0);
                let end = (entry & !4095) + 4096;
                seen.extend((entry..end).step_by(4));
            }
            prop_assert!(pages.is_empty() || seen.len() as u64 * 4 < bytes + 4096);
            seen.truncate((bytes / 4) as usize);
            prop_assert_eq!(seen, wanted);
        }

        #[test]
        fn memory_in_one_piece_needs_no_plan(iova in 0_u64..1 << 30, len in 1_u64..1 << 16) {
            let (iova, len) = (iova & !3, len << 9);
            let bounds = Bounds { most: len, pages_max: usize::MAX, ..BOUNDS };
            let (bytes, pages) = planned(&[extent(iova, len)], &bounds);
            let mut simple = Vec::new();
            contiguous(iova, len, 4096, &mut simple);
            prop_assert_eq!((bytes, pages), (len, simple));
        }
    }
}
