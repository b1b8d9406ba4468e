//! Limits and pauses.

use super::World;
use nvme_spec::Nsid;
use vireo_proto::handoff::Limits;

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

    fn tell_limits(&mut self) {
        let connected = self.ends.iter_mut().filter(|end| end.connected);
        connected.for_each(|end| end.function.limits_changed());
    }
}
