//! Guest memory as the drive reaches it: each object whole, in one window of the controller's address space. On the hot
//! path: a lookup.
//!
//! Registering waits for the target or for pages to be pinned, so it is asked of the control thread, and requests wait.

use super::control::Ask;
use ipc::guest_memory::Region;
use nvme_driver::Registered;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its first byte's address.
    At(u64),
    /// Out of the drive's reach: data goes through a buffer.
    Beyond,
    /// Asked for.
    Coming,
}

#[derive(Debug)]
enum Known {
    Asked { region: Arc<Region>, leaving: bool },
    Registered { memory: Registered, first: u64, leaving: bool },
    Beyond { _region: Arc<Region>, leaving: bool },
}

/// What is registered, or asked for. Each entry holds its object, so that no other has its address meanwhile.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: HashMap<usize, Known>,
    /// The last one that was found: requests mostly name the same.
    last: Option<(usize, u64)>,
    /// Entries that are to go when nothing uses them.
    leaving: usize,
}

/// What tells an object from all others as long as an entry holds it.
pub(super) fn key(region: &Arc<Region>) -> usize {
    Arc::as_ptr(region).addr()
}

impl Memory {
    /// Where an object is. If that is not known yet, it is asked for.
    #[inline]
    pub fn find(&mut self, region: &Arc<Region>, outbox: &mut VecDeque<Ask>) -> Place {
        match self.last {
            Some((last, first)) if last == key(region) => Place::At(first),
            _ => self.look_up(region, outbox),
        }
    }

    fn look_up(&mut self, region: &Arc<Region>, outbox: &mut VecDeque<Ask>) -> Place {
        match self.known.get(&key(region)) {
            Some(&Known::Registered { first, .. }) => {
                self.last = Some((key(region), first));
                Place::At(first)
            }
            Some(Known::Beyond { .. }) => Place::Beyond,
            Some(Known::Asked { .. }) => Place::Coming,
            None => {
                outbox.push_back(Ask::Register(Arc::clone(region)));
                let asked = Known::Asked { region: Arc::clone(region), leaving: false };
                self.known.insert(key(region), asked);
                Place::Coming
            }
        }
    }

    /// Whether it is known where an object is.
    #[inline]
    pub fn knows(&self, region: &Arc<Region>) -> bool {
        let key = key(region);
        self.last.is_some_and(|(last, _)| last == key)
            || matches!(self.known.get(&key), Some(Known::Registered { .. } | Known::Beyond { .. }))
    }

    /// Another process registered an object, or could not.
    pub fn learn(&mut self, region: &Arc<Region>, place: Place) {
        let known = match place {
            Place::At(first) => {
                let memory = Registered::lent(Arc::clone(region), first);
                Known::Registered { memory, first, leaving: false }
            }
            Place::Beyond => Known::Beyond { _region: Arc::clone(region), leaving: false },
            Place::Coming => return,
        };
        self.known.insert(key(region), known);
    }

    /// The control thread's answer: registered from this address on, or out of reach.
    pub fn told(
        &mut self,
        key: usize,
        answer: Option<(Registered, u64)>,
        outbox: &mut VecDeque<Ask>,
    ) {
        let (region, leaving) = match self.known.remove(&key) {
            Some(Known::Asked { region, leaving }) => (region, leaving),
            // An answer of before the target was lost.
            other => {
                self.known.extend(other.map(|known| (key, known)));
                if let Some((memory, _)) = answer {
                    outbox.push_back(Ask::Discard(Box::new(memory)));
                }
                return;
            }
        };
        // Requests that waited for it still find it; it goes with the last of them.
        self.leaving += usize::from(leaving);
        let known = match answer {
            Some((memory, first)) => Known::Registered { memory, first, leaving },
            None => Known::Beyond { _region: region, leaving },
        };
        self.known.insert(key, known);
    }

