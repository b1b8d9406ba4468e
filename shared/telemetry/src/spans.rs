//! Spans of what processes ask of each other: made here, finished when dropped, handed to the exporter ([`export`]).
//!
//! A span is three words, a name and a few attributes; nobody needs a subscriber for it, and without a collector it is
//! nothing but the context that came with the request and goes on with the next. That context ([`Context`], W3C Trace
//! Context) belongs to a task: [`Span::scope`] runs a future within a span, [`current`] tells where a task is.

mod context;
pub mod export;

pub use context::Context;
pub use export::{Statistics, statistics};

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use std::borrow::Cow;
use std::future::Future;
use std::time::SystemTime;

tokio::task_local! {
    static CURRENT: Context;
}

/// Name of the instrumentation in every span.
pub(crate) const SCOPE: &str = "vireo";

/// Where the present task is, if it is within a span or a request that had one.
pub fn current() -> Option<Context> {
    CURRENT.try_with(|context| *context).ok()
}

/// The present task's context for a message to another process; empty if it has none.
pub fn traceparent() -> String {
    current().map(|context| context.to_string()).unwrap_or_default()
}

/// Runs a future in a context that came from elsewhere; a task that is spawned starts without one.
pub async fn within<F: Future>(context: Option<Context>, future: F) -> F::Output {
    match context {
        Some(context) => CURRENT.scope(context, future).await,
        None => future.await,
    }
}

/// What a span is to its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It handles a request of another process.
    Server,
    /// It waits for another process's answer.
    Client,
    /// Neither.
    Internal,
}

/// Something that is going on. Ends when it is dropped, and leaves by the exporter then, if there is one.
#[derive(Debug)]
pub struct Span {
    context: Option<Context>,
    recorded: Option<Box<SpanData>>,
}

impl Span {
    /// A span within where the present task is, or a trace of its own.
    pub fn new(role: Role, name: impl Into<Cow<'static, str>>) -> Self {
        Self::within(role, name.into(), current())
    }

    /// A span of a request whose sender said that it is in `traceparent`; within where the present task is if it said
    /// nothing that is understood.
    pub fn of_request(name: impl Into<Cow<'static, str>>, traceparent: &str) -> Self {
        Self::within(Role::Server, name.into(), traceparent.parse().ok().or_else(current))
    }

    fn within(role: Role, name: Cow<'static, str>, parent: Option<Context>) -> Self {
        if !export::is_on() {
            return Self { context: parent, recorded: None };
        }
        let context = match parent {
            Some(parent) => parent.child(),
            None => Context::new_trace(),
        };
        if !context.is_sampled() {
            return Self { context: Some(context), recorded: None };
        }
        let kind = match role {
            Role::Server => SpanKind::Server,
            Role::Client => SpanKind::Client,
            Role::Internal => SpanKind::Internal,
        };
        let now = SystemTime::now();
        let parent = parent.map_or(0, |parent| parent.span_id());
        let mut data = span_data(context, parent, name, kind, now, now);
        data.parent_span_is_remote = role == Role::Server;
        Self { context: Some(context), recorded: Some(Box::new(data)) }
    }

    /// Where in which trace it is.
    pub fn context(&self) -> Option<Context> {
        self.context
    }

    /// Adds an attribute; a name is one of OpenTelemetry's conventions, or begins with `vireo.`.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(data) = &mut self.recorded {
            data.attributes.push(KeyValue::new(name, value));
        }
    }

    /// Says that it failed.
    pub fn fail(&mut self, message: &str) {
        if let Some(data) = &mut self.recorded {
            data.status = Status::error(message.to_owned());
        }
    }

    /// Runs a future within the span.
    pub async fn scope<F: Future>(&self, future: F) -> F::Output {
        within(self.context, future).await
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut data) = self.recorded.take() {
            data.end_time = SystemTime::now();
            export::send(*data);
        }
    }
}

/// A finished span without attributes.
pub(crate) fn span_data(
    context: Context,
    parent: u64,
    name: impl Into<Cow<'static, str>>,
    kind: SpanKind,
    start: SystemTime,
    end: SystemTime,
) -> SpanData {
    SpanData {
        span_context: SpanContext::new(
            context.trace_id().into(),
            context.span_id().into(),
            opentelemetry::trace::TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: kind,
        name: name.into(),
        start_time: start,
        end_time: end,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder(SCOPE)
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[tokio::test]
    async fn without_a_collector_a_request_s_context_goes_on_as_it_came() {
        assert_eq!(traceparent(), "");
        let span = Span::of_request("reload", PARENT);
        span.scope(async {
            assert_eq!(traceparent(), PARENT);
            let inner = Span::new(Role::Client, "apply");
            inner.scope(async { assert_eq!(traceparent(), PARENT) }).await;
        })
        .await;
        assert_eq!(traceparent(), "");
        assert_eq!(Span::of_request("reload", "nonsense").context(), None);
        within(None, async { assert_eq!(current(), None) }).await;
    }
}
