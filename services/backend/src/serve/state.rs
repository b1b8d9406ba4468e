//! Devices, rings and guest memory of the serve loop.

mod drain;
mod lease;
#[cfg(test)]
mod tests;

use super::command::{ChannelKey, Command, DeviceKey, Owner, Resize};
use bdev::channel::{AnyChannel, Channel, Geometry, Submitted};
use bdev::error::{Error, ErrorKind};
use bdev::request::{Op, Outcome, Request};
use bdev::ring::server::RingServer;
use drain::Drain;
use ipc::guest_memory::{Region, RegionId, RegionTable};
use lease::Lease;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::warn;

/// A pending request's tag on its device: place of the channel in the high 24 bits, slot in the low 8.
const SLOT_BITS: u32 = 8;
/// Places of channels; the last is for errands.
const MAX_PLACES: usize = 1 << 16;
/// The place that stands for errands.
const ERRAND: u32 = MAX_PLACES as u32;
/// Most errands of a device under way at a time: what tells them apart has so many bits.
const MAX_ERRANDS: usize = 1 << SLOT_BITS;
/// Most controllers of one connection that have memory here: as many as a worker serves.
const MAX_OWNERS: usize = 1024;

/// What the loop serves.
#[derive(Default)]
pub struct State {
    devices: HashMap<DeviceKey, Device>,
    channels: Vec<Option<Served>>,
    memory: HashMap<Owner, RegionTable>,
    /// Regions that are out of their table but still used by requests under way.
    leaving: Vec<Leaving>,
    /// Rings that wait for their predecessors.
    arriving: Vec<(Served, oneshot::Sender<()>)>,
    /// Who waits for the end of connections' requests.
    drains: Vec<Drain>,
}

struct Leaving {
    owner: Owner,
    id: RegionId,
    region: Arc<Region>,
    /// Who asked for it, again and again maybe.
    waiting: Vec<oneshot::Sender<Option<Arc<Region>>>>,
}

struct Device {
    channel: AnyChannel,
    /// Work for the control side under way, by the low bits of its tag.
    errands: Vec<(u32, oneshot::Sender<Outcome>)>,
    next_errand: u32,
    /// Set when the device is to go.
    removed: Option<oneshot::Sender<()>>,
}

struct Served {
    key: ChannelKey,
    owner: Owner,
    device: DeviceKey,
    server: RingServer,
    /// The queue pair of the drive that goes with it.
    lease: Lease,
    /// Set when the channel is to go, with whoever waits for that.
    closing: Option<Vec<oneshot::Sender<()>>>,
}

/// Stands in for a device that was removed.
struct Absent;

impl Channel for Absent {
    fn geometry(&self) -> Geometry {
        Geometry { size: 0, read_only: true }
    }

    fn submit(&mut self, _request: &Request<'_>, _memory: &RegionTable, _now: u64) -> Submitted {
        Submitted::Done(Err(ErrorKind::Gone))
    }

    fn poll(&mut self, _now: u64, _complete: &mut impl FnMut(u32, Outcome)) -> usize {
        0
    }

    fn outstanding(&self) -> usize {
        0
    }
}

impl State {
    /// Takes what the rings have and reports what the devices have ended; how much that was.
    pub fn turn(&mut self, now: u64) -> usize {
        let mut work = 0;
        let empty = RegionTable::new;
        for (place, served) in self.channels.iter_mut().enumerate() {
            let Some(served) = served.as_mut().filter(|served| served.closing.is_none()) else {
                continue;
            };
            let memory = self.memory.entry(served.owner).or_insert_with(empty);
            let tags = (place as u32) << SLOT_BITS;
            let device = self.devices.get_mut(&served.device);
            work += match device.filter(|device| device.removed.is_none()) {
                Some(device) => served.server.serve(&mut device.channel, memory, now, tags),
                None => served.server.serve(&mut Absent, memory, now, tags),
            };
        }
        let channels = &mut self.channels;
        for device in self.devices.values_mut() {
            device.channel.publish();
            let errands = &mut device.errands;
            work += device.channel.poll(now, &mut |tag, outcome| {
                let (place, slot) = (tag >> SLOT_BITS, tag & ((1 << SLOT_BITS) - 1));
                if place == ERRAND {
                    let found = errands.iter().position(|&(number, _)| number == slot);
                    if let Some(index) = found {
                        errands.swap_remove(index).1.send(outcome).ok();
                    }
                } else if let Some(Some(served)) = channels.get_mut(place as usize) {
                    served.server.complete(slot as usize, outcome);
                }
            });
        }
        for served in self.channels.iter_mut().flatten() {
            served.server.publish();
            if served.server.is_gone() && served.closing.is_none() {
                warn!(channel = served.key, "ring is corrupt or its worker cannot be woken");
                served.close(None);
            }
        }
        self.supersede_rings();
        work + self.settle()
    }

    /// The time at which a device wants to be looked at.
    pub fn deadline(&self) -> Option<u64> {
        self.devices.values().filter_map(|device| device.channel.deadline()).min()
    }

