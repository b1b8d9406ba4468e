//! Asynchronous events: requests held, events not yet told, masks. All of it lies in the controller segment. NVMe
//! Base 2.0c 5.2.
//!
//! There is at most one untold event of each kind, and once one of a type was told, others of that type wait until the
//! host has read the log page that belongs to it. So nothing here can grow.

use crate::admin::Outcome;
use crate::controller::Controller;
use ipc::layout::controller::{AdminRecord, EVENT_REQUESTS};
use nvme_spec::feature::event::{AsyncEvent, AsyncEventConfiguration};
use nvme_spec::log_page::LogPageId;
use nvme_spec::{CommandId, Status};
use std::sync::atomic::Ordering;

/// Asynchronous Event Request Limit (AERL), 0's based.
pub(crate) const AERL_Z: u8 = (EVENT_REQUESTS - 1) as u8;

/// What a host may be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A doorbell of a queue that is not there was written.
    InvalidDoorbellRegister,
    /// A doorbell was written with a value past its queue's end.
    InvalidDoorbellValue,
    /// A namespace came, went or changed.
    NamespaceAttributeChanged,
}

impl Event {
    const ALL: [Self; 3] = [
        Self::InvalidDoorbellRegister,
        Self::InvalidDoorbellValue,
        Self::NamespaceAttributeChanged,
    ];

    fn wire(self) -> AsyncEvent {
        match self {
            Self::InvalidDoorbellRegister => AsyncEvent::INVALID_DOORBELL_REGISTER,
            Self::InvalidDoorbellValue => AsyncEvent::INVALID_DOORBELL_VALUE,
            Self::NamespaceAttributeChanged => AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED,
        }
    }

    /// Its bit among the untold.
    fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The bit of its type among the masked.
    fn mask(self) -> u32 {
        1 << self.wire().kind().0
    }

    /// Whether a host with this configuration wants to hear of it. Errors are not configurable.
    fn is_wanted(self, configuration: AsyncEventConfiguration) -> bool {
        match self {
            Self::InvalidDoorbellRegister | Self::InvalidDoorbellValue => true,
            Self::NamespaceAttributeChanged => configuration.namespace_attribute(),
        }
    }
}

impl Controller {
    /// Something happened. It is told when there is a request for it and its type is not masked.
    pub(crate) fn raise(&mut self, event: Event) {
        let record = &self.segment.admin;
        let configuration = record.event_configuration.load(Ordering::Relaxed);
        if event.is_wanted(AsyncEventConfiguration::from_bits(configuration)) {
            record.pending_events.fetch_or(event.bit(), Ordering::Relaxed);
        }
    }

    /// Asynchronous Event Request: held until there is something to tell.
    pub(crate) fn request_event(&mut self, cid: CommandId) -> Result<Outcome, Status> {
        let free = self
            .segment
            .admin
            .event_requests
            .iter()
            .find(|request| request.load(Ordering::Relaxed) == 0)
            .ok_or(Status::AER_LIMIT_EXCEEDED.with_dnr())?;
        free.store(u32::from(cid.0) + 1, Ordering::Relaxed);
        Ok(Outcome::Pending)
    }

    /// Completes requests with what is to be told.
    pub(crate) fn match_events(&mut self) {
        let segment = self.segment.clone();
        let record = &segment.admin;
        for event in Event::ALL {
            let pending = record.pending_events.load(Ordering::Relaxed) & event.bit() != 0;
            let masked = record.masked_events.load(Ordering::Relaxed) & event.mask() != 0;
            if !pending || masked {
                continue;
            }
            let Some(cid) = take_request(record) else { return };
            record.pending_events.fetch_and(!event.bit(), Ordering::Relaxed);
            record.masked_events.fetch_or(event.mask(), Ordering::Relaxed);
            self.finish(cid, Ok(event.wire().into_bits()));
        }
    }

    /// The host read a log page without asking to retain the event: what belongs to the page is told, and its type may
    /// be told again.
    pub(crate) fn log_page_read(&mut self, page: LogPageId) {
        let record = &self.segment.admin;
        for event in Event::ALL.into_iter().filter(|event| event.wire().log_page() == page) {
            record.pending_events.fetch_and(!event.bit(), Ordering::Relaxed);
            record.masked_events.fetch_and(!event.mask(), Ordering::Relaxed);
        }
        if page == LogPageId::CHANGED_NAMESPACES {
            record.changed_namespaces.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Takes a held request back, for an abort. False if there is none with this identifier.
    pub(crate) fn take_event_request(&mut self, cid: CommandId) -> bool {
        let wanted = u32::from(cid.0) + 1;
        let requests = &self.segment.admin.event_requests;
        let found = requests.iter().find(|request| request.load(Ordering::Relaxed) == wanted);
        found.inspect(|request| request.store(0, Ordering::Relaxed)).is_some()
    }

    /// A reset: requests end without completion, events and masks are gone.
    pub(crate) fn forget_events(&mut self) {
        let record = &self.segment.admin;
        record.event_requests.iter().for_each(|request| request.store(0, Ordering::Relaxed));
        record.changed_namespaces.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        for word in [&record.event_configuration, &record.masked_events, &record.pending_events] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The request that waits in the lowest place.
fn take_request(record: &AdminRecord) -> Option<CommandId> {
    let held = record.event_requests.iter().find(|request| request.load(Ordering::Relaxed) != 0)?;
    let cid = held.swap(0, Ordering::Relaxed).wrapping_sub(1);
    Some(CommandId(cid as u16))
}
