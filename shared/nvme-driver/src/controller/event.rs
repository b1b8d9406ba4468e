//! Asynchronous events. NVMe Base 2.0c 5.2.

use std::time::{Duration, Instant};

use nvme_spec::Nsid;
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::identify::list::NamespaceList;
use nvme_spec::log_page::LogPageId;
use zerocopy::{FromZeros, IntoBytes};

use super::Controller;
use crate::error::Error;

/// How often a wait for an event looks.
const INTERVAL: Duration = Duration::from_millis(5);
/// Bytes of an event's log page that are read to clear it, where its contents do not matter here.
const CLEAR_BYTES: usize = 512;

/// Something that the controller told by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it is.
    pub event: AsyncEvent,
    /// Of [`AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED`] the namespaces concerned; [`Nsid::BROADCAST`]: too many to list.
    pub namespaces: Vec<Nsid>,
}

impl Controller {
    /// The next event, if one comes within `timeout`. Its log page is read, so that the controller reports the next of
    /// its kind.
    ///
    /// # Errors
    /// [`Error`].
    pub fn next_event(&self, timeout: Duration) -> Result<Option<Event>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let event = self.inner.admin().take_event()?;
            if let Some(event) = event {
                let namespaces = self.clear_event(event)?;
                return Ok(Some(Event { event, namespaces }));
            }
            if self.inner.check_alive() {
                return Err(Error::Gone);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(left.min(INTERVAL));
        }
    }

    fn clear_event(&self, event: AsyncEvent) -> Result<Vec<Nsid>, Error> {
        let page = event.log_page();
        let result = if page == LogPageId::CHANGED_NAMESPACES {
            let mut list = NamespaceList::new_zeroed();
            self.log_page(page, Nsid::BROADCAST, list.as_mut_bytes())
                .map(|()| list.iter().collect())
        } else if page == LogPageId::SUPPORTED_LOG_PAGES {
            Ok(Vec::new())
        } else {
            self.log_page(page, Nsid::BROADCAST, &mut [0; CLEAR_BYTES]).map(|()| Vec::new())
        };
        match result {
            // A page that the controller does not have clears nothing.
            Err(Error::Command { .. }) => Ok(Vec::new()),
            result => result,
        }
    }
}
