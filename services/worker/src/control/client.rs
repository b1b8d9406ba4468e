//! What a controller's client brings: memory, and the eventfds of its vectors.

use super::{Control, not_attached};
use crate::controller::Change;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId, RegionPolicy};
use ipc::layout::MAX_VECTORS;
use nvme::range_list::BIT_BUCKET;
use service::control::{Answer, Incoming};
use std::sync::Arc;
use vireo_proto::handoff::{AddRegion, SetVectors};
use vireo_proto::{Failure, id_from_bytes};

impl Control {
    pub(super) async fn add_region(
        &self,
        incoming: &mut Incoming,
        add: AddRegion,
    ) -> Result<Answer, Failure> {
        let id = id_from_bytes(&add.controller_id)?;
        let [fd] = incoming.take_fds()?;
        let region = RegionId(add.region_id);
        if region == BIT_BUCKET {
            return Err(Failure::invalid(format!("region id {} is reserved", region.0)));
        }
        let memory = Region::map(fd, add.size, &RegionPolicy::default())
            .map_err(|error| Failure::internal(&error))?;
        // Without it the first access to each page is slower, that is all.
        memory.prefault().ok();
        let backends = {
            let mut controllers = self.controllers();
            let attached = controllers.get_mut(&id).ok_or_else(|| not_attached(id))?;
            attached.regions.insert(region, Arc::clone(&memory));
            attached.shares()
        };
        // Backends first: a request that names the region finds it there.
        for share in backends {
            share.update(self, id).await;
        }
        self.change(id, Change::AddRegion(region, memory)).await?;
        Ok(Answer::done())
    }

    pub(super) async fn remove_region(
        &self,
        id: u128,
        region: RegionId,
    ) -> Result<Answer, Failure> {
        self.change(id, Change::RemoveRegion(region)).await?;
        let backends = {
            let mut controllers = self.controllers();
            let attached = controllers.get_mut(&id).ok_or_else(|| not_attached(id))?;
            attached.regions.remove(&region);
            attached.shares()
        };
        for share in backends {
            share.update(self, id).await;
        }
        Ok(Answer::done())
    }

    pub(super) async fn set_vectors(
        &self,
        incoming: &mut Incoming,
        set: SetVectors,
    ) -> Result<Answer, Failure> {
        let id = id_from_bytes(&set.controller_id)?;
        let start = set.start as usize;
        let end = start.checked_add(set.present.len()).filter(|&end| end <= MAX_VECTORS);
        let wanted = set.present.iter().filter(|&&present| present).count();
        let fds = std::mem::take(&mut incoming.fds);
        if end.is_none() || wanted != fds.len() {
            let (count, got) = (set.present.len(), fds.len());
            return Err(Failure::invalid(format!(
                "{got} descriptors for {wanted} of {count} vectors from {start}"
            )));
        }
        let mut fds = fds.into_iter();
        let events = set
            .present
            .iter()
            .map(|&present| if present { fds.next() } else { None })
            .map(|fd| fd.map(EventFd::from_client).transpose())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Failure::internal(&error))?;
        self.change(id, Change::SetVectors(start, events)).await?;
        Ok(Answer::done())
    }
}
