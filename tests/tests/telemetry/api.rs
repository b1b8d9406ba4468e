//! The API of a running target, from a thread that has nothing else to do with gRPC.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use vireo_api::v1::trace_service_client::TraceServiceClient;
use vireo_api::v1::{CaptureCommandsRequest, CapturedCommand};
use vireo_tests::target::Target;
use vireo_tests::wait::PATIENCE;

/// Runs something with a connection to the target's API.
pub fn with_api<F: Future>(target: &Target, work: impl FnOnce(Channel) -> F) -> F::Output {
    let socket = target.site().run_dir().join("api.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let channel = vireo_api::connect(&socket).await.expect("the api is served");
        let done = tokio::time::timeout(PATIENCE, work(channel)).await;
        done.expect("it is answered in time")
    })
}

/// A request within a span that the caller made.
pub fn within<T>(message: T, traceparent: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = traceparent.parse().expect("a header's value");
    request.metadata_mut().insert("traceparent", value);
    request
}

/// A capture that runs. It ends when this is dropped.
pub struct Capturing {
    commands: Receiver<Result<CapturedCommand, Status>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Capturing {
    /// Starts one; when this returns every process captures.
    ///
    /// # Errors
    /// What the manager says.
    pub fn start(target: &Target, count: u32, traceparent: Option<&str>) -> Result<Self, Status> {
        let socket = target.site().run_dir().join("api.sock");
        let message =
            CaptureCommandsRequest { name: "controllers/vm0".to_owned(), count, timeout: None };
        let request = match traceparent {
            Some(traceparent) => within(message, traceparent),
            None => Request::new(message),
        };
        let (tell, commands) = channel();
        let (begun, begin) = channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let follow = async move {
                let channel = vireo_api::connect(&socket).await.expect("the api is served");
                let started = TraceServiceClient::new(channel).capture_commands(request).await;
                let mut stream = match started {
                    Ok(response) => response.into_inner(),
                    Err(status) => return drop(begun.send(Err(status))),
                };
                begun.send(Ok(())).ok();
                loop {
                    let next = match stream.message().await.transpose() {
                        Some(next) => next,
                        None => return,
                    };
                    let failed = next.is_err();
                    let told = next.map(|response| response.command.expect("a command"));
                    if tell.send(told).is_err() || failed {
                        return;
                    }
                }
            };
            runtime.expect("a runtime").block_on(async move {
                tokio::select! {
                    () = follow => {}
                    _ = stopped => {}
                }
            });
        });
        begin.recv_timeout(PATIENCE).expect("an answer in time")?;
        Ok(Self { commands, stop: Some(stop), thread: Some(thread) })
    }

    /// The next command; `None` at the end.
    #[track_caller]
    pub fn next(&self) -> Option<Result<CapturedCommand, Status>> {
        match self.commands.recv_timeout(PATIENCE) {
            Ok(next) => Some(next),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no command within {PATIENCE:?}"),
        }
    }

    /// The commands up to the end, which is well.
    #[track_caller]
    pub fn all(&self) -> Vec<CapturedCommand> {
        let mut commands = Vec::new();
        while let Some(next) = self.next() {
            commands.push(next.expect("it ends well"));
        }
        commands
    }

    /// How it ends, if not well.
    #[track_caller]
    pub fn failure(&self) -> Code {
        loop {
            match self.next() {
                Some(Ok(_)) => {}
                Some(Err(status)) => return status.code(),
                None => panic!("it ended well"),
            }
        }
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
