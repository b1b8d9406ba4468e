//! Limits and pauses.

use super::World;
use ipc::segment::Segment;
use nvme_spec::{ControllerId, Nsid};
use vireo_frontend::limits::SharedLimits;
use vireo_proto::handoff::Limits;
use vireo_worker::controller::Controller;

/// Has a worker's controller keep to its limits.
pub(super) fn keep_to(limits: &SharedLimits, id: ControllerId, controller: &mut Controller) {
    if let Some((segment, row)) = limits.seat(id) {
        controller.limit_by(Segment::open(segment).expect("map limits"), row);
    }
}

impl World {
    /// Limits what all controllers together do on a namespace, or nothing any more.
    pub fn limit_namespace(&mut self, nsid: Nsid, limits: Option<&Limits>) {
        self.limits.set_namespace(nsid, limits).expect("limits");
        self.tell_limits();
    }

    /// Limits what a controller does, or nothing any more.
    pub fn limit_controller(&mut self, index: usize, limits: Option<&Limits>) {
        let id = self.ends[index].function.controller().id();
        self.limits.set_controller(id, limits).expect("limits");
        self.tell_limits();
    }

    /// Pauses a controller, or lets it go on.
    pub fn set_paused(&mut self, index: usize, paused: bool) {
        self.ends[index].function.set_paused(paused);
    }

    /// Pauses a namespace.
    pub fn pause_namespace(&mut self, nsid: Nsid) {
        self.lock().pause_namespace(nsid).expect("a namespace");
        self.changed(None);
    }

    /// Lets the first controller and a namespace go on.
    pub fn go_on(&mut self, nsid: Nsid) {
        self.set_paused(0, false);
        self.lock().resume_namespace(nsid);
        self.changed(None);
    }

    fn tell_limits(&mut self) {
        let connected = self.ends.iter_mut().filter(|end| end.connected);
        connected.for_each(|end| end.function.limits_changed());
    }
}
