//! What the manager asks of endpoints' and namespaces' pauses.

use super::Registry;
use crate::subsystem::SharedSubsystem;
use nvme::SubsystemError;
use nvme_spec::Nsid;
use service::control::Answer;
use std::sync::Arc;
use std::time::Duration;
use vireo_proto::Failure;
use vireo_proto::handoff::{
    NamespaceReport, PauseEndpoint, PauseNamespace, ReadNamespace, ResumeEndpoint, ResumeNamespace,
    reply,
};

impl Registry {
    pub(super) fn pause_endpoint(&self, pause: &PauseEndpoint) -> Result<Answer, Failure> {
        let settle = Duration::from_nanos(pause.settle_ns);
        let endpoint = self.endpoint(&pause.endpoint)?;
        endpoint.pause().begin(settle, longest(pause.longest_ns));
        tracing::info!(endpoint = pause.endpoint, "endpoint paused");
        Ok(Answer::done())
    }

    pub(super) fn resume_endpoint(&self, resume: &ResumeEndpoint) -> Result<Answer, Failure> {
        self.endpoint(&resume.endpoint)?.pause().end();
        tracing::info!(endpoint = resume.endpoint, "endpoint goes on");
        Ok(Answer::done())
    }

    pub(super) fn pause_namespace(&self, pause: &PauseNamespace) -> Result<Answer, Failure> {
        let settle = Duration::from_nanos(pause.settle_ns);
        let subsystem = self.shared_subsystem(&pause.subsystem)?;
        let begun = subsystem.pause_namespace(Nsid(pause.nsid), settle, longest(pause.longest_ns));
        begun.map_err(missing)?;
        tracing::info!(subsystem = pause.subsystem, nsid = pause.nsid, "namespace paused");
        Ok(Answer::done())
    }

    pub(super) fn resume_namespace(&self, resume: &ResumeNamespace) -> Result<Answer, Failure> {
        let subsystem = self.shared_subsystem(&resume.subsystem)?;
        subsystem.resume_namespace(Nsid(resume.nsid)).map_err(missing)?;
        tracing::info!(subsystem = resume.subsystem, nsid = resume.nsid, "namespace goes on");
        Ok(Answer::done())
    }

    pub(super) fn read_namespace(&self, read: &ReadNamespace) -> Result<Answer, Failure> {
        let subsystem = self.shared_subsystem(&read.subsystem)?;
        let pause_state = subsystem.pauses().state(Nsid(read.nsid)).into();
        Ok(Answer::new(reply::Body::NamespaceReport(NamespaceReport { pause_state })))
    }

    fn shared_subsystem(&self, name: &str) -> Result<Arc<SharedSubsystem>, Failure> {
        let known = self.lock().subsystems.get(name).map(|known| Arc::clone(&known.shared));
        known.ok_or_else(|| Failure::not_found(format!("there is no subsystem {name}")))
    }
}

/// 0 is no end.
fn longest(nanoseconds: u64) -> Option<Duration> {
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

fn missing(error: SubsystemError) -> Failure {
    Failure::not_found(error.to_string())
}
