//! Health and reflection, by their standard clients.

use crate::support::Host;
use std::collections::BTreeSet;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

const SERVICES: [&str; 14] = [
    "opi_api.storage.v1.AioVolumeService",
    "opi_api.storage.v1.FrontendNvmeService",
    "opi_api.storage.v1.MallocVolumeService",
    "opi_api.storage.v1.NullVolumeService",
    "vireo.v1.ControllerService",
    "vireo.v1.EventService",
    "vireo.v1.FaultService",
    "vireo.v1.NamespaceService",
    "vireo.v1.StatsService",
    "vireo.v1.SubsystemService",
    "vireo.v1.TargetService",
    "vireo.v1.TraceService",
    "vireo.v1.VolumeService",
    "vireo.v1.WorkerService",
];

#[tokio::test]
async fn every_service_says_that_it_serves() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut health = HealthClient::new(managed.channel.clone());
    for service in SERVICES.into_iter().chain([""]) {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "vireo.v1.Nothing".into() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn both_reflections_tell_of_every_service() {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let host = Host::start();
    let managed = host.reached().await;
    let ask = |message| v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(managed.channel.clone());
    let requests = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("vireo.v1.Volume".into())),
    ]);
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    let listed = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed else { panic!("{listed:?}") };
    let names: BTreeSet<String> = listed.service.into_iter().map(|s| s.name).collect();
    for service in SERVICES {
        assert!(names.contains(service), "{service} in {names:?}");
    }
    let file = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(file)) = file else { panic!("{file:?}") };
    assert!(!file.file_descriptor_proto.is_empty());

    use v1alpha::server_reflection_request::MessageRequest as Alpha;
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(managed.channel.clone());
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(Alpha::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().unwrap().message_response.is_some());
}
