//! Queue pairs that a predecessor of this process had lent: gone with the drive's reset, but a worker that has not noticed
//! yet may ring their doorbells. Their identifiers are not used again until it says that it does not, or is dead.

use super::holder::is_dead;
use ipc::layout::drive_lease::{DriveLeaseLayout, lease_state};
use ipc::segment::Segment;
use nvme_driver::transport::vfio::{Holder, InheritedLease};
use nvme_spec::QueueId;
use std::sync::atomic::Ordering;

/// Such queue pairs of one drive.
#[derive(Default)]
pub(in crate::nvme) struct Quarantine {
    leases: Vec<Lease>,
}

struct Lease {
    qid: QueueId,
    holder: Holder,
    /// The lease segment with the word that says that it is over; `None` if it is not there or not usable.
    segment: Option<(Segment<DriveLeaseLayout>, u32)>,
}

impl Quarantine {
    /// Of a drive that has been reset since: tells the workers that their leases are over.
    pub fn new(inherited: Vec<InheritedLease>) -> Self {
        let leases = inherited.into_iter().map(|lease| {
            let InheritedLease { qid, holder, segment } = lease;
            let segment = segment.and_then(|fd| {
                let opened = Segment::<DriveLeaseLayout>::open(fd).inspect_err(|error| {
                    tracing::warn!(%qid, %error, "a lease of a predecessor's is not usable: its queue pair is, when its worker has ended");
                });
                let opened = opened.ok()?;
                let word = end(&opened);
                Some((opened, word))
            });
            Lease { qid, holder, segment }
        });
        Self { leases: leases.collect() }
    }

    /// Takes out those that nobody can ring for any more.
    pub fn sift(&mut self) -> Vec<QueueId> {
        self.leases.extract_if(.., |lease| lease.is_free()).map(|lease| lease.qid).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }
}

/// Ends a lease, in another word than any that its holder has obeyed.
fn end(segment: &DriveLeaseLayout) -> u32 {
    let state = &segment.lender.state;
    let times = state.load(Ordering::Relaxed) & !lease_state::MASK;
    let word = times.wrapping_add(lease_state::STEP) | lease_state::OVER;
    // Release: pairs with the holder's Acquire; the drive was reset before.
    state.store(word, Ordering::Release);
    word
}

impl Lease {
    fn is_free(&self) -> bool {
        let obeyed = self.segment.as_ref().is_some_and(|(segment, word)| {
            // Acquire: pairs with the holder's Release; it touches the queue pair no more.
            let obeyed = segment.holder.obeyed.load(Ordering::Acquire);
            obeyed == *word || obeyed == u32::MAX
        });
        // Of a process that is not visible from here only its word counts: its connection was the predecessor's.
        obeyed || (self.holder.pid > 0 && is_dead(self.holder))
    }
}

#[cfg(test)]
mod tests {
    use super::super::holder::{holder, tests::process};
    use super::*;
    use std::os::fd::OwnedFd;

    fn segment() -> Segment<DriveLeaseLayout> {
        Segment::create("lease", 1).unwrap()
    }

    fn fd(segment: &Segment<DriveLeaseLayout>) -> OwnedFd {
        segment.fd().try_clone_to_owned().unwrap()
    }

    fn inherited(qid: u16, holder: Holder, segment: Option<OwnedFd>) -> InheritedLease {
        InheritedLease { qid: QueueId(qid), holder, segment }
    }

    #[test]
    fn an_identifier_is_free_when_its_worker_lets_go_obeys_or_is_dead() {
        let mut child = process();
        let holder = holder(child.id() as i32);
        let [first, second, third] = [segment(), segment(), segment()];
        let lost = std::fs::File::open("/dev/null").unwrap().into();
        let mut quarantine = Quarantine::new(vec![
            inherited(2, holder, Some(fd(&first))),
            inherited(3, holder, Some(fd(&second))),
            inherited(4, holder, Some(fd(&third))),
            inherited(5, holder, None),
            inherited(6, holder, Some(lost)),
            inherited(7, Holder { pid: 0, started: 0 }, None),
        ]);
        assert_eq!(quarantine.sift(), [], "it may still ring");
        first.holder.obeyed.store(u32::MAX, Ordering::Release);
        let word = second.lender.state.load(Ordering::Acquire);
        assert_eq!(word & lease_state::MASK, lease_state::OVER, "it is told");
        second.holder.obeyed.store(word, Ordering::Release);
        assert_eq!(quarantine.sift(), [QueueId(2), QueueId(3)]);
        assert_eq!(quarantine.sift(), []);
        assert_eq!(quarantine.len(), 4);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(quarantine.sift(), [QueueId(4), QueueId(5), QueueId(6)]);
        assert_eq!(quarantine.len(), 1, "nobody proves the death of one that is not visible");
    }

    #[test]
    fn an_end_that_was_obeyed_before_does_not_count() {
        let mut child = process();
        let lease = segment();
        // Over and obeyed in a predecessor's time; nothing says what came after.
        lease.lender.state.store(lease_state::STEP | lease_state::OVER, Ordering::Relaxed);
        lease.holder.obeyed.store(lease_state::STEP | lease_state::OVER, Ordering::Relaxed);
        let holder = holder(child.id() as i32);
        let mut quarantine = Quarantine::new(vec![inherited(1, holder, Some(fd(&lease)))]);
        assert_eq!(quarantine.sift(), []);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(quarantine.sift(), [QueueId(1)]);
    }
}
