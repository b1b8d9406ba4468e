//! Leases as the backend's engine sees them: where each holder finds the client's memory, and the gate that keeps its
//! writes out while a fused pair runs.
//!
//! The gate: the engine raises `exclusive` in every lease and fences; a holder raises `writes` and fences before its first
//! write, then looks at `exclusive`. So either sees the other. A holder that finds `exclusive` raised sends its writes by
//! the ring, where the engine has them wait; the pair begins when no `writes` is raised.

use super::control::Ask;
use super::memory::{Memory, Place, key};
use ipc::guest_memory::{Region, RegionId};
use ipc::layout::drive_lease::{DriveLeaseLayout, DriveRegion, region_place};
use ipc::segment::Segment;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A lease.
struct Gate {
    id: u64,
    /// `None` until it is granted.
    segment: Option<Arc<Segment<DriveLeaseLayout>>>,
    /// The memory that its requests may name.
    regions: Vec<(RegionId, Arc<Region>)>,
}

/// All leases of a device.
#[derive(Default)]
pub(super) struct Gates {
    gates: Vec<Gate>,
    exclusive: bool,
}

impl Gates {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.gates.is_empty()
    }

    /// A lease is asked for.
    pub fn expect(&mut self, id: u64) {
        self.gates.push(Gate { id, segment: None, regions: Vec::new() });
    }

    /// The lease is granted, and not handed over yet. False if nobody wants it any more.
    pub fn add(
        &mut self,
        id: u64,
        segment: Arc<Segment<DriveLeaseLayout>>,
        memory: &mut Memory,
        outbox: &mut VecDeque<Ask>,
    ) -> bool {
        let Some(gate) = self.gates.iter_mut().find(|gate| gate.id == id) else { return false };
        segment.lender.exclusive.store(u32::from(self.exclusive), Ordering::Release);
        gate.segment = Some(segment);
        gate.place(memory, outbox);
        true
    }

    /// The holder names no memory any more; its writes may still be under way.
    pub fn close(&mut self, id: u64) {
        if let Some(gate) = self.gates.iter_mut().find(|gate| gate.id == id) {
            gate.regions.clear();
        }
    }

    /// The drive does nothing of the lease any more.
    pub fn remove(&mut self, id: u64) {
        self.gates.retain(|gate| gate.id != id);
    }

    /// Whether there is a lease of this name, or one is asked for.
    pub fn has(&self, id: u64) -> bool {
        self.gates.iter().any(|gate| gate.id == id)
    }

    /// All leases are over.
    pub fn clear(&mut self) {
        self.gates.clear();
    }

    /// Lets a lease's holder know where a region is, as soon as that is known.
    pub fn share(
        &mut self,
        id: u64,
        region: (RegionId, &Arc<Region>),
        memory: &mut Memory,
        outbox: &mut VecDeque<Ask>,
    ) {
        if let Some(gate) = self.gates.iter_mut().find(|gate| gate.id == id) {
            gate.take_back(region.0);
            gate.regions.push((region.0, Arc::clone(region.1)));
            gate.place(memory, outbox);
        }
    }

    /// The holder has nothing outstanding that names the region, and does not name it again.
    pub fn take_back(&mut self, id: u64, region: RegionId) {
        if let Some(gate) = self.gates.iter_mut().find(|gate| gate.id == id) {
            gate.take_back(region);
        }
    }

    /// More is known of where regions are.
    pub fn place(&mut self, memory: &mut Memory, outbox: &mut VecDeque<Ask>) {
        for gate in &mut self.gates {
            gate.place(memory, outbox);
        }
    }

    /// Whether a region is some holder's to name.
    pub fn uses(&self, wanted: usize) -> bool {
        let mut regions = self.gates.iter().flat_map(|gate| &gate.regions);
        regions.any(|(_, region)| key(region) == wanted)
    }

    /// Keeps writes out, or lets them in again.
    pub fn set_exclusive(&mut self, exclusive: bool) {
        self.exclusive = exclusive;
        for segment in self.gates.iter().filter_map(|gate| gate.segment.as_ref()) {
            // Release: pairs with the holder's Acquire; what was written under the lock is there.
            segment.lender.exclusive.store(u32::from(exclusive), Ordering::Release);
        }
        if exclusive {
            // Pairs with the fence of a holder between its `writes` and its look at `exclusive`.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether a holder's writes are under way.
    pub fn writers_inside(&self) -> bool {
        let mut segments = self.gates.iter().filter_map(|gate| gate.segment.as_ref());
        // Acquire: pairs with the holder's Release, which follows its last completion.
        segments.any(|segment| segment.holder.writes.load(Ordering::Acquire) != 0)
    }
}

impl Gate {
    fn place(&mut self, memory: &mut Memory, outbox: &mut VecDeque<Ask>) {
        let Some(segment) = &self.segment else { return };
        for (id, region) in &self.regions {
            let Some(row) = segment.regions.get(id.0 as usize) else { continue };
            if row.place.load(Ordering::Relaxed) != region_place::UNKNOWN {
                continue;
            }
            let place = match memory.find(region, outbox) {
                Place::At(first) => first,
                Place::Beyond => region_place::BEYOND,
                Place::Coming => continue,
            };
            write(row, region, place);
        }
    }

    fn take_back(&mut self, id: RegionId) {
        self.regions.retain(|(other, _)| *other != id);
        if let Some(segment) = &self.segment
            && let Some(row) = segment.regions.get(id.0 as usize)
        {
            // Release: before whatever comes into the row next.
            row.place.store(region_place::UNKNOWN, Ordering::Release);
        }
    }
}

fn write(row: &DriveRegion, region: &Region, place: u64) {
    let identity = region.key();
    row.key[0].store(identity.device, Ordering::Release);
    row.key[1].store(identity.inode, Ordering::Release);
    // Release: whoever sees the place sees whose it is.
    row.place.store(place, Ordering::Release);
}

/// Where a lease's holder finds a region; [`Place::Coming`] if that is not known, or is another memory's.
pub(super) fn find(segment: &DriveLeaseLayout, id: RegionId, region: &Region) -> Place {
    let Some(row) = segment.regions.get(id.0 as usize) else { return Place::Coming };
    // Acquire, all: pair with the Releases of `write` and `take_back`; the same place before and after means that the
    // key is the place's.
    let place = row.place.load(Ordering::Acquire);
    let found = [row.key[0].load(Ordering::Acquire), row.key[1].load(Ordering::Acquire)];
    let identity = region.key();
    if found != [identity.device, identity.inode] || row.place.load(Ordering::Acquire) != place {
        return Place::Coming;
    }
    match place {
        region_place::UNKNOWN => Place::Coming,
        region_place::BEYOND => Place::Beyond,
        first => Place::At(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::guest_memory::RegionPolicy;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn region() -> Arc<Region> {
        let fd = memfd_create(c"client", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, 4096).unwrap();
        Region::map(fd, 4096, &RegionPolicy::default()).unwrap()
    }

    #[test]
    fn a_holder_finds_memory_once_it_is_registered_and_until_it_is_taken_back() {
        let segment = Arc::new(Segment::<DriveLeaseLayout>::create("lease", 1).unwrap());
        let (mut gates, mut memory, mut outbox) =
            (Gates::default(), Memory::default(), VecDeque::new());
        let (mine, other, id) = (region(), region(), RegionId(3));
        gates.expect(7);
        gates.share(7, (id, &mine), &mut memory, &mut outbox);
        assert!(gates.add(7, Arc::clone(&segment), &mut memory, &mut outbox));
        assert_eq!(find(&segment, id, &mine), Place::Coming);
        assert_eq!(outbox.len(), 1, "it is asked for");
        memory.told(key(&mine), None, &mut outbox);
        gates.place(&mut memory, &mut outbox);
        assert_eq!(find(&segment, id, &mine), Place::Beyond);
        assert_eq!(find(&segment, id, &other), Place::Coming, "another memory of the same id");
        assert!(gates.uses(key(&mine)));
        gates.take_back(7, id);
        assert_eq!(find(&segment, id, &mine), Place::Coming);
        assert!(!gates.uses(key(&mine)));
        assert!(!gates.add(8, segment, &mut memory, &mut outbox), "nobody waits for it");
    }

    #[test]
    fn writes_of_holders_hold_up_a_pair_and_new_leases_know_of_it() {
        let new = || Arc::new(Segment::<DriveLeaseLayout>::create("lease", 1).unwrap());
        let (first, second) = (new(), new());
        let (mut gates, mut memory, mut outbox) =
            (Gates::default(), Memory::default(), VecDeque::new());
        gates.expect(1);
        gates.add(1, Arc::clone(&first), &mut memory, &mut outbox);
        first.holder.writes.store(1, Ordering::Relaxed);
        gates.set_exclusive(true);
        assert!(gates.writers_inside());
        assert_eq!(first.lender.exclusive.load(Ordering::Relaxed), 1);
        gates.expect(2);
        gates.add(2, Arc::clone(&second), &mut memory, &mut outbox);
        assert_eq!(second.lender.exclusive.load(Ordering::Relaxed), 1);
        first.holder.writes.store(0, Ordering::Relaxed);
        assert!(!gates.writers_inside());
        gates.set_exclusive(false);
        assert_eq!(second.lender.exclusive.load(Ordering::Relaxed), 0);
    }
}
