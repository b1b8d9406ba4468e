//! What a process tells of itself to whoever shows metrics: answered beside its own requests, so that no service has to
//! know of it.

use crate::control::{Answer, ConnectionId, Handler, Incoming};
use ipc::handoff::MAX_DESCRIPTORS;
use ipc::layout::queues::QueuesLayout;
use ipc::layout::telemetry::{Policy, TelemetryLayout};
use ipc::segment::{Segment, SegmentError};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};
use vireo_proto::Failure;
use vireo_proto::handoff::{ProcessTelemetry, QueuesSegment, ReadTelemetry, reply, request};

/// Bytes of a page if the kernel does not say.
const PAGE: u64 = 4096;

/// A queues segment and whose it is.
pub struct SharedQueues {
    /// Whose.
    pub of: QueuesSegment,
    /// The segment.
    pub segment: Arc<Segment<QueuesLayout>>,
}

/// A handler with what its process tells of itself beside it.
pub struct Observed<H> {
    inner: Arc<H>,
    kind: &'static str,
    name: String,
    start: SystemTime,
    segment: Option<Arc<Segment<TelemetryLayout>>>,
    queues: Option<Box<dyn Fn() -> Vec<SharedQueues> + Send + Sync>>,
    policy: Option<Box<dyn Fn(Policy) + Send + Sync>>,
}

impl<H: Handler> Observed<H> {
    /// Of the process `kind` `name`, which started just now.
    pub fn new(inner: Arc<H>, kind: &'static str, name: &str) -> Self {
        let (name, start) = (name.to_owned(), SystemTime::now());
        Self { inner, kind, name, start, segment: None, queues: None, policy: None }
    }

    /// With a telemetry segment.
    #[must_use]
    pub fn with_segment(self, segment: Arc<Segment<TelemetryLayout>>) -> Self {
        Self { segment: Some(segment), ..self }
    }

    /// With queues segments, which `queues` names in an order that does not change as long as there are the same.
    #[must_use]
    pub fn with_queues(
        self,
        queues: impl Fn() -> Vec<SharedQueues> + Send + Sync + 'static,
    ) -> Self {
        Self { queues: Some(Box::new(queues)), ..self }
    }

    /// With a way to change which commands are traced.
    #[must_use]
    pub fn with_policy(self, policy: impl Fn(Policy) + Send + Sync + 'static) -> Self {
        Self { policy: Some(Box::new(policy)), ..self }
    }

    fn telemetry(&self, read: &ReadTelemetry) -> Result<Answer, Failure> {
        let mut fds = Vec::new();
        let failed = |error: SegmentError| Failure::internal(&error);
        if let Some(segment) = &self.segment {
            fds.push(segment.read_only_fd().map_err(failed)?);
        }
        let all = match &self.queues {
            Some(queues) => queues(),
            None => Vec::new(),
        };
        let queues_total = all.len() as u32;
        let room = MAX_DESCRIPTORS - fds.len();
        let mut queues = Vec::new();
        for shared in all.into_iter().skip(read.skip as usize).take(room) {
            let fd: OwnedFd = shared.segment.read_only_fd().map_err(failed)?;
            fds.push(fd);
            queues.push(shared.of);
        }
        let spans = telemetry::spans::statistics();
        let body = ProcessTelemetry {
            kind: self.kind.to_owned(),
            name: self.name.clone(),
            pid: std::process::id() as i32,
            start_time_unix_ns: nanoseconds_since_1970(self.start),
            resident_bytes: resident_bytes(),
            cpu_ns: processor_time(),
            spans_exported: spans.exported,
            spans_dropped_queue: spans.dropped_queue,
            spans_dropped_export: spans.dropped_export,
            has_segment: self.segment.is_some(),
            queues,
            queues_total,
        };
        Ok(Answer::with_fds(reply::Body::ProcessTelemetry(body), fds))
    }
}

impl<H: Handler> Handler for Observed<H> {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match &request.body {
            request::Body::ReadTelemetry(read) => self.telemetry(read),
            request::Body::SetTracePolicy(set) => {
                let policy = Policy { sample: set.sample, slow_us: set.slow_us };
                match (&self.segment, &self.policy) {
                    (Some(segment), Some(take)) => {
                        // Relaxed: the word says all there is to say.
                        segment.policy.word.store(policy.to_word(), Ordering::Relaxed);
                        take(policy);
                        Ok(Answer::done())
                    }
                    _ => Err(Failure::unsupported()),
                }
            }
            _ => self.inner.handle(request).await,
        }
    }

    async fn disconnected(&self, connection: ConnectionId) {
        self.inner.disconnected(connection).await;
    }
}

/// Nanoseconds since 1970; 0 for a time before.
pub fn nanoseconds_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Resident memory of this process in bytes; 0 if the kernel does not say.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    pages.saturating_mul(page.and_then(|page| u64::try_from(page).ok()).unwrap_or(PAGE))
}

/// Processor time of this process in nanoseconds, user and system.
pub fn processor_time() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let microseconds =
            usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        u64::try_from(microseconds).unwrap_or(0).saturating_mul(1000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_costs() {
        assert!(resident_bytes() > 100_000);
        let before = processor_time();
        let mut sum = 0_u64;
        while processor_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(nanoseconds_since_1970(SystemTime::now()) > 1_700_000_000_000_000_000);
        assert_eq!(nanoseconds_since_1970(UNIX_EPOCH - std::time::Duration::from_secs(1)), 0);
    }
}
