//! Get Features. NVMe Base 2.0c 5.15.

use super::{Clock, Features, capabilities, is_namespace_specific};
use crate::admin::{INVALID_FIELD, INVALID_NAMESPACE, Outcome, is_valid};
use crate::controller::{Context, Controller};
use crate::namespace::{Namespace, Protection, index_of};
use nvme_spec::Status;
use nvme_spec::command::Command;
use nvme_spec::command::admin::GetFeaturesDword10;
use nvme_spec::feature::{
    CommandSetProfile, ErrorRecovery, FeatureId, FeatureSelect, InterruptVectorConfiguration,
    NamespaceWriteProtection, NumberOfQueues, TemperatureThreshold, ThresholdSensor, ThresholdType,
    Timestamp, TimestampAttributes, TimestampOrigin, VolatileWriteCache, WriteProtectionState,
};
use nvme_spec::ids::InterruptVector;
use std::sync::atomic::Ordering;
use std::time::Duration;
use zerocopy::IntoBytes;

impl Controller {
    pub(crate) fn get_features(
        &mut self,
        command: &Command,
        cx: &mut Context<'_>,
    ) -> Result<Outcome, Status> {
        let cdw10 = GetFeaturesDword10::from_bits(command.cdw10);
        let fid = cdw10.fid();
        let capabilities = capabilities(fid).ok_or(INVALID_FIELD)?;
        let current = match cdw10.sel() {
            FeatureSelect::CURRENT => true,
            // Nothing is saved, so the saved value is the default (5.15).
            FeatureSelect::DEFAULT | FeatureSelect::SAVED => false,
            FeatureSelect::SUPPORTED_CAPABILITIES => {
                return Ok(Outcome::Done(capabilities.into_bits()));
            }
            _ => return Err(INVALID_FIELD),
        };
        let features = if current { self.features.clone() } else { Features::default() };
        let value = match fid {
            FeatureId::ARBITRATION => features.arbitration.into_bits(),
            FeatureId::POWER_MANAGEMENT => features.power.into_bits(),
            FeatureId::TEMPERATURE_THRESHOLD => temperature(&features, command.cdw11)?,
            FeatureId::VOLATILE_WRITE_CACHE => {
                VolatileWriteCache::new().with_wce(features.write_cache).into_bits()
            }
            FeatureId::NUMBER_OF_QUEUES => self.granted_queues(),
            FeatureId::INTERRUPT_COALESCING => features.coalescing.into_bits(),
            FeatureId::INTERRUPT_VECTOR_CONFIGURATION => {
                let iv = InterruptVectorConfiguration::from_bits(command.cdw11).iv();
                self.vector_configuration(&features, iv)?
            }
            FeatureId::WRITE_ATOMICITY_NORMAL => features.atomicity.into_bits(),
            FeatureId::ASYNC_EVENT_CONFIGURATION if current => {
                self.segment.admin.event_configuration.load(Ordering::Relaxed)
            }
            FeatureId::ASYNC_EVENT_CONFIGURATION => 0,
            FeatureId::TIMESTAMP => {
                let timestamp = features.timestamp.read(cx.now, self.life.born);
                self.send(command, 8, timestamp.as_bytes(), cx)?;
                0
            }
            FeatureId::HOST_BEHAVIOR_SUPPORT => {
                self.send(command, 512, features.behavior.as_bytes(), cx)?;
                0
            }
            FeatureId::COMMAND_SET_PROFILE => CommandSetProfile::new().into_bits(),
            _ if is_namespace_specific(fid) => of_namespace(fid, &features, current, command, cx)?,
            _ => return Err(INVALID_FIELD),
        };
        Ok(Outcome::Done(value))
    }

    /// Number of Queues (07h): all that the configuration has, whatever was asked for.
    pub(crate) fn granted_queues(&self) -> u32 {
        let granted_z = self.config.io_queues - 1;
        NumberOfQueues::new().with_nsq_z(granted_z).with_ncq_z(granted_z).into_bits()
    }

    fn vector_configuration(
        &self,
        features: &Features,
        iv: InterruptVector,
    ) -> Result<u32, Status> {
        let vector = usize::from(iv.0);
        let word = features.coalescing_disabled.get(vector / 64).ok_or(INVALID_FIELD)?;
        if iv.0 >= self.config.vectors {
            return Err(INVALID_FIELD);
        }
        let cd = word & 1 << (vector % 64) != 0;
        Ok(InterruptVectorConfiguration::new().with_iv(iv).with_cd(cd).into_bits())
    }
}

impl Clock {
    /// The timestamp at `now`: counted on from what was set, or from power on.
    fn read(self, now: Duration, born: Option<Duration>) -> Timestamp {
        let (from, origin) = match self.set {
            Some(milliseconds) => (milliseconds, TimestampOrigin::SET),
            None => (0, TimestampOrigin::RESET),
        };
        let since = now.saturating_sub(self.at.or(born).unwrap_or(now));
        let milliseconds = from.wrapping_add(since.as_millis() as u64);
        Timestamp::new(milliseconds, TimestampAttributes::new().with_origin(origin))
    }
}

fn temperature(features: &Features, cdw11: u32) -> Result<u32, Status> {
    let asked = TemperatureThreshold::from_bits(cdw11);
    if !matches!(asked.tmpsel(), ThresholdSensor::COMPOSITE | ThresholdSensor::ALL) {
        return Err(INVALID_FIELD);
    }
    let tmpth = match asked.thsel() {
        ThresholdType::OVER => features.temperature_over,
        ThresholdType::UNDER => features.temperature_under,
        _ => return Err(INVALID_FIELD),
    };
    Ok(TemperatureThreshold::new().with_tmpth(tmpth).into_bits())
}

/// A feature of one namespace, which has to be there.
fn of_namespace(
    fid: FeatureId,
    features: &Features,
    current: bool,
    command: &Command,
    cx: &Context<'_>,
) -> Result<u32, Status> {
    let nsid = command.nsid;
    let namespace = cx.subsystem.namespace(nsid).ok_or(match is_valid(nsid) {
        true => INVALID_FIELD,
        false => INVALID_NAMESPACE,
    })?;
    if fid == FeatureId::ERROR_RECOVERY {
        let tler = index_of(nsid).and_then(|index| features.recovery.get(index));
        return Ok(ErrorRecovery::new().with_tler(tler.copied().unwrap_or(0)).into_bits());
    }
    let wps = if current { state(namespace) } else { WriteProtectionState::NONE };
    Ok(NamespaceWriteProtection::new().with_wps(wps).into_bits())
}

fn state(namespace: &Namespace) -> WriteProtectionState {
    match namespace.protection() {
        Protection::None => WriteProtectionState::NONE,
        Protection::Protected => WriteProtectionState::WRITE_PROTECT,
        Protection::UntilPowerCycle => WriteProtectionState::UNTIL_POWER_CYCLE,
    }
}
