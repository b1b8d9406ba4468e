//! Features: their values, Set Features, Get Features. NVMe Base 2.0c 5.15, 5.27, NVM Command Set 1.0c 4.1.3.
//!
//! No value is saved: after every reset a feature has its default, but write protection, which is the namespace's.

mod get;
mod set;

use ipc::layout::MAX_NAMESPACES;
use nvme_spec::feature::event::AsyncEventConfiguration;
use nvme_spec::feature::{
    Arbitration, FeatureCapabilities, FeatureId, HostBehaviorSupport, InterruptCoalescing,
    PowerManagement, WriteAtomicity,
};
use std::time::Duration;

/// No limit of the host's on the arbitration burst.
const NO_BURST_LIMIT: u8 = 7;
/// Recommended Arbitration Burst (RAB): two to this power. A worker takes no more from a queue at a time.
pub(crate) const RAB: u8 = 5;
/// Default over temperature threshold: never reached.
const TEMPERATURE_OVER: u16 = 0xFFFF;

/// Values of the features that the controller, not a namespace or the segment, has.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    pub arbitration: Arbitration,
    pub power: PowerManagement,
    pub temperature_over: u16,
    pub temperature_under: u16,
    /// Time Limited Error Recovery by NSID - 1.
    pub recovery: Vec<u16>,
    pub write_cache: bool,
    pub coalescing: InterruptCoalescing,
    /// A set bit disables coalescing for the vector.
    pub coalescing_disabled: [u64; 2],
    pub atomicity: WriteAtomicity,
    pub behavior: HostBehaviorSupport,
    pub timestamp: Clock,
}

/// The timestamp: what it was set to, and when. Before it is set it counts from the reset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Milliseconds at `at`, if a host set them.
    pub set: Option<u64>,
    /// When it was set, or the reset was.
    pub at: Option<Duration>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: Arbitration::new().with_ab(NO_BURST_LIMIT),
            power: PowerManagement::new(),
            temperature_over: TEMPERATURE_OVER,
            temperature_under: 0,
            recovery: vec![0; MAX_NAMESPACES],
            write_cache: true,
            coalescing: InterruptCoalescing::new(),
            coalescing_disabled: [0; 2],
            atomicity: WriteAtomicity::new(),
            behavior: HostBehaviorSupport::zeroed(),
            timestamp: Clock::default(),
        }
    }
}

impl Features {
    /// Commands to take from a queue before the next one's turn; 0 for no limit.
    pub(crate) fn arbitration_burst(&self) -> u32 {
        match self.arbitration.ab() {
            NO_BURST_LIMIT => 0,
            power => 1 << power,
        }
    }
}

/// Every feature that the controller has.
pub(crate) const FEATURES: [FeatureId; 14] = [
    FeatureId::ARBITRATION,
    FeatureId::POWER_MANAGEMENT,
    FeatureId::TEMPERATURE_THRESHOLD,
    FeatureId::ERROR_RECOVERY,
    FeatureId::VOLATILE_WRITE_CACHE,
    FeatureId::NUMBER_OF_QUEUES,
    FeatureId::INTERRUPT_COALESCING,
    FeatureId::INTERRUPT_VECTOR_CONFIGURATION,
    FeatureId::WRITE_ATOMICITY_NORMAL,
    FeatureId::ASYNC_EVENT_CONFIGURATION,
    FeatureId::TIMESTAMP,
    FeatureId::HOST_BEHAVIOR_SUPPORT,
    FeatureId::COMMAND_SET_PROFILE,
    FeatureId::NAMESPACE_WRITE_PROTECTION,
];

/// What can be done with a feature; `None` if the controller has it not.
pub(crate) fn capabilities(fid: FeatureId) -> Option<FeatureCapabilities> {
    let offered = FeatureCapabilities::new().with_changeable(true);
    FEATURES.contains(&fid).then(|| offered.with_namespace_specific(is_namespace_specific(fid)))
}

/// Whether the feature has a value for each namespace.
pub(crate) fn is_namespace_specific(fid: FeatureId) -> bool {
    matches!(fid, FeatureId::ERROR_RECOVERY | FeatureId::NAMESPACE_WRITE_PROTECTION)
}

/// The part of a configuration that the controller has events for.
fn supported_events(wanted: AsyncEventConfiguration) -> AsyncEventConfiguration {
    AsyncEventConfiguration::new()
        .with_smart(wanted.smart())
        .with_namespace_attribute(wanted.namespace_attribute())
}
