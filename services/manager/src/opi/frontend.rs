//! The service of subsystems, controllers and namespaces; what its methods do stands with each kind.

use crate::grpc::Api;
use tonic::{Request, Response, Status};
use vireo_api::opi::frontend_nvme_service_server::FrontendNvmeService;
use vireo_api::opi::{
    CreateNvmeControllerRequest, CreateNvmeNamespaceRequest, CreateNvmeSubsystemRequest,
    DeleteNvmeControllerRequest, DeleteNvmeNamespaceRequest, DeleteNvmeSubsystemRequest,
    GetNvmeControllerRequest, GetNvmeNamespaceRequest, GetNvmeSubsystemRequest,
    ListNvmeControllersRequest, ListNvmeControllersResponse, ListNvmeNamespacesRequest,
    ListNvmeNamespacesResponse, ListNvmeSubsystemsRequest, ListNvmeSubsystemsResponse,
    NvmeController, NvmeNamespace, NvmeSubsystem, StatsNvmeControllerRequest,
    StatsNvmeControllerResponse, StatsNvmeNamespaceRequest, StatsNvmeNamespaceResponse,
    StatsNvmeSubsystemRequest, StatsNvmeSubsystemResponse, UpdateNvmeControllerRequest,
    UpdateNvmeNamespaceRequest, UpdateNvmeSubsystemRequest,
};

#[tonic::async_trait]
impl FrontendNvmeService for Api {
    async fn create_nvme_subsystem(
        &self,
        request: Request<CreateNvmeSubsystemRequest>,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        self.opi_create_subsystem(request.into_inner()).await
    }

    async fn delete_nvme_subsystem(
        &self,
        request: Request<DeleteNvmeSubsystemRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.opi_delete_subsystem(&request.name, request.allow_missing).await
    }

    async fn update_nvme_subsystem(
        &self,
        request: Request<UpdateNvmeSubsystemRequest>,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        self.opi_update_subsystem(request.into_inner()).await
    }

    async fn list_nvme_subsystems(
        &self,
        request: Request<ListNvmeSubsystemsRequest>,
    ) -> Result<Response<ListNvmeSubsystemsResponse>, Status> {
        self.opi_list_subsystems(&request.into_inner())
    }

    async fn get_nvme_subsystem(
        &self,
        request: Request<GetNvmeSubsystemRequest>,
    ) -> Result<Response<NvmeSubsystem>, Status> {
        self.opi_get_subsystem(&request.into_inner().name)
    }

    async fn stats_nvme_subsystem(
        &self,
        request: Request<StatsNvmeSubsystemRequest>,
    ) -> Result<Response<StatsNvmeSubsystemResponse>, Status> {
        let stats = self.opi_subsystem_stats(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeSubsystemResponse { stats: Some(stats) }))
    }

    async fn create_nvme_controller(
        &self,
        request: Request<CreateNvmeControllerRequest>,
    ) -> Result<Response<NvmeController>, Status> {
        self.opi_create_controller(request.into_inner()).await
    }

    async fn delete_nvme_controller(
        &self,
        request: Request<DeleteNvmeControllerRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.opi_delete_controller(&request.name, request.allow_missing).await
    }

    async fn update_nvme_controller(
        &self,
        request: Request<UpdateNvmeControllerRequest>,
    ) -> Result<Response<NvmeController>, Status> {
        self.opi_update_controller(request.into_inner()).await
    }

    async fn list_nvme_controllers(
        &self,
        request: Request<ListNvmeControllersRequest>,
    ) -> Result<Response<ListNvmeControllersResponse>, Status> {
        self.opi_list_controllers(request.into_inner()).await
    }

    async fn get_nvme_controller(
        &self,
        request: Request<GetNvmeControllerRequest>,
    ) -> Result<Response<NvmeController>, Status> {
        self.opi_get_controller(&request.into_inner().name).await
    }

    async fn stats_nvme_controller(
        &self,
        request: Request<StatsNvmeControllerRequest>,
    ) -> Result<Response<StatsNvmeControllerResponse>, Status> {
        let stats = self.opi_controller_stats(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeControllerResponse { stats: Some(stats) }))
    }

    async fn create_nvme_namespace(
        &self,
        request: Request<CreateNvmeNamespaceRequest>,
    ) -> Result<Response<NvmeNamespace>, Status> {
        self.opi_create_namespace(request.into_inner()).await
    }

    async fn delete_nvme_namespace(
        &self,
        request: Request<DeleteNvmeNamespaceRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        self.opi_delete_namespace(&request.name, request.allow_missing).await
    }

    async fn update_nvme_namespace(
        &self,
        request: Request<UpdateNvmeNamespaceRequest>,
    ) -> Result<Response<NvmeNamespace>, Status> {
        self.opi_update_namespace(request.into_inner()).await
    }

    async fn list_nvme_namespaces(
        &self,
        request: Request<ListNvmeNamespacesRequest>,
    ) -> Result<Response<ListNvmeNamespacesResponse>, Status> {
        self.opi_list_namespaces(&request.into_inner())
    }

    async fn get_nvme_namespace(
        &self,
        request: Request<GetNvmeNamespaceRequest>,
    ) -> Result<Response<NvmeNamespace>, Status> {
        self.opi_get_namespace(&request.into_inner().name)
    }

    async fn stats_nvme_namespace(
        &self,
        request: Request<StatsNvmeNamespaceRequest>,
    ) -> Result<Response<StatsNvmeNamespaceResponse>, Status> {
        let stats = self.opi_namespace_stats(&request.into_inner().name).await?;
        Ok(Response::new(StatsNvmeNamespaceResponse { stats: Some(stats) }))
    }
}