    /// Raises every ring's flag; `false` if one has something already.
    pub fn park(&mut self) -> bool {
        let mut rings = self.channels.iter_mut().flatten();
        rings.all(|served| served.closing.is_some() || served.server.park())
            && self.devices.values_mut().all(|device| device.channel.park())
    }

    /// Takes every flag down.
    pub fn unpark(&mut self) {
        for served in self.channels.iter_mut().flatten() {
            served.server.unpark();
        }
        for device in self.devices.values_mut() {
            device.channel.unpark();
        }
    }

    /// The devices' events.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.devices.values().filter_map(|device| device.channel.event())
    }

    /// Carries a command out.
    pub fn command(&mut self, command: Command) {
        match command {
            Command::AddDevice { device, channel } => {
                let (errands, next_errand, removed) = (Vec::new(), 0, None);
                let entry = Device { channel: *channel, errands, next_errand, removed };
                self.devices.insert(device, entry);
            }
            Command::RemoveDevice { device, done } => {
                if let Some(device) = self.devices.get_mut(&device) {
                    device.removed = Some(done);
                }
                self.end_leases_of(device);
            }
            Command::Resize { device, resize, done } => {
                done.send(self.resize(device, resize)).ok();
            }
            Command::Maintain { device, op, done } => self.maintain(device, op, done),
            Command::AddChannel { channel, owner, device, server, done } => {
                let (key, closing) = (channel, None);
                let lease = Lease::None;
                let served = Served { key, owner, device, server: *server, lease, closing };
                self.arriving.push((served, done));
            }
            Command::Lease { channel, holder, answer } => self.lease(channel, holder, answer),
            Command::CloseChannel { channel, done } => self.close_channel(channel, done),
            Command::AddRegion { owner, id, region, done } => {
                done.send(self.add_region(owner, id, region)).ok();
            }
            Command::RemoveRegion { owner, id, done } => self.remove_region(owner, id, done),
            Command::Disconnect { connection } => {
                self.arriving.retain(|(served, _)| served.owner.connection != connection);
                let all = self.channels.iter_mut().flatten();
                for served in all.filter(|served| served.owner.connection == connection) {
                    served.close(None);
                }
                // Before memory is let go of: the drive is done with it then.
                self.end_leases();
                let devices = &mut self.devices;
                self.memory.retain(|owner, memory| {
                    let stays = owner.connection != connection;
                    if !stays {
                        memory.iter().for_each(|(_, region)| forget(devices, region));
                    }
                    stays
                });
            }
            Command::AwaitDrained { connections, controller, done } => {
                self.drains.push(Drain { connections, controller, done });
            }
            Command::Ping { done } => drop(done.send(())),
            // The loop has ended before it comes here.
            Command::Stop => {}
        }
    }

    fn close_channel(&mut self, channel: ChannelKey, done: oneshot::Sender<()>) {
        // Whoever asked for one that still waits has given it up.
        self.arriving.retain(|(served, _)| served.key != channel);
        let mut all = self.channels.iter_mut().flatten();
        match all.find(|served| served.key == channel) {
            Some(served) => served.close(Some(done)),
            None => drop(done.send(())),
        }
        self.end_leases();
    }

    fn add_region(&mut self, owner: Owner, id: RegionId, region: Arc<Region>) -> bool {
        if !self.memory.contains_key(&owner) {
            let of_connection = |other: &&Owner| other.connection == owner.connection;
            if self.memory.keys().filter(of_connection).count() >= MAX_OWNERS {
                return false;
            }
        }
        self.share(owner, id, &region);
        match self.memory.entry(owner).or_default().insert(id, region) {
            Ok(old) => {
                old.iter().for_each(|old| forget(&mut self.devices, old));
                true
            }
            Err(_) => false,
        }
    }

    fn remove_region(
        &mut self,
        owner: Owner,
        id: RegionId,
        done: oneshot::Sender<Option<Arc<Region>>>,
    ) {
        let removed = self.memory.get_mut(&owner).and_then(|memory| memory.remove(id));
        if let Some(region) = removed {
            self.take_back(owner, id);
            if self.memory.get(&owner).is_some_and(|memory| memory.iter().next().is_none()) {
                self.memory.remove(&owner);
            }
            forget(&mut self.devices, &region);
            self.leaving.push(Leaving { owner, id, region, waiting: vec![done] });
            return;
        }
        // Out of its table before, and maybe in use still: the answer says that it is not.
        match self.leaving.iter_mut().rev().find(|old| old.owner == owner && old.id == id) {
            Some(leaving) => leaving.waiting.push(done),
            None => drop(done.send(None)),
        }
    }

    /// Ends what has drained: channels, devices, regions; and lets in what waited for that.
    fn settle(&mut self) -> usize {
        let mut work = 0;
        let devices = &self.devices;
        for place in &mut self.channels {
            let drained = |served: &Served| {
                served.closing.is_some()
                    && served.server.pending() == 0
                    && !served.has_lease(devices)
            };
            if let Some(served) = place.take_if(|served| drained(served)) {
                for waiter in served.closing.into_iter().flatten() {
                    waiter.send(()).ok();
                }
                work += 1;
            }
        }
        let removed: Vec<DeviceKey> = self
            .devices
            .iter()
            .filter(|(_, device)| device.removed.is_some() && device.channel.outstanding() == 0)
            .map(|(&key, _)| key)
            .collect();
        for key in removed {
            if let Some(Device { channel, removed: Some(done), .. }) = self.devices.remove(&key) {
                close(channel, done);
                work += 1;
            }
        }
        let mut index = 0;
        while index < self.leaving.len() {
            if Arc::strong_count(&self.leaving[index].region) == 1 {
                self.leaving.swap_remove(index).end();
                work += 1;
            } else {
                index += 1;
            }
        }
        work + self.let_in() + self.end_drains()
    }

    fn let_in(&mut self) -> usize {
        let waiting = std::mem::take(&mut self.arriving);
        let before = waiting.len();
        for (served, done) in waiting {
            if done.is_closed() {
                // Given up; the close that follows finds nothing.
                continue;
            }
            let controller = served.owner.controller;
            let draining =
                |other: &Served| other.owner.controller == controller && other.closing.is_some();
            if self.channels.iter().flatten().any(draining) {
                self.arriving.push((served, done));
            } else if self.place(served) {
                done.send(()).ok();
            }
        }
        before - self.arriving.len()
    }

    fn place(&mut self, served: Served) -> bool {
        if let Some(place) = self.channels.iter_mut().find(|place| place.is_none()) {
            *place = Some(served);
            return true;
        }
        let room = self.channels.len() < MAX_PLACES;
        if room {
            self.channels.push(Some(served));
        }
        room
    }

    fn resize(&mut self, device: DeviceKey, resize: Resize) -> Result<u64, Error> {
        let missing = || Error::new(ErrorKind::Gone, "device is not served");
        let channel = &mut self.devices.get_mut(&device).ok_or_else(missing)?.channel;
        match (channel, resize) {
            (AnyChannel::Null(null), Resize::Size(size)) => {
                null.resize(size);
                Ok(size)
            }
            (AnyChannel::Malloc(malloc), Resize::Memory(memory)) => {
                let size = memory.size();
                malloc.replace(memory);
                Ok(size)
            }
            (AnyChannel::File(file), Resize::Size(size)) => file.resize(size),
            // It has the size that it has.
            (AnyChannel::Nvme(drive), Resize::Size(_)) => Ok(drive.geometry().size),
            _ => Err(Error::new(ErrorKind::Unsupported, "device cannot be resized so")),
        }
    }

    fn maintain(&mut self, device: DeviceKey, op: Op, done: oneshot::Sender<Outcome>) {
        let device = self.devices.get_mut(&device).filter(|device| device.removed.is_none());
        let Some(device) = device else {
            done.send(Err(ErrorKind::Gone)).ok();
            return;
        };
        if device.errands.len() >= MAX_ERRANDS {
            done.send(Err(ErrorKind::Busy)).ok();
            return;
        }
        let number = device.errand_number();
        let size = device.channel.geometry().size;
        let tag = ERRAND << SLOT_BITS | number;
        let request = Request::new(op, 0, size, &[], tag);
        match device.channel.submit(&request, &RegionTable::new(), 0) {
            Submitted::Done(outcome) => drop(done.send(outcome)),
            Submitted::Pending => device.errands.push((number, done)),
            Submitted::Full => drop(done.send(Err(ErrorKind::Busy))),
        }
    }
}

