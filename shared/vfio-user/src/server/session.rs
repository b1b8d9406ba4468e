//! One client's session: what was negotiated, and the handling of each message.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::{Act, Device, DeviceDescription};
use crate::Errno;
use crate::dma::{DmaMap, DmaRequest, DmaUnmap};
use crate::irq::IrqRequest;
use crate::message::{
    Command, DeviceInfo, DmaUnmapBody, Header, IrqInfo, RegionAccess, RegionInfo, WriteMulti,
    WriteMultiHeader,
};
use crate::version::{Limits, Negotiated, Proposal};

/// A reply to send: its bytes in one `sendmsg`, the descriptors with the first of them.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The whole message, header included.
    pub bytes: Vec<u8>,
    /// Descriptors that go with it.
    pub fds: Vec<Arc<OwnedFd>>,
}

/// A command whose act goes on. Its reply is built by [`Session::finish`]; dropping it leaves
/// the client without an answer, which is right only when the connection is gone.
#[derive(Debug)]
#[must_use]
pub struct Deferred {
    header: Header,
    kind: DeferredKind,
}

impl Deferred {
    /// The header of the command that is under way.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }
}

#[derive(Debug)]
enum DeferredKind {
    /// The body of the reply, and whether an error is told to the client.
    Reply { body: Vec<u8>, tell_error: bool },
    /// Writes of REGION_WRITE_MULTI that are still to come, last first, and how many there were.
    Writes { rest: Vec<WriteMulti>, total: u64 },
}

/// What became of a message.
#[derive(Debug)]
#[must_use]
pub enum Outcome {
    /// Send this.
    Reply(Reply),
    /// Done, and the client wants no reply.
    Silent,
    /// Under way: handle no further message of this client before it is finished.
    Deferred(Deferred),
}

/// What is to be answered, before the header.
enum Answer {
    Body(Vec<u8>),
    BodyWithFds(Vec<u8>, Vec<Arc<OwnedFd>>),
    Error(Errno),
    Later(DeferredKind),
}

impl From<Errno> for Answer {
    fn from(errno: Errno) -> Self {
        Self::Error(errno)
    }
}

/// Protocol state of one connection, and the description of the device it serves.
#[derive(Debug)]
pub struct Session {
    description: DeviceDescription,
    limits: Limits,
    negotiated: Option<Negotiated>,
}

impl Session {
    /// A session with a client that has just connected.
    #[must_use]
    pub fn new(description: DeviceDescription, limits: Limits) -> Self {
        Self::resume(description, limits, None)
    }

    /// A session that another process began; `negotiated` is what it had agreed to.
    #[must_use]
    pub fn resume(
        description: DeviceDescription,
        limits: Limits,
        negotiated: Option<Negotiated>,
    ) -> Self {
        Self { description, limits, negotiated }
    }

