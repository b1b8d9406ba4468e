//! Workers.

use super::{Api, error, page, time};
use crate::object::Object;
use crate::status;
use service::config::{self, Kind};
use std::collections::BTreeMap;
use tonic::{Request, Response, Status};
use vireo_api::v1::worker_service_server::WorkerService;
use vireo_api::v1::{GetWorkerRequest, ListWorkersRequest, ListWorkersResponse, Worker};
use vireo_proto::handoff::ProcessStatus;

#[tonic::async_trait]
impl WorkerService for Api {
    async fn get_worker(
        &self,
        request: Request<GetWorkerRequest>,
    ) -> Result<Response<Worker>, Status> {
        let name = request.into_inner().name;
        let id = name.strip_prefix("workers/").filter(|id| !id.is_empty() && !id.contains('/'));
        let id = id.ok_or_else(|| {
            error::invalid("name", format!("\"{name}\" is not like workers/{{worker}}"))
        })?;
        let config = self.manager.config();
        let found = config.worker(id).ok_or_else(|| error::missing(&name))?;
        let processes = self.worker_processes().await;
        Ok(Response::new(worker(found, processes.get(id))))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let request = request.into_inner();
        let config = self.manager.config();
        let found = config.workers.iter().map(|worker| (worker.name.clone(), worker)).collect();
        let (found, next_page_token) = page::page(found, request.page_size, &request.page_token)?;
        let processes = self.worker_processes().await;
        let show = |found: &config::Worker| worker(found, processes.get(&found.name));
        let workers = found.into_iter().map(show).collect();
        Ok(Response::new(ListWorkersResponse { workers, next_page_token }))
    }
}

impl Api {
    async fn worker_processes(&self) -> BTreeMap<String, ProcessStatus> {
        let processes = status::of_kind(self.manager.peers(), Kind::Worker).await;
        processes.into_iter().map(|process| (process.name.clone(), process)).collect()
    }
}

fn worker(found: &config::Worker, process: Option<&ProcessStatus>) -> Worker {
    // One that does not answer is shown by the others as not there, without a process identifier.
    let process = process.filter(|process| process.pid != 0);
    let controllers = process.map(|process| {
        let attached = process.items.iter().filter(|item| item.kind == "controller");
        attached.map(|item| Object::Controller(item.name.clone()).to_string()).collect()
    });
    Worker {
        name: format!("workers/{}", found.name),
        core: found.core,
        tenant: found.tenant.clone(),
        max_nap: Some(time::duration(found.max_nap)),
        running: process.is_some(),
        pid: process.map_or(0, |process| process.pid),
        version: process.map(|process| process.version.clone()).unwrap_or_default(),
        controllers: controllers.unwrap_or_default(),
    }
}
