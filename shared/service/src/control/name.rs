//! What requests are called in traces.

use telemetry::spans::{Role, Span};
use vireo_proto::handoff::request::Body;

/// A request's name.
fn method(body: &Body) -> &'static str {
    match body {
        Body::AttachController(_) => "AttachController",
        Body::AddRegion(_) => "AddRegion",
        Body::RemoveRegion(_) => "RemoveRegion",
        Body::SetVectors(_) => "SetVectors",
        Body::DetachController(_) => "DetachController",
        Body::OpenChannel(_) => "OpenChannel",
        Body::CloseChannel(_) => "CloseChannel",
        Body::DescribeBdev(_) => "DescribeBdev",
        Body::EraseBdev(_) => "EraseBdev",
        Body::FlushBdev(_) => "FlushBdev",
        Body::AwaitDrained(_) => "AwaitDrained",
        Body::ApplyBdevs(_) => "ApplyBdevs",
        Body::ApplyTargets(_) => "ApplyTargets",
        Body::GetStatus(_) => "GetStatus",
        Body::Reload(_) => "Reload",
        Body::ReadEndpoint(_) => "ReadEndpoint",
        Body::ReadTelemetry(_) => "ReadTelemetry",
        Body::SetTracePolicy(_) => "SetTracePolicy",
        Body::PauseEndpoint(_) => "PauseEndpoint",
        Body::ResumeEndpoint(_) => "ResumeEndpoint",
        Body::PauseNamespace(_) => "PauseNamespace",
        Body::ResumeNamespace(_) => "ResumeNamespace",
        Body::ReadNamespace(_) => "ReadNamespace",
        Body::StartCapture(_) => "StartCapture",
        Body::ReadCapture(_) => "ReadCapture",
        Body::SetFaults(_) => "SetFaults",
    }
}

/// Whether a request is worth a trace of its own. What only looks is asked again and again, and is a span only within a
/// trace.
fn changes(body: &Body) -> bool {
    let looks = matches!(
        body,
        Body::GetStatus(_)
            | Body::ReadEndpoint(_)
            | Body::ReadTelemetry(_)
            | Body::AwaitDrained(_)
            | Body::ReadCapture(_)
    );
    !looks
}

/// The span of a request that is asked of `peer`.
pub(super) fn asked(body: &Body, peer: &str) -> Option<Span> {
    if !changes(body) && telemetry::spans::current().is_none() {
        return None;
    }
    let mut span = Span::new(Role::Client, method(body));
    span.set("rpc.system", "vireo-handoff");
    span.set("rpc.method", method(body));
    span.set("server.address", peer.to_owned());
    Some(span)
}

/// The span of a request that `sender` asked in `traceparent`.
pub(super) fn answered(body: &Body, sender: &str, traceparent: &str) -> Option<Span> {
    if !changes(body) && traceparent.is_empty() {
        return None;
    }
    let mut span = Span::of_request(method(body), traceparent);
    span.set("rpc.system", "vireo-handoff");
    span.set("rpc.method", method(body));
    span.set("vireo.sender", sender.to_owned());
    Some(span)
}
