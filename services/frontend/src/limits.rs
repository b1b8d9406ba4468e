//! Limits of a subsystem's namespaces and controllers, in the segment in which its workers find them.

use ipc::layout::limits::{LimitRow, LimitsLayout, RATES};
use ipc::segment::Segment;
use nvme_spec::{ControllerId, Nsid};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use tokio::sync::watch;
use vireo_proto::handoff;

/// The limits of one subsystem.
pub struct SharedLimits {
    /// None if there was no descriptor or no memory for it.
    segment: Option<Segment<LimitsLayout>>,
    changes: watch::Sender<u64>,
}

impl SharedLimits {
    /// No limits yet. Without a descriptor for the segment none can be set.
    pub fn new(subsystem: &str) -> Self {
        let segment = Segment::create("vireo-limits", 0);
        let segment = segment.inspect_err(|error| {
            let error = crate::line(error);
            tracing::error!(subsystem, error, "no limits can be set");
        });
        Self { segment: segment.ok(), changes: watch::Sender::new(0) }
    }

    /// Sets what all controllers together may do on a namespace.
    ///
    /// # Errors
    /// One line: it cannot be limited.
    pub fn set_namespace(
        &self,
        nsid: Nsid,
        wanted: Option<&handoff::Limits>,
    ) -> Result<(), String> {
        let index = (nsid.0 as usize).wrapping_sub(1);
        self.set(wanted, |layout| layout.namespaces.get(index))
    }

    /// Sets what a controller may do.
    ///
    /// # Errors
    /// One line: it cannot be limited.
    pub fn set_controller(
        &self,
        id: ControllerId,
        wanted: Option<&handoff::Limits>,
    ) -> Result<(), String> {
        self.set(wanted, |layout| layout.controllers.get(row(id) as usize))
    }

    fn set(
        &self,
        wanted: Option<&handoff::Limits>,
        find: impl FnOnce(&LimitsLayout) -> Option<&LimitRow>,
    ) -> Result<(), String> {
        let rates = wanted.map_or([0; RATES], rates);
        let row = self.segment.as_deref().and_then(|layout| Some((layout, find(layout)?)));
        match row {
            Some((layout, row)) => {
                if row.set(rates) {
                    // Release: pairs with the workers' Acquire; the row is written.
                    layout.generation.0.fetch_add(1, Ordering::Release);
                    self.changes.send_modify(|number| *number += 1);
                }
                Ok(())
            }
            None if rates == [0; RATES] => Ok(()),
            None => Err("cannot be limited: there was no descriptor for its limits when its \
                         subsystem was made; raise the limit of open files (RLIMIT_NOFILE) and \
                         restart the frontend"
                .to_owned()),
        }
    }

    /// The segment's descriptor, for a worker, with the controller's row.
    pub fn seat(&self, id: ControllerId) -> Option<(OwnedFd, u32)> {
        let descriptor = self.segment.as_ref()?.fd().try_clone_to_owned();
        // Without a descriptor it is served, without limits.
        let descriptor =
            descriptor.inspect_err(|error| tracing::error!(%error, "limits not shared"));
        Some((descriptor.ok()?, row(id)))
    }

    /// Changes, by number.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Row of a controller.
fn row(id: ControllerId) -> u32 {
    u32::from(id.0).wrapping_sub(1)
}

/// In the order of [`ipc::layout::limits::Rate`].
fn rates(limits: &handoff::Limits) -> [u64; RATES] {
    let handoff::Limits { iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth } =
        *limits;
    [iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_is_announced() {
        let limits = SharedLimits::new("s0");
        let changes = limits.changes();
        let wanted = handoff::Limits { iops: 5, write_bandwidth: 7, ..Default::default() };
        limits.set_namespace(Nsid(2), Some(&wanted)).unwrap();
        limits.set_controller(ControllerId(1), None).unwrap();
        assert_eq!(*changes.borrow(), 1);
        limits.set_namespace(Nsid(2), Some(&wanted)).unwrap();
        assert_eq!(*changes.borrow(), 1);
        let (descriptor, row) = limits.seat(ControllerId(3)).unwrap();
        let seen = Segment::<LimitsLayout>::open(descriptor).unwrap();
        assert_eq!((row, seen.namespaces[1].load().1), (2, [5, 0, 0, 0, 0, 7]));
        limits.set_namespace(Nsid(2), None).unwrap();
        assert_eq!((*changes.borrow(), seen.namespaces[1].load().1), (2, [0; RATES]));
        assert!(limits.set_namespace(Nsid(0), Some(&wanted)).is_err(), "there is none");
    }
}
