//! The target as a whole.

use super::guard::Audited;
use super::{Api, error};
use tonic::{Request, Response, Status};
use vireo_api::v1::target_service_server::TargetService;
use vireo_api::v1::{
    GetTargetRequest, Process, ProcessKind, ReloadTargetRequest, ReloadTargetResponse, Target,
};
use vireo_proto::handoff::ProcessStatus;

const NAME: &str = "target";

#[tonic::async_trait]
impl TargetService for Api {
    async fn get_target(
        &self,
        request: Request<GetTargetRequest>,
    ) -> Result<Response<Target>, Status> {
        named(&request.into_inner().name)?;
        let status = self.manager.host_status().await;
        let config = self.manager.config();
        Ok(Response::new(Target {
            name: NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: status.ready,
            failures: status.failures,
            processes: status.processes.into_iter().map(process).collect(),
            runtime_dir: config.runtime_dir.to_string_lossy().into_owned(),
            state_dir: config.state_dir.to_string_lossy().into_owned(),
        }))
    }

    async fn reload_target(
        &self,
        request: Request<ReloadTargetRequest>,
    ) -> Result<Response<ReloadTargetResponse>, Status> {
        let request = request.into_inner();
        named(&request.name)?;
        let result = self.manager.reload(request.validate_only).await;
        let result = result.map_err(|failure| error::failure(&failure))?;
        let answer = ReloadTargetResponse { changes: result.changes, failures: result.failures };
        let mut response = Response::new(answer);
        response.extensions_mut().insert(Audited(NAME.to_owned()));
        Ok(response)
    }
}

fn named(name: &str) -> Result<(), Status> {
    if name == NAME {
        return Ok(());
    }
    Err(error::invalid("name", format!("\"{name}\" is not \"{NAME}\"")))
}

fn process(status: ProcessStatus) -> Process {
    let kind = match status.kind.as_str() {
        "frontend" => ProcessKind::Frontend,
        "worker" => ProcessKind::Worker,
        "backend" => ProcessKind::Backend,
        "manager" => ProcessKind::Manager,
        _ => ProcessKind::Unspecified,
    };
    Process {
        kind: kind.into(),
        process_name: status.name,
        running: status.pid != 0,
        ready: status.ready,
        pid: status.pid,
        version: status.version,
        message: status.message,
    }
}
