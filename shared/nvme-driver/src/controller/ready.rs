//! Waiting for a controller to be ready or not (CC.EN, CSTS.RDY; NVMe Base 2.0c 3.5, 3.6), before there is more of it than
//! its registers: also of one that another process brought up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_spec::register::{Cap, Cc, Crto, Csts, ShutdownNotification, offset};

use super::admin_queue::pause;
use crate::error::{Error, chain};
use crate::transport::Transport;

/// Unit of CAP.TO and CRTO.
const TIMEOUT_UNIT: Duration = Duration::from_millis(500);
/// Register value of a device that is not there any more.
const ABSENT: u32 = u32::MAX;

/// Clears CC.EN and waits until the controller is not ready: then it does no DMA any more.
pub(super) fn disable(transport: &dyn Transport, cap: Cap) -> Result<(), Error> {
    let cc = transport.read_u32(offset::CC)?;
    if cc == ABSENT {
        return Err(Error::Gone);
    }
    let cc = Cc::from_bits(cc);
    if cc.en() {
        await_coming_up(transport, cap)?;
        let off = cc.with_en(false).with_shn(ShutdownNotification::NONE);
        transport.write_u32(offset::CC, off.into_bits())?;
    }
    let timeout = timeout(transport, cap);
    wait_for(transport, "disabling the controller", timeout, |csts| !csts.rdy())
}