/// Has every device let go of memory that is to be unmapped.
fn forget(devices: &mut HashMap<DeviceKey, Device>, region: &Arc<Region>) {
    for device in devices.values_mut() {
        device.channel.forget(region);
    }
}

/// Closes a device that nothing is under way of.
fn close(channel: AnyChannel, done: oneshot::Sender<()>) {
    let close = move || {
        drop(channel);
        done.send(()).ok();
    };
    // A drive is shut down first, which others do not wait for. Without a thread it is closed all the same.
    std::thread::Builder::new().name("close".to_owned()).spawn(close).ok();
}

impl Device {
    /// A number that no errand under way has; there are fewer than [`MAX_ERRANDS`] of them.
    fn errand_number(&mut self) -> u32 {
        loop {
            let number = self.next_errand % MAX_ERRANDS as u32;
            self.next_errand = self.next_errand.wrapping_add(1);
            if self.errands.iter().all(|&(other, _)| other != number) {
                return number;
            }
        }
    }
}

impl Leaving {
    /// Nothing uses it any more. The first who still waits gets it, to drop it elsewhere.
    fn end(self) {
        let mut region = Some(self.region);
        for waiter in self.waiting {
            if let Err(back) = waiter.send(region.take()) {
                region = back;
            }
        }
    }
}

impl Served {
    fn close(&mut self, done: Option<oneshot::Sender<()>>) {
        self.server.close();
        self.closing.get_or_insert_default().extend(done);
    }
}
