//! Which commands workers trace, and captures.

use super::capture::Answers;
use super::guard::Audited;
use super::{Api, error, time};
use crate::metrics;
use crate::peer::Peer;
use ipc::layout::telemetry::Policy;
use prost_types::FieldMask;
use service::config::Kind;
use service::control::{ControlError, Session};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tonic::{Code, Request, Response, Status};
use vireo_api::v1::trace_service_server::TraceService;
use vireo_api::v1::{
    CaptureCommandsRequest, GetTracePolicyRequest, TracePolicy, UpdateTracePolicyRequest,
};
use vireo_proto::handoff::{SetTracePolicy, request};

const PATTERN: &str = "workers/{worker}/tracePolicy";
/// Greatest bound for slow commands: above every time-out of a guest's driver.
const MAX_SLOW: Duration = Duration::from_secs(3600);
/// What a caller can give.
const FIELDS: [&str; 2] = ["sample_interval", "slow_threshold"];

#[tonic::async_trait]
impl TraceService for Api {
    type CaptureCommandsStream = Answers;

    async fn capture_commands(
        &self,
        request: Request<CaptureCommandsRequest>,
    ) -> Result<Response<Answers>, Status> {
        self.capture(request.into_inner()).await
    }

    async fn get_trace_policy(
        &self,
        request: Request<GetTracePolicyRequest>,
    ) -> Result<Response<TracePolicy>, Status> {
        let name = request.into_inner().name;
        let session = self.worker_session("name", &name)?;
        read(&session, name).await.map(Response::new)
    }

    async fn update_trace_policy(
        &self,
        request: Request<UpdateTracePolicyRequest>,
    ) -> Result<Response<TracePolicy>, Status> {
        let request = request.into_inner();
        let wanted = request.trace_policy;
        let wanted = wanted.ok_or_else(|| error::invalid("trace_policy", "is missing"))?;
        let mask = fields(request.update_mask.as_ref())?;
        let session = self.worker_session("trace_policy.name", &wanted.name)?;
        let mut after = read(&session, wanted.name.clone()).await?;
        if mask.contains(&"sample_interval") {
            after.sample_interval = wanted.sample_interval;
        }
        if mask.contains(&"slow_threshold") {
            after.slow_threshold = wanted.slow_threshold;
        }
        let policy = policy(&after)?;
        let mut response = Response::new(shown(wanted.name, policy, after.dropped_records));
        response.extensions_mut().insert(Audited(after.name));
        if !request.validate_only {
            let set = SetTracePolicy { sample: policy.sample, slow_us: policy.slow_us };
            let told = session.tell(request::Body::SetTracePolicy(set), &[]).await;
            told.map_err(|error| unavailable(&error))?;
        }
        Ok(response)
    }
}

impl Api {
    fn worker_session(&self, field: &str, name: &str) -> Result<Session, Status> {
        let worker = name.strip_prefix("workers/").and_then(|n| n.strip_suffix("/tracePolicy"));
        let worker = worker.filter(|worker| !worker.is_empty() && !worker.contains('/'));
        let worker = worker
            .ok_or_else(|| error::invalid(field, format!("\"{name}\" is not like {PATTERN}")))?;
        let mut peers = self.manager.peers().iter().filter(|peer| peer.kind == Kind::Worker);
        let peer = peers.find(|peer| peer.name == worker).ok_or_else(|| error::missing(name))?;
        Peer::session(peer).ok_or_else(|| {
            let text = format!("worker {worker} is not there");
            error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, text)
        })
    }
}

fn unavailable(failed: &ControlError) -> Status {
    error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, failed.line())
}

/// The policy in a worker's telemetry segment.
async fn read(session: &Session, name: String) -> Result<TracePolicy, Status> {
    let segment = metrics::telemetry_segment(session).await.map_err(|error| unavailable(&error))?;
    let segment = segment.ok_or_else(|| {
        let text = "the worker shows no telemetry segment";
        error::refuse(Code::Unavailable, error::reason::UNAVAILABLE, text)
    })?;
    // Relaxed: the word says all there is to say, and the counter stands for itself.
    let policy = Policy::from_word(segment.policy.word.load(Ordering::Relaxed));
    Ok(shown(name, policy, segment.policy.dropped.load(Ordering::Relaxed)))
}

fn shown(name: String, policy: Policy, dropped_records: u64) -> TracePolicy {
    let slow = Duration::from_micros(policy.slow_us.into());
    let slow_threshold = (policy.slow_us > 0).then(|| time::duration(slow));
    TracePolicy { name, sample_interval: policy.sample, slow_threshold, dropped_records }
}

fn policy(wanted: &TracePolicy) -> Result<Policy, Status> {
    let slow = match &wanted.slow_threshold {
        None => Some(Duration::ZERO),
        Some(slow) => time::parse(slow),
    };
    let whole = |slow: &Duration| slow.subsec_nanos().is_multiple_of(1000) && *slow <= MAX_SLOW;
    let slow = slow.filter(whole).and_then(|slow| u32::try_from(slow.as_micros()).ok());
    let slow_us = slow.ok_or_else(|| {
        let text = "is out of range; write whole microseconds up to 3600 s";
        error::invalid("trace_policy.slow_threshold", text)
    })?;
    Ok(Policy { sample: wanted.sample_interval, slow_us })
}

/// The fields that a caller wants to change.
fn fields(mask: Option<&FieldMask>) -> Result<Vec<&'static str>, Status> {
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() || paths == ["*"] {
        return Ok(FIELDS.to_vec());
    }
    let known = |path: &String| {
        let text = || format!("\"{path}\" cannot be given; known: {}", FIELDS.join(", "));
        let field = FIELDS.into_iter().find(|field| field == path);
        field.ok_or_else(|| error::invalid("update_mask", text()))
    };
    paths.iter().map(known).collect()
}