/// Waits for an enabled controller to be ready: CC.EN may not be cleared before, unless that never comes. NVMe Base 2.0c
/// 3.1.3.5.
fn await_coming_up(transport: &dyn Transport, cap: Cap) -> Result<(), Error> {
    let up = |csts: Csts| csts.rdy() || csts.cfs();
    match wait_for(transport, "a controller that comes up", timeout(transport, cap), up) {
        Ok(()) | Err(Error::TimedOut { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a controller that a predecessor enabled this process's: disabled, by a reset if need be, and only then without what
/// was mapped for it, so that it never does DMA to what is not there.
pub(super) fn take_over(transport: &dyn Transport, cap: Cap) -> Result<(), Error> {
    if let Err(error) = disable(transport, cap) {
        if !transport.alive() {
            return Err(Error::Gone);
        }
        tracing::warn!(
            ?transport,
            error = chain(&error),
            "a controller of a predecessor's does not obey, it is reset"
        );
        transport.reset()?;
        disable(transport, cap)?;
    }
    Ok(transport.clear_inherited()?)
}

/// Stops a controller that a predecessor enabled, and gives it up.
pub(crate) fn retire(transport: Arc<dyn Transport>) {
    let cap = transport.read_u64(offset::CAP).map(Cap::from_bits);
    let stopped = cap.map_err(Error::from).and_then(|cap| take_over(&*transport, cap));
    if let Err(error) = stopped {
        // What is left is to keep it from memory, and the kernel's reset.
        tracing::warn!(
            ?transport,
            error = chain(&error),
            "a controller of a predecessor's is not disabled"
        );
    }
    transport.sever();
}

/// Reads CSTS until it is as it should be.
pub(super) fn wait_for(
    transport: &dyn Transport,
    what: &'static str,
    timeout: Duration,
    mut done: impl FnMut(Csts) -> bool,
) -> Result<(), Error> {
    let started = Instant::now();
    for turn in 0_u64.. {
        let csts = transport.read_u32(offset::CSTS)?;
        if csts == ABSENT {
            return Err(Error::Gone);
        }
        let csts = Csts::from_bits(csts);
        if done(csts) {
            return Ok(());
        }
        // A controller that failed still takes CC.EN = 0; nothing else is worth waiting for.
        if csts.cfs() && !csts.rdy() && what.starts_with("enabling") {
            return Err(Error::Fatal);
        }
        if started.elapsed() >= timeout {
            break;
        }
        pause(1000 + turn * 100);
    }
    Err(Error::TimedOut { what, waited: timeout })
}

/// How long the controller may take to become ready or not ready.
pub(super) fn timeout(transport: &dyn Transport, cap: Cap) -> Duration {
    let mut units = u32::from(cap.to());
    if cap.crms().crwms()
        && let Ok(crto) = transport.read_u32(offset::CRTO)
    {
        units = units.max(Crto::from_bits(crto).crwmt().into());
    }
    TIMEOUT_UNIT * units.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doorbell::Doorbell;
    use crate::transport::{DoorbellCost, TransportError};
    use ipc::event::EventFd;
    use ipc::guest_memory::Region;
    use std::sync::Mutex;

    /// A controller that a predecessor left enabled.
    #[derive(Debug)]
    struct Left {
        csts: Mutex<u32>,
        /// It takes CC.EN = 0; it can be reset; it gives back what was mapped.
        obeys: bool,
        resets: bool,
        clears: bool,
        done: Mutex<Vec<&'static str>>,
    }

    fn left(obeys: bool, resets: bool, clears: bool) -> Arc<Left> {
        let (csts, done) = (Mutex::new(Csts::new().with_rdy(true).into_bits()), Mutex::default());
        Arc::new(Left { csts, obeys, resets, clears, done })
    }

    fn outcome(of: bool) -> Result<(), TransportError> {
        let error = TransportError::Unfit { found: "refusal".to_owned(), needed: "none" };
        of.then_some(()).ok_or(error)
    }

    impl Left {
        fn stop(&self, how: &'static str) {
            *self.csts.lock().unwrap() = 0;
            self.done.lock().unwrap().push(how);
        }

        fn done(&self) -> Vec<&'static str> {
            self.done.lock().unwrap().clone()
        }
    }

    impl Transport for Left {
        fn read_u32(&self, offset: u64) -> Result<u32, TransportError> {
            match offset {
                offset::CSTS => Ok(*self.csts.lock().unwrap()),
                _ => Ok(Cc::new().with_en(*self.csts.lock().unwrap() != 0).into_bits()),
            }
        }
        fn read_u64(&self, _: u64) -> Result<u64, TransportError> {
            Ok(0)
        }
        fn write_u32(&self, offset: u64, value: u32) -> Result<(), TransportError> {
            assert_eq!((offset, Cc::from_bits(value).en()), (offset::CC, false));
            if self.obeys {
                self.stop("disabled");
            }
            Ok(())
        }
        fn write_u64(&self, _: u64, _: u64) -> Result<(), TransportError> {
            Ok(())
        }
        fn post_u32(&self, _: u64, _: u32) -> Result<(), TransportError> {
            Ok(())
        }
        fn doorbell(&self, _: u64) -> Option<Doorbell> {
            None
        }
        fn doorbell_cost(&self) -> DoorbellCost {
            DoorbellCost::Mmio
        }
        fn dma_map(&self, _: u64, _: &Arc<Region>) -> Result<(), TransportError> {
            Ok(())
        }
        fn dma_unmap(&self, _: u64, _: u64) -> Result<(), TransportError> {
            Ok(())
        }
        fn vectors(&self) -> u16 {
            0
        }
        fn set_vectors(&self, _: &[EventFd]) -> Result<(), TransportError> {
            Ok(())
        }
        fn reset(&self) -> Result<(), TransportError> {
            outcome(self.resets)?;
            self.stop("reset");
            Ok(())
        }
        fn is_inherited(&self) -> bool {
            true
        }
        fn clear_inherited(&self) -> Result<(), TransportError> {
            outcome(self.clears)?;
            self.done.lock().unwrap().push("cleared");
            Ok(())
        }
        fn alive(&self) -> bool {
            true
        }
        fn sever(&self) {
            self.done.lock().unwrap().push("severed");
        }
    }

    #[test]
    fn what_a_predecessor_mapped_is_taken_back_when_its_controller_is_disabled() {
        let drive = left(true, true, true);
        take_over(&*drive, Cap::new()).unwrap();
        assert_eq!(drive.done(), ["disabled", "cleared"]);
    }

    #[test]
    fn a_controller_that_does_not_obey_is_reset_first() {
        let drive = left(false, true, true);
        take_over(&*drive, Cap::new()).unwrap();
        assert_eq!(drive.done(), ["reset", "cleared"]);
    }

    #[test]
    fn nothing_is_taken_back_from_a_controller_that_cannot_be_stopped() {
        let drive = left(false, false, true);
        take_over(&*drive, Cap::new()).unwrap_err();
        assert!(drive.done().is_empty());
        let drive = left(true, true, false);
        take_over(&*drive, Cap::new()).unwrap_err();
        assert_eq!(drive.done(), ["disabled"]);
        let gone = left(false, false, true);
        *gone.csts.lock().unwrap() = ABSENT;
        assert!(matches!(disable(&*gone, Cap::new()), Err(Error::Gone)));
    }

    #[test]
    fn a_drive_that_nobody_wants_is_disabled_and_severed() {
        let drive = left(true, true, true);
        retire(drive.clone());
        assert_eq!(drive.done(), ["disabled", "cleared", "severed"]);
        let stubborn = left(false, false, true);
        retire(stubborn.clone());
        assert_eq!(stubborn.done(), ["severed"]);
    }
}
