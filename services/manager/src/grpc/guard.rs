//! Between the socket and the services: who may call what, and a line in the log for every call that changes something or
//! is refused.

use super::caller::{Caller, Role};
use super::error::{reason, refuse};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use telemetry::limit::Limit;
use telemetry::spans::{self, Span};
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower_layer::Layer;

/// What a service tells the audit log: the resource that a call was about.
#[derive(Clone, Debug)]
pub struct Audited(pub String);

/// Puts a [`Guard`] before a service.
#[derive(Clone, Copy, Debug)]
pub struct Guards;

impl<S> Layer<S> for Guards {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner }
    }
}

/// Lets through whom it knows, for what he may.
#[derive(Clone, Copy, Debug)]
pub struct Guard<S> {
    inner: S,
}

/// Lines a second that refused callers can cause.
static LIMIT: Limit = Limit::per_second(50);

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Send,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().to_owned();
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.unwrap_or(Caller { name: "unknown".to_owned(), role: None });
        let needed = needed(&method);
        if caller.role < Some(needed) {
            let status = match caller.role {
                None => {
                    let text = format!(
                        "{} has no role here: an administrator names users, groups or \
                         certificates in [api] of the configuration file",
                        caller.name
                    );
                    refuse(Code::PermissionDenied, reason::NO_ROLE, text)
                }
                Some(_) => {
                    let text = format!("{} may read, but {method} changes something", caller.name);
                    refuse(Code::PermissionDenied, reason::OBSERVER, text)
                }
            };
            let response = status.into_http();
            audit(&method, &caller, needed, &response);
            return Box::pin(std::future::ready(Ok(response)));
        }
        let mut span = span(&request, &method, &caller, needed);
        let context = span.as_ref().and_then(Span::context);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = spans::within(context, answer).await?;
            if let Some(span) = &mut span {
                let code = code(response.headers());
                span.set("rpc.grpc.status_code", code as i64);
                if code != Code::Ok {
                    span.fail(&text(response.headers()));
                }
            }
            audit(&method, &caller, needed, &response);
            Ok(response)
        })
    }
}

/// The span of a call that changes something, or that is part of a trace already.
fn span(request: &Request<Body>, method: &str, caller: &Caller, needed: Role) -> Option<Span> {
    let header = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    let traceparent = header.unwrap_or_default();
    if needed == Role::Observer && traceparent.is_empty() {
        return None;
    }
    let name = method.trim_start_matches('/');
    let mut span = Span::of_request(name.to_owned(), traceparent);
    span.set("rpc.system", "grpc");
    if let Some((service, method)) = name.split_once('/') {
        span.set("rpc.service", service.to_owned());
        span.set("rpc.method", method.to_owned());
    }
    span.set("enduser.id", caller.name.clone());
    Some(span)
}

/// What a caller must be for a method: what it does not know as reading may change something.
fn needed(path: &str) -> Role {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let reads = ["Get", "List", "Watch", "Stats"].iter().any(|verb| method.starts_with(verb));
    // Health and reflection.
    let is_standard = service.starts_with("grpc.");
    // Who is not to make faults is not to know of them either.
    let is_hidden = service == "vireo.v1.FaultService";
    if is_standard || reads && !is_hidden { Role::Observer } else { Role::Admin }
}

fn audit(method: &str, caller: &Caller, needed: Role, response: &Response<Body>) {
    let code = code(response.headers());
    if code == Code::Ok && needed == Role::Observer {
        return;
    }
    let caller = &caller.name;
    if code == Code::Ok {
        let object = response.extensions().get::<Audited>().map(|audited| audited.0.as_str());
        tracing::info!(target: "audit", caller, method, object, "done");
        return;
    }
    if let Some(suppressed) = LIMIT.pass() {
        let reason = text(response.headers());
        tracing::warn!(target: "audit", caller, method, code = ?code, reason, suppressed, "refused");
    }
}

/// The status in the headers: there if the call failed before any answer.
fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

fn text(headers: &HeaderMap) -> String {
    tonic::Status::from_header_map(headers).map(|s| s.message().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_as_reading_needs_an_administrator() {
        for path in [
            "/vireo.v1.VolumeService/GetVolume",
            "/vireo.v1.StatsService/WatchStats",
            "/opi_api.storage.v1.NullVolumeService/StatsNullVolume",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(needed(path), Role::Observer, "{path}");
        }
        for path in ["/vireo.v1.StatsService/ResetStats", "/vireo.v1.X/CreateY", "/", "", "a"] {
            assert_eq!(needed(path), Role::Admin, "{path}");
        }
    }

    #[test]
    fn every_method_that_changes_something_needs_an_administrator() {
        let set =
            <prost_types::FileDescriptorSet as prost::Message>::decode(vireo_api::DESCRIPTORS);
        let files = set.unwrap().file;
        let packages = ["vireo.v1", "opi_api.storage.v1"];
        let ours = files.iter().filter(|file| packages.contains(&file.package()));
        let services = ours.flat_map(|file| file.service.iter().map(|s| (file.package(), s)));
        let mut seen = 0;
        for (package, service) in services {
            for method in &service.method {
                let path = format!("/{package}.{}/{}", service.name(), method.name());
                let changing =
                    ["Create", "Update", "Delete", "Reset", "Reload", "Pause", "Resume", "Capture"];
                let changes = changing.iter().any(|verb| method.name().starts_with(verb))
                    || service.name() == "FaultService";
                assert_eq!(needed(&path) == Role::Admin, changes, "{path}");
                seen += 1;
            }
        }
        assert!(seen >= 60, "{seen}");
    }
}
