//! Data pointers: PRP entries and lists, SGL segments, written into the host's memory.

use nvme_spec::Command;
use nvme_spec::Iova;
use nvme_spec::sgl::SglDescriptor;
use zerocopy::IntoBytes;

use super::memory::{Buffer, HostMemory};

impl HostMemory {
    /// The command with PRPs for a buffer that is contiguous for the device; a list goes to fresh pages.
    #[track_caller]
    pub fn with_prps(&mut self, command: Command, data: Buffer) -> Command {
        let size = self.page();
        let first = size - data.iova.0 % size;
        let pages: Vec<Iova> = (data.iova.0 + first..data.iova.0 + data.len)
            .step_by(size as usize)
            .map(Iova)
            .collect();
        self.with_pages(command, data.iova, &pages)
    }

    /// The command with PRPs for scattered pages: the first, which may start within a page, and all others.
    #[track_caller]
    pub fn with_pages(&mut self, command: Command, first: Iova, others: &[Iova]) -> Command {
        match others {
            [] => command.with_prps(first, Iova(0)),
            [second] => command.with_prps(first, *second),
            all => {
                let list = self.prp_list(all);
                command.with_prps(first, list)
            }
        }
    }

    /// Writes a chained PRP list; where it begins.
    #[track_caller]
    pub fn prp_list(&mut self, pages: &[Iova]) -> Iova {
        self.prp_list_from(0, pages)
    }

    /// The same, its first entry `skipped` entries from the start of its page, so that it chains the sooner.
    #[track_caller]
    pub fn prp_list_from(&mut self, skipped: u64, pages: &[Iova]) -> Iova {
        let size = self.page();
        let list = Iova(self.allocate(size).iova.0 + 8 * skipped);
        let room = (size / 8 - skipped) as usize;
        let own = if pages.len() > room { room - 1 } else { pages.len() };
        let mut bytes: Vec<u8> =
            pages[..own].iter().flat_map(|page| page.0.to_le_bytes()).collect();
        if own < pages.len() {
            bytes.extend(self.prp_list(&pages[own..]).0.to_le_bytes());
        }
        self.write(list, &bytes);
        list
    }

    /// Writes an SGL segment; where it lies.
    #[track_caller]
    pub fn sgl_segment(&mut self, descriptors: &[SglDescriptor]) -> Buffer {
        let segment = self.allocate((descriptors.len() * 16) as u64);
        self.write(segment.iova, descriptors.as_bytes());
        segment
    }
}