    /// What was agreed with the client, once it was.
    #[must_use]
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.negotiated
    }

    /// The device's description.
    #[must_use]
    pub fn description(&self) -> &DeviceDescription {
        &self.description
    }

    /// The device's description, to change it between messages.
    pub fn description_mut(&mut self) -> &mut DeviceDescription {
        &mut self.description
    }

    /// A command that reads or writes client memory, to be sent to the client. What it answers
    /// goes to [`crate::dma::parse_reply`].
    ///
    /// # Errors
    /// [`Errno::EINVAL`] if it is larger than the client takes or nothing was negotiated yet.
    pub fn dma_command(&self, id: u16, request: &DmaRequest) -> Result<Vec<u8>, Errno> {
        let negotiated = self.negotiated.ok_or(Errno::EINVAL)?;
        request.encode(id, negotiated.client_max_data_xfer_size)
    }

    /// Handles one message: `header` passed [`crate::framing::check`], `body` is the rest of its
    /// bytes, `fds` came with it. Descriptors that nothing asked for are closed.
    ///
    /// A message that is no command is not answered: [`Outcome::Silent`]. A caller that sends
    /// commands of its own looks at [`Header::is_reply`] first.
    pub fn handle(
        &mut self,
        header: &Header,
        body: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Outcome {
        if header.is_reply() {
            return Outcome::Silent;
        }
        let answer = if header.is_command() {
            self.answer(header.command, body, fds, device)
        } else {
            Errno::EINVAL.into()
        };
        outcome(header, answer)
    }

    /// Goes on with a deferred command whose act came to `result`. The outcome is its reply,
    /// unless more of the command is to be done, which may be deferred again.
    pub fn finish(
        &mut self,
        deferred: Deferred,
        result: Result<(), Errno>,
        device: &mut dyn Device,
    ) -> Outcome {
        let Deferred { header, kind } = deferred;
        let answer = match (kind, result) {
            (DeferredKind::Reply { tell_error: true, .. }, Err(errno)) => Answer::Error(errno),
            (DeferredKind::Reply { body, .. }, _) => Answer::Body(body),
            (DeferredKind::Writes { rest, total }, _) => self.write_each(rest, total, device),
        };
        outcome(&header, answer)
    }

    fn answer(
        &mut self,
        command: Command,
        body: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut dyn Device,
    ) -> Answer {
        if command == Command::VERSION {
            return self.version(body);
        }
        let Some(negotiated) = self.negotiated else {
            return Errno::EINVAL.into();
        };
        match command {
            Command::DMA_MAP => match DmaMap::parse(body, fds) {
                Ok(map) => told(device.dma_map(map), Vec::new()),
                Err(errno) => errno.into(),
            },
            Command::DMA_UNMAP => dma_unmap(body, device),
            Command::DEVICE_GET_INFO => self.device_info(body),
            Command::DEVICE_GET_REGION_INFO => self.region_info(body, &negotiated),
            Command::DEVICE_GET_IRQ_INFO => self.irq_info(body),
            Command::DEVICE_SET_IRQS => {
                match IrqRequest::parse(body, fds, &self.description.irqs) {
                    Ok(request) => told(device.set_irqs(request), Vec::new()),
                    Err(errno) => errno.into(),
                }
            }
            Command::REGION_READ => self.region_read(body, device),
            Command::REGION_WRITE => self.region_write(body, device),
            Command::DEVICE_RESET if !self.description.flags.reset() => Errno::ENOTSUP.into(),
            Command::DEVICE_RESET if body.is_empty() => told(device.reset(), Vec::new()),
            Command::REGION_WRITE_MULTI if negotiated.write_multiple => {
                self.region_write_multi(body, device)
            }
            Command::REGION_WRITE_MULTI
            | Command::DEVICE_GET_REGION_IO_FDS
            | Command::DIRTY_PAGES
            | Command::DEVICE_FEATURE
            | Command::MIG_DATA_READ
            | Command::MIG_DATA_WRITE => Errno::ENOTSUP.into(),
            // DMA_READ and DMA_WRITE go the other way; the rest is unknown.
            _ => Errno::EINVAL.into(),
        }
    }

    /// VERSION may come again: a successor handles the message that its predecessor died on.
    fn version(&mut self, body: &[u8]) -> Answer {
        match Proposal::parse(body).and_then(|proposal| Negotiated::agree(&proposal)) {
            Ok(negotiated) => {
                self.negotiated = Some(negotiated);
                Answer::Body(negotiated.reply_body(&self.limits))
            }
            Err(errno) => errno.into(),
        }
    }

    fn device_info(&self, body: &[u8]) -> Answer {
        let Ok((request, _)) = DeviceInfo::read_from_prefix(body) else {
            return Errno::EINVAL.into();
        };
        if (request.argsz as usize) < size_of::<DeviceInfo>() {
            return Errno::EINVAL.into();
        }
        let info = DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: self.description.flags,
            num_regions: self.description.regions.len() as u32,
            num_irqs: self.description.irqs.len() as u32,
        };
        Answer::Body(info.as_bytes().to_vec())
    }

    /// A region that is not there has size 0: an error would block cloud-hypervisor.
    fn region_info(&self, body: &[u8], negotiated: &Negotiated) -> Answer {
        let Ok((request, _)) = RegionInfo::read_from_prefix(body) else {
            return Errno::EINVAL.into();
        };
        if (request.argsz as usize) < size_of::<RegionInfo>() {
            return Errno::EINVAL.into();
        }
        let mut region = self.description.region(request.index);
        if negotiated.client_max_msg_fds == 0 {
            region.mapping = None;
        }
        let (body, fd) = region.info(request.index, request.argsz);
        Answer::BodyWithFds(body, fd.into_iter().collect())
    }

    fn irq_info(&self, body: &[u8]) -> Answer {
        let Ok((request, _)) = IrqInfo::read_from_prefix(body) else {
            return Errno::EINVAL.into();
        };
        if (request.argsz as usize) < size_of::<IrqInfo>() {
            return Errno::EINVAL.into();
        }
        let irq = self.description.irqs.get(request.index.position()).copied().unwrap_or_default();
        let info = IrqInfo {
            argsz: size_of::<IrqInfo>() as u32,
            flags: irq.flags,
            index: request.index,
            count: irq.count,
        };
        Answer::Body(info.as_bytes().to_vec())
    }

    fn region_read(&self, body: &[u8], device: &mut dyn Device) -> Answer {
        let Ok(access) = RegionAccess::read_from_bytes(body) else {
            return Errno::EINVAL.into();
        };
        if access.count > self.limits.max_data_xfer_size {
            return Errno::EINVAL.into();
        }
        let count = access.count as usize;
        let head = access.as_bytes();
        let mut reply = vec![0; head.len() + count];
        let (reply_head, data) = reply.split_at_mut(head.len());
        reply_head.copy_from_slice(head);
        let region = self.description.regions.get(access.region.position());
        let readable = region
            .is_some_and(|region| region.read && region.contains(access.offset, count as u64));
        let read = readable
            && (count == 0 || device.region_read(access.region, access.offset, data).is_ok());
        if !read {
            data.fill(0xff);
        }
        Answer::Body(reply)
    }

    fn region_write(&self, body: &[u8], device: &mut dyn Device) -> Answer {
        let Ok((access, data)) = RegionAccess::read_from_prefix(body) else {
            return Errno::EINVAL.into();
        };
        if access.count > self.limits.max_data_xfer_size || data.len() != access.count as usize {
            return Errno::EINVAL.into();
        }
        let act = self.write(&access, data, device);
        untold(act, access.as_bytes().to_vec())
    }

    /// Writes if the region takes it; what it does not take is dropped.
    fn write(
        &self,
        access: &RegionAccess,
        data: &[u8],
        device: &mut dyn Device,
    ) -> Result<Act, Errno> {
        let region = self.description.regions.get(access.region.position());
        let writable = region.is_some_and(|region| {
            region.write && region.contains(access.offset, data.len() as u64)
        });
        if writable && !data.is_empty() {
            device.region_write(access.region, access.offset, data)
        } else {
            Ok(Act::Completed)
        }
    }

    fn region_write_multi(&self, body: &[u8], device: &mut dyn Device) -> Answer {
        let Ok((head, rest)) = WriteMultiHeader::read_from_prefix(body) else {
            return Errno::EINVAL.into();
        };
        let (chunks, tail) = rest.as_chunks::<{ size_of::<WriteMulti>() }>();
        if !tail.is_empty() || head.wr_cnt != chunks.len() as u64 {
            return Errno::EINVAL.into();
        }
        let writes: Vec<WriteMulti> = chunks
            .iter()
            .rev()
            .filter_map(|chunk| WriteMulti::read_from_bytes(chunk).ok())
            .collect();
        if writes.iter().any(|write| write.count as usize > write.data.len()) {
            return Errno::EINVAL.into();
        }
        self.write_each(writes, head.wr_cnt, device)
    }

    /// Carries out `rest`, last first, until one is deferred.
    fn write_each(&self, mut rest: Vec<WriteMulti>, total: u64, device: &mut dyn Device) -> Answer {
        while let Some(write) = rest.pop() {
            let WriteMulti { offset, region, count, data } = write;
            let access = RegionAccess { offset, region, count };
            let data = data.get(..count as usize).unwrap_or_default();
            if let Ok(Act::Deferred) = self.write(&access, data, device) {
                return Answer::Later(DeferredKind::Writes { rest, total });
            }
        }
        Answer::Body(WriteMultiHeader { wr_cnt: total }.as_bytes().to_vec())
    }
}

