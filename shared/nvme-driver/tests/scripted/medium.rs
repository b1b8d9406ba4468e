//! The medium of the scripted controller, and the way between it and the host's memory.

use std::sync::atomic::Ordering;

use ipc::guest_memory::{Access, HostSlice};
use nvme_spec::nvm::BlockIo;
use nvme_spec::{Command, Completion, NvmOpcode, Status};

use super::commands::{Engine, Held, Mapping};

impl Engine {
    /// What was mapped at an address, and the place in its object.
    pub fn find(&self, iova: u64, len: usize) -> Option<(&Mapping, u64)> {
        self.mappings.iter().find_map(|mapping| {
            let at = iova.checked_sub(mapping.iova)?;
            (at + len as u64 <= mapping.size).then_some((mapping, mapping.offset + at))
        })
    }

    pub fn host(&self, iova: u64, len: usize) -> Option<HostSlice<'_>> {
        let (mapping, at) = self.find(iova, len)?;
        mapping.region.slice(at, len, Access::READ_WRITE)
    }

    /// Carries out what is held, and completes it.
    pub fn serve_held(&mut self) {
        for Held { sqid, command, completion } in std::mem::take(&mut self.held) {
            let completion = self.io(&command, completion);
            self.post(sqid, completion);
        }
    }

    /// The pages of a command's data, by PRPs or one SGL data block.
    pub fn data(&self, command: &Command, len: usize) -> Option<Vec<(u64, usize)>> {
        if command.psdt().0 != 0 {
            let sgl = command.sgl();
            assert_eq!(sgl.length as usize, len, "an SGL as long as the data");
            return Some(vec![(sgl.address.0, len)]);
        }
        let page = self.page() as usize;
        let first = len.min(page - (command.prp1().0 as usize % page));
        let mut pages = vec![(command.prp1().0, first)];
        let mut left = len - first;
        if left > 0 && left <= page {
            pages.push((command.prp2().0, left));
        } else if left > 0 {
            let list = self.host(command.prp2().0, page)?;
            for index in 0..left.div_ceil(page) {
                let entry = list.load_u64(index * 8, Ordering::Relaxed)?;
                assert_eq!(entry % page as u64, 0, "list entries are whole pages");
                pages.push((entry, left.min(page)));
                left -= left.min(page);
            }
        }
        assert!(pages[1..].iter().all(|(at, _)| at % page as u64 == 0), "whole pages");
        Some(pages)
    }

    /// Bytes of a memory page.
    pub fn page(&self) -> u64 {
        4096 << self.script.mps
    }

    pub(super) fn io(&mut self, command: &Command, completion: Completion) -> Completion {
        let io = BlockIo::parse(command);
        let failed =
            |status| Completion::new(completion.sqid, completion.cid, completion.sqhd, status);
        let opcode = command.nvm_opcode();
        if ![NvmOpcode::READ, NvmOpcode::WRITE].contains(&opcode) {
            return completion;
        }
        let bytes = |blocks: u64| (blocks as usize) << self.script.format.lbads();
        let (start, len) = (bytes(io.slba.0), bytes(io.blocks.0));
        if start + len > self.media.len() {
            return failed(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
        let Some(pages) = self.data(command, len) else {
            return failed(Status::DATA_TRANSFER_ERROR.with_dnr());
        };
        let mut media = std::mem::take(&mut self.media);
        let mut at = start;
        let mut ok = true;
        for (iova, len) in pages {
            match self.host(iova, len) {
                Some(slice) if opcode == NvmOpcode::READ => {
                    ok &= slice.copy_from(&media[at..at + len]) == len
                }
                Some(slice) => ok &= slice.copy_to(&mut media[at..at + len]) == len,
                None => ok = false,
            }
            at += len;
        }
        self.media = media;
        if ok { completion } else { failed(Status::DATA_TRANSFER_ERROR.with_dnr()) }
    }
}