    /// The object is to be let go of; `used`: a request of it is under way.
    pub fn forget(&mut self, region: &Arc<Region>, used: bool, outbox: &mut VecDeque<Ask>) {
        self.last = None;
        match self.known.get_mut(&key(region)) {
            None => {}
            Some(Known::Asked { leaving, .. }) => *leaving = true,
            Some(Known::Registered { leaving, .. }) if used => {
                self.leaving += usize::from(!*leaving);
                *leaving = true;
            }
            Some(Known::Registered { .. } | Known::Beyond { .. }) => {
                self.remove(key(region), outbox);
            }
        }
    }

    /// Whether an entry waits for its last request.
    #[inline]
    pub fn is_leaving(&self) -> bool {
        self.leaving > 0
    }

    /// Lets go of entries that wait for that and are not in use any more.
    pub fn settle(&mut self, used: impl Fn(usize) -> bool, outbox: &mut VecDeque<Ask>) {
        let leaves = |(&key, known): (&usize, &Known)| {
            let leaving = matches!(
                known,
                Known::Registered { leaving: true, .. } | Known::Beyond { leaving: true, .. }
            );
            (leaving && !used(key)).then_some(key)
        };
        let gone: Vec<usize> = self.known.iter().filter_map(leaves).collect();
        for key in gone {
            self.remove(key, outbox);
            self.leaving = self.leaving.saturating_sub(1);
            self.last = None;
        }
    }

    /// The target is lost: nothing is registered any more.
    pub fn clear(&mut self, outbox: &mut VecDeque<Ask>) {
        let keys: Vec<usize> = self.known.keys().copied().collect();
        for key in keys {
            self.remove(key, outbox);
        }
        (self.last, self.leaving) = (None, 0);
    }

    fn remove(&mut self, key: usize, outbox: &mut VecDeque<Ask>) {
        // Taking memory out of the drive's reach waits, and not here.
        if let Some(Known::Registered { memory, .. }) = self.known.remove(&key) {
            outbox.push_back(Ask::Discard(Box::new(memory)));
        }
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

    fn asked(outbox: &mut VecDeque<Ask>) -> usize {
        outbox.drain(..).filter(|ask| matches!(ask, Ask::Register(_))).count()
    }

    #[test]
    fn memory_is_asked_for_once_and_held_until_it_is_forgotten() {
        let (mut memory, mut outbox, region) = (Memory::default(), VecDeque::new(), region());
        assert_eq!(memory.find(&region, &mut outbox), Place::Coming);
        assert_eq!(memory.find(&region, &mut outbox), Place::Coming);
        assert_eq!(asked(&mut outbox), 1);
        memory.told(key(&region), None, &mut outbox);
        assert_eq!(memory.find(&region, &mut outbox), Place::Beyond);
        assert_eq!(Arc::strong_count(&region), 2);
        memory.forget(&region, false, &mut outbox);
        assert_eq!((Arc::strong_count(&region), asked(&mut outbox)), (1, 0));
    }

    #[test]
    fn memory_that_leaves_while_it_is_asked_for_goes_with_its_last_request() {
        let (mut memory, mut outbox, region) = (Memory::default(), VecDeque::new(), region());
        assert_eq!(memory.find(&region, &mut outbox), Place::Coming);
        memory.forget(&region, true, &mut outbox);
        memory.told(key(&region), None, &mut outbox);
        assert_eq!(asked(&mut outbox), 1);
        // The request that waited finds it and asks no second time.
        assert_eq!(memory.find(&region, &mut outbox), Place::Beyond);
        assert!(memory.is_leaving());
        memory.settle(|_| true, &mut outbox);
        assert_eq!(Arc::strong_count(&region), 2);
        memory.settle(|wanted| wanted != key(&region), &mut outbox);
        assert_eq!((Arc::strong_count(&region), asked(&mut outbox)), (1, 0));
        assert!(!memory.is_leaving());
    }

    #[test]
    fn nothing_is_held_of_a_target_that_is_lost() {
        let (mut memory, mut outbox, region) = (Memory::default(), VecDeque::new(), region());
        memory.find(&region, &mut outbox);
        memory.clear(&mut outbox);
        assert_eq!(asked(&mut outbox), 1);
        memory.told(key(&region), None, &mut outbox);
        assert_eq!(Arc::strong_count(&region), 1, "an answer of before changes nothing");
    }
}
