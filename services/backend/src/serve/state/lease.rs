//! Queue pairs of drives that workers have: asked of the device, ended before the memory that they reach goes. A channel
//! whose queue pair is not deleted yet counts as one with requests under way.

use super::{ChannelKey, Device, DeviceKey, Owner, Served, State};
use bdev::channel::AnyChannel;
use bdev::error::{Error, ErrorKind};
use bdev::nvme::{LeaseAnswer, NvmeDevice};
use ipc::guest_memory::{Region, RegionId};
use std::collections::HashMap;
use std::sync::Arc;

/// What a channel has besides its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    None,
    /// A queue pair, or one that was asked for.
    Held,
    /// The queue pair is being deleted.
    Ending,
}

impl Served {
    /// Whether the drive may still do something of its queue pair.
    pub(super) fn has_lease(&self, devices: &HashMap<DeviceKey, Device>) -> bool {
        self.lease != Lease::None
            && matches!(
                devices.get(&self.device).map(|device| &device.channel),
                Some(AnyChannel::Nvme(drive)) if drive.has_lease(self.key)
            )
    }
}

impl State {
    /// Has the device make a queue pair for a channel's worker.
    pub(super) fn lease(&mut self, channel: ChannelKey, holder: i32, answer: LeaseAnswer) {
        let mut all = self.channels.iter_mut().flatten();
        let served = all.find(|served| served.key == channel && served.closing.is_none());
        let Some(served) = served else {
            answer(Err(Error::new(ErrorKind::Gone, "the channel is closed")));
            return;
        };
        let Some(drive) = drive(&mut self.devices, served.device) else {
            answer(Err(Error::new(ErrorKind::Unsupported, "the device is no drive")));
            return;
        };
        served.lease = Lease::Held;
        drive.lease(channel, holder, answer);
        for (id, region) in self.memory.get(&served.owner).iter().flat_map(|table| table.iter()) {
            drive.share(channel, id, region);
        }
    }

    /// Ends the leases of channels that are being closed.
    pub(super) fn end_leases(&mut self) {
        for served in self.channels.iter_mut().flatten() {
            if served.closing.is_some() {
                served.end_lease(&mut self.devices);
            }
        }
    }

    /// Ends the leases of a device that goes.
    pub(super) fn end_leases_of(&mut self, device: DeviceKey) {
        for served in self.channels.iter_mut().flatten().filter(|served| served.device == device) {
            served.end_lease(&mut self.devices);
        }
    }

    /// Tells workers that have rings for want of a queue pair of this device that one may be had now.
    pub(super) fn supersede_rings(&mut self) {
        for (&key, device) in &mut self.devices {
            let AnyChannel::Nvme(drive) = &mut device.channel else { continue };
            if !drive.take_openings() {
                continue;
            }
            let refused = |served: &&Served| {
                served.device == key && served.lease == Lease::Held && !drive.has_lease(served.key)
            };
            self.channels.iter().flatten().filter(refused).for_each(|served| {
                served.server.supersede();
            });
        }
    }

    /// Memory came: holders of leases learn where the drive reaches it.
    pub(super) fn share(&mut self, owner: Owner, id: RegionId, region: &Arc<Region>) {
        for served in self.channels.iter().flatten() {
            if served.owner == owner
                && served.lease == Lease::Held
                && let Some(drive) = drive(&mut self.devices, served.device)
            {
                drive.share(served.key, id, region);
            }
        }
    }

    /// Memory goes: its worker has nothing outstanding there.
    pub(super) fn take_back(&mut self, owner: Owner, id: RegionId) {
        for served in self.channels.iter().flatten() {
            if served.owner == owner
                && served.lease == Lease::Held
                && let Some(drive) = drive(&mut self.devices, served.device)
            {
                drive.take_back(served.key, id);
            }
        }
    }
}

impl Served {
    fn end_lease(&mut self, devices: &mut HashMap<DeviceKey, Device>) {
        if self.lease == Lease::Held {
            self.lease = Lease::Ending;
            if let Some(drive) = drive(devices, self.device) {
                drive.end_lease(self.key);
            }
        }
    }
}

fn drive(devices: &mut HashMap<DeviceKey, Device>, key: DeviceKey) -> Option<&mut NvmeDevice> {
    match devices.get_mut(&key).map(|device| &mut device.channel) {
        Some(AnyChannel::Nvme(drive)) => Some(drive),
        _ => None,
    }
}