fn dma_unmap(body: &[u8], device: &mut dyn Device) -> Answer {
    let Ok((request, _)) = DmaUnmapBody::read_from_prefix(body) else {
        return Errno::EINVAL.into();
    };
    match DmaUnmap::parse(&request) {
        Ok(unmap) => untold(device.dma_unmap(unmap), request.as_bytes().to_vec()),
        Err(errno) => errno.into(),
    }
}

/// The answer to an act whose error the client is told.
fn told(act: Result<Act, Errno>, body: Vec<u8>) -> Answer {
    match act {
        Ok(Act::Completed) => Answer::Body(body),
        Ok(Act::Deferred) => Answer::Later(DeferredKind::Reply { body, tell_error: true }),
        Err(errno) => Answer::Error(errno),
    }
}

/// The answer to an act whose error no client could read: the reply is the same.
fn untold(act: Result<Act, Errno>, body: Vec<u8>) -> Answer {
    match act {
        Ok(Act::Deferred) => Answer::Later(DeferredKind::Reply { body, tell_error: false }),
        Ok(Act::Completed) | Err(_) => Answer::Body(body),
    }
}

fn outcome(header: &Header, answer: Answer) -> Outcome {
    let (bytes, fds) = match answer {
        Answer::Later(kind) => return Outcome::Deferred(Deferred { header: *header, kind }),
        _ if header.flags.no_reply() => return Outcome::Silent,
        Answer::Body(body) => (header.reply(body.len()).with_body(&body), Vec::new()),
        Answer::BodyWithFds(body, fds) => (header.reply(body.len()).with_body(&body), fds),
        Answer::Error(errno) => (header.error_reply(errno).as_bytes().to_vec(), Vec::new()),
    };
    Outcome::Reply(Reply { bytes, fds })
}
