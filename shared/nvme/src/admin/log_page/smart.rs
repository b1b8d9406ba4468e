//! SMART / Health Information, out of the workers' counters. NVMe Base 2.0c 5.16.1.3.
//!
//! There is no sensor, no wear and no spare: temperature is 0 (not known), spare 100 %, usage 0 %.

use crate::controller::{Context, Controller};
use ipc::layout::queues::NamespaceCounters;
use nvme_spec::log_page::smart::SmartHealth;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a data unit: 1000 times 512.
const DATA_UNIT: u128 = 512_000;
/// Seconds of an hour.
const HOUR: u64 = 3600;

impl Controller {
    pub(super) fn smart(&mut self, cx: &mut Context<'_>) -> SmartHealth {
        self.collect_reports(cx);
        let sum = |counter: fn(&NamespaceCounters) -> &AtomicU64| -> u128 {
            let all = cx.workers.iter().flat_map(|seat| &seat.queues.counters);
            all.map(|counters| u128::from(counter(counters).load(Ordering::Relaxed))).sum()
        };
        let on = cx.now.saturating_sub(self.life.born.unwrap_or(cx.now)).as_secs();
        let mut page = SmartHealth::zeroed();
        page.available_spare = 100;
        page.data_units_read = sum(|c| &c.read_bytes).div_ceil(DATA_UNIT).into();
        page.data_units_written = sum(|c| &c.written_bytes).div_ceil(DATA_UNIT).into();
        page.host_read_commands = sum(|c| &c.reads).into();
        page.host_write_commands = sum(|c| &c.writes).into();
        page.power_cycles = u128::from(self.life.power_cycles).into();
        page.power_on_hours = u128::from(on / HOUR).into();
        page.unsafe_shutdowns = u128::from(self.life.unsafe_shutdowns).into();
        page.media_errors = sum(|c| &c.media_errors).into();
        page.error_log_entries = u128::from(self.errors.count()).into();
        page
    }
}
