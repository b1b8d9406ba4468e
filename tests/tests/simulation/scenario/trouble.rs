//! What happens to a run besides its commands.

use super::{Flight, Kind, NSID, SLOTS, Scenario, Troubles};
use vireo_proto::handoff::Limits;
use vireo_tests::random::Random;

impl Scenario {
    pub(super) fn trouble(&mut self) {
        let Troubles { resets, unmaps, deaths, disconnects, limits, .. } = self.troubles;
        match self.random.in_range(0..40) {
            0..3 if resets => self.reset(),
            3..9 if unmaps => self.unmap(),
            9 if deaths => self.kill_worker(),
            10 if disconnects => self.leave(),
            11..20 if limits => self.limit(),
            20..22 if limits => self.pause(),
            22..25 if limits => self.pause_namespace(),
            25..28 if limits => self.world.get().go_on(NSID),
            _ => {}
        }
    }

    /// Resets in one of the ways. What was in flight is over, one way or the other.
    fn reset(&mut self) {
        match self.random.in_range(0..2) {
            0 => self.host().disable(),
            _ => self.host().transport.reset(),
        }
        self.forget_flights();
        if self.random.one_in(2) {
            self.nothing_is_late();
        }
        self.enable();
    }

    fn kill_worker(&mut self) {
        self.world.get().kill_worker();
        self.broken = true;
        let failed =
            self.host().wait("CSTS.CFS or an idle controller", |host| Some(host.csts().cfs()));
        assert!(failed, "a controller whose queues' worker died has failed");
        self.reset();
    }

    fn leave(&mut self) {
        let host = self.host.take().expect("a host");
        let memory = host.memory;
        host.transport.disconnect();
        self.forget_flights();
        // Nobody writes to the memory of a client that is gone.
        memory.fill(memory.whole(), 0xA5);
        (0..200).for_each(|_| self.world.get().step());
        let untouched =
            memory.read(memory.base(), memory.len() as usize).iter().all(|&b| b == 0xA5);
        assert!(untouched, "memory of a client that is gone was written");
        self.come();
    }

    /// Takes a slot's memory back, with commands in flight to it: when the reply is there nobody touches it.
    fn unmap(&mut self) {
        let slot = self.random.in_range(0..SLOTS as u64) as usize;
        let part = self.slots[slot];
        self.host().transport.unmap(part);
        self.host().memory.fill(part, 0xA5);
        (0..100).for_each(|_| self.step());
        let host = self.host();
        let bytes = host.memory.read(part.iova, part.len as usize);
        assert!(bytes.iter().all(|&byte| byte == 0xA5), "memory was written after its unmap");
        let (memory, transport) = (&host.memory, &mut host.transport);
        transport.map(memory, part);
        // Reads in flight to it have lost their data, whatever they report. Others may have waited all the time, and find
        // something else there now.
        for flight in self.flights.values_mut().filter(|flight| flight.slot == slot) {
            match &flight.kind {
                Kind::Read => flight.kind = Kind::Harmless,
                Kind::Write(stamps) | Kind::FusedWrite(stamps) => {
                    self.model.may_have_written(flight.first, stamps);
                    let found = u64::from_ne_bytes([0xA5; 8]);
                    self.model.may_have_written(flight.first, &vec![found; flight.count]);
                    flight.kind = Kind::Spoilt;
                }
                Kind::Compare { .. } | Kind::FusedCompare { .. } => flight.kind = Kind::Spoilt,
                _ => {}
            }
        }
    }

    /// Limits the namespace or the controller, or neither any more.
    fn limit(&mut self) {
        let rate = |random: &mut Random, from: u64, to: u64| match random.one_in(2) {
            true => random.in_range(from..to),
            false => 0,
        };
        let random = &mut self.random;
        let limits = Limits {
            iops: rate(random, 20, 2_000),
            read_iops: rate(random, 20, 2_000),
            write_iops: rate(random, 20, 2_000),
            bandwidth: rate(random, 1 << 16, 1 << 22),
            read_bandwidth: rate(random, 1 << 16, 1 << 22),
            write_bandwidth: rate(random, 1 << 16, 1 << 22),
        };
        let limits = (!random.one_in(4)).then_some(limits);
        let mut world = self.world.get();
        match random.one_in(2) {
            true => world.limit_namespace(NSID, limits.as_ref()),
            false => world.limit_controller(0, limits.as_ref()),
        }
    }

    /// Pauses the controller: once it is still, nothing more completes.
    fn pause(&mut self) {
        self.world.get().set_paused(0, true);
        self.world.get().run_until("a paused controller is still", |world| {
            world.function(0).is_still().then_some(())
        });
        self.take();
        (0..100).for_each(|_| self.step());
        let queues = self.host().queues.len();
        for queue in 0..queues {
            let late = self.host().poll(queue);
            assert!(late.is_none(), "a paused controller completes {late:?}");
        }
    }

    /// Pauses the namespace: once it is still, none of its commands completes.
    fn pause_namespace(&mut self) {
        self.world.get().pause_namespace(NSID);
        self.world.get().run_until("a paused namespace is still", |world| {
            world.function(0).is_namespace_still(NSID).then_some(())
        });
        self.take();
        let before = self.flights.len();
        (0..100).for_each(|_| self.step());
        self.take();
        // One whose memory is gone ends at once.
        assert!(self.troubles.unmaps || self.flights.len() == before, "a paused namespace works");
    }

    /// After a reset the device changes no more: two looks are the same.
    fn nothing_is_late(&mut self) {
        self.enable();
        let slot = self.random.in_range(0..SLOTS as u64) as usize;
        self.read_zone(slot);
        (0..200).for_each(|_| self.step());
        self.read_zone(slot);
    }

    pub(super) fn forget_flights(&mut self) {
        for (_, flight) in std::mem::take(&mut self.flights) {
            let Flight { first, count, .. } = flight;
            match flight.kind {
                Kind::Write(stamps) | Kind::FusedWrite(stamps) => {
                    self.model.may_have_written(first, &stamps);
                }
                Kind::Zero => self.model.may_have_written(first, &vec![0; count]),
                Kind::Copy { from } => self.model.may_have_copied(from, first, count),
                _ => {}
            }
        }
        self.busy = [0; SLOTS];
    }
}
