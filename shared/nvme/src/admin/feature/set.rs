//! Set Features. NVMe Base 2.0c 5.27.

use super::{capabilities, is_namespace_specific, supported_events};
use crate::admin::{INVALID_FIELD, INVALID_NAMESPACE, Outcome, is_valid};
use crate::controller::work::{Step, Work};
use crate::controller::{Context, Controller, Effect, Request};
use crate::namespace::{Namespace, Protection, index_of};
use nvme_spec::command::Command;
use nvme_spec::command::admin::SetFeaturesDword10;
use nvme_spec::feature::event::AsyncEventConfiguration;
use nvme_spec::feature::{
    Arbitration, CommandSetProfile, ErrorRecovery, FeatureId, HostBehaviorSupport,
    InterruptCoalescing, InterruptVectorConfiguration, NamespaceWriteProtection, NumberOfQueues,
    PowerManagement, TemperatureThreshold, ThresholdSensor, ThresholdType, Timestamp,
    VolatileWriteCache, WriteAtomicity, WriteProtectionState,
};
use nvme_spec::{CommandId, Nsid, Status};
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

impl Controller {
    pub(crate) fn set_features(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let cdw10 = SetFeaturesDword10::from_bits(command.cdw10);
        let fid = cdw10.fid();
        if capabilities(fid).is_none() {
            return Err(INVALID_FIELD);
        }
        if cdw10.sv() {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        if is_namespace_specific(fid) {
            check_namespaces(command.nsid, cx)?;
        } else if command.nsid.is_specific() {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
        }
        let value = command.cdw11;
        match fid {
            FeatureId::POWER_MANAGEMENT => self.set_power(PowerManagement::from_bits(value)),
            FeatureId::TEMPERATURE_THRESHOLD => {
                self.set_temperature(TemperatureThreshold::from_bits(value))
            }
            FeatureId::ERROR_RECOVERY => {
                self.set_recovery(command.nsid, ErrorRecovery::from_bits(value))
            }
            FeatureId::NUMBER_OF_QUEUES => self.set_queues(NumberOfQueues::from_bits(value)),
            FeatureId::WRITE_ATOMICITY_NORMAL => {
                let dn = WriteAtomicity::from_bits(value).dn();
                self.features.atomicity = WriteAtomicity::new().with_dn(dn);
                Ok(Outcome::Done(0))
            }
            FeatureId::ASYNC_EVENT_CONFIGURATION => {
                let wanted = supported_events(AsyncEventConfiguration::from_bits(value));
                let configuration = &self.segment.admin.event_configuration;
                configuration.store(wanted.into_bits(), Ordering::Relaxed);
                Ok(Outcome::Done(0))
            }
            FeatureId::TIMESTAMP => self.set_timestamp(command, cx),
            FeatureId::HOST_BEHAVIOR_SUPPORT => self.set_behavior(command, cx),
            FeatureId::COMMAND_SET_PROFILE => {
                // There is one combination, the first.
                match CommandSetProfile::from_bits(value).iocsci() {
                    0 => Ok(Outcome::Done(0)),
                    _ => Err(Status::COMMAND_SET_COMBINATION_REJECTED.with_dnr()),
                }
            }
            FeatureId::NAMESPACE_WRITE_PROTECTION => {
                self.set_protection(command, NamespaceWriteProtection::from_bits(value), cx)
            }
            _ => self.set_setting(fid, value, command.cid(), cx),
        }
    }

    /// Features that workers heed: complete when they do.
    fn set_setting(
        &mut self,
        fid: FeatureId,
        value: u32,
        cid: CommandId,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let mut flush = false;
        match fid {
            FeatureId::ARBITRATION => self.features.arbitration = Arbitration::from_bits(value),
            FeatureId::VOLATILE_WRITE_CACHE => {
                let wce = VolatileWriteCache::from_bits(value).wce();
                flush = self.features.write_cache && !wce;
                self.features.write_cache = wce;
            }
            FeatureId::INTERRUPT_COALESCING => {
                let asked = InterruptCoalescing::from_bits(value);
                self.features.coalescing =
                    InterruptCoalescing::new().with_thr_z(asked.thr_z()).with_time(asked.time());
            }
            FeatureId::INTERRUPT_VECTOR_CONFIGURATION => {
                let asked = InterruptVectorConfiguration::from_bits(value);
                let vector = usize::from(asked.iv().0);
                let words = &mut self.features.coalescing_disabled;
                let word = words.get_mut(vector / 64).ok_or(INVALID_FIELD)?;
                if asked.iv().0 >= self.config.vectors {
                    return Err(INVALID_FIELD);
                }
                let bit = 1 << (vector % 64);
                *word = if asked.cd() { *word | bit } else { *word & !bit };
            }
            _ => return Err(INVALID_FIELD),
        }
        self.store_settings();
        let version = self.publish(cx);
        let step = if flush {
            let ticket = self.ticket();
            cx.effect(Effect::Request { ticket, request: Request::Flush });
            Step::Flushing(ticket)
        } else {
            Step::Settling { worker: None, version, outcome: Ok(0) }
        };
        self.work.push(Work { cid: Some(cid), step });
        Ok(Outcome::Pending)
    }

    fn set_power(&mut self, asked: PowerManagement) -> Result<Outcome, Status> {
        // There is one power state (NPSS 0).
        if asked.ps() != 0 {
            return Err(INVALID_FIELD);
        }
        self.features.power = PowerManagement::new().with_wh(asked.wh());
        Ok(Outcome::Done(0))
    }

    fn set_temperature(&mut self, asked: TemperatureThreshold) -> Result<Outcome, Status> {
        // No sensor is implemented, so the composite temperature is all there is.
        if !matches!(asked.tmpsel(), ThresholdSensor::COMPOSITE | ThresholdSensor::ALL) {
            return Err(INVALID_FIELD);
        }
        match asked.thsel() {
            ThresholdType::OVER => self.features.temperature_over = asked.tmpth(),
            ThresholdType::UNDER => self.features.temperature_under = asked.tmpth(),
            _ => return Err(INVALID_FIELD),
        }
        Ok(Outcome::Done(0))
    }

    fn set_recovery(&mut self, nsid: Nsid, asked: ErrorRecovery) -> Result<Outcome, Status> {
        // NSFEAT says that there is no Deallocated or Unwritten Logical Block error.
        if asked.dulbe() {
            return Err(INVALID_FIELD);
        }
        if nsid == Nsid::BROADCAST {
            self.features.recovery.fill(asked.tler());
        } else if let Some(tler) =
            index_of(nsid).and_then(|index| self.features.recovery.get_mut(index))
        {
            *tler = asked.tler();
        }
        Ok(Outcome::Done(0))
    }

    fn set_queues(&mut self, asked: NumberOfQueues) -> Result<Outcome, Status> {
        if asked.nsq_z() == u16::MAX || asked.ncq_z() == u16::MAX {
            return Err(INVALID_FIELD);
        }
        if self.has_io_queues() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        Ok(Outcome::Done(self.granted_queues()))
    }

    fn set_timestamp(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let mut timestamp = Timestamp::default();
        self.receive(command, timestamp.as_mut_bytes(), cx)?;
        self.features.timestamp =
            super::Clock { set: Some(timestamp.milliseconds()), at: Some(cx.now) };
        Ok(Outcome::Done(0))
    }

    fn set_behavior(&mut self, command: &Command, cx: &mut Context<'_>) -> Result<Outcome, Status> {
        let mut asked = HostBehaviorSupport::zeroed();
        self.receive(command, asked.as_mut_bytes(), cx)?;
        // LBA format extension is not offered (CTRATT.ELBAS), nor is there telemetry: their bytes are ignored.
        if asked.acre > 1 {
            return Err(INVALID_FIELD);
        }
        self.features.behavior =
            HostBehaviorSupport { acre: asked.acre, ..HostBehaviorSupport::zeroed() };
        Ok(Outcome::Done(0))
    }

    fn set_protection(
        &mut self,
        command: &Command,
        asked: NamespaceWriteProtection,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let protection = match asked.wps() {
            WriteProtectionState::NONE => Protection::None,
            WriteProtectionState::WRITE_PROTECT => Protection::Protected,
            WriteProtectionState::UNTIL_POWER_CYCLE => Protection::UntilPowerCycle,
            // NWPC does not offer the permanent state: nothing here outlives whoever has the files.
            _ => return Err(INVALID_FIELD),
        };
        let nsid = command.nsid;
        let fixed = |space: &Namespace| {
            space.config().read_only
                // Until the power cycle there is no way back (figure 438).
                || space.config().protection == Protection::UntilPowerCycle
        };
        let refused = cx
            .subsystem
            .namespaces()
            .filter(|(id, _)| nsid == Nsid::BROADCAST || *id == nsid)
            .any(|(_, space)| fixed(space) && space.protection() != protection);
        if refused {
            return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr());
        }
        let ticket = self.ticket();
        cx.effect(Effect::Request { ticket, request: Request::Protect { nsid, protection } });
        let step = Step::Protecting { nsid, protection, ticket };
        self.work.push(Work { cid: Some(command.cid()), step });
        Ok(Outcome::Pending)
    }
}

/// The namespaces that a Set Features of a namespace's feature is for: one that is there, or all.
fn check_namespaces(nsid: Nsid, cx: &Context<'_>) -> Result<(), Status> {
    if nsid == Nsid::BROADCAST || cx.subsystem.namespace(nsid).is_some() {
        return Ok(());
    }
    Err(if is_valid(nsid) { INVALID_FIELD } else { INVALID_NAMESPACE })
}
