//! Processes that refuse, or are away.

use crate::support::{BOUND, Host, told, until};
use crate::targets::{controller, namespace, subsystem};
use crate::volumes::{create, delete, malloc};
use std::time::Duration;
use tonic::Code;
use vireo_api::v1::{
    CreateVolumeRequest, EventKind, GetVolumeRequest, State, UpdateVolumeRequest, Volume,
    WatchEventsRequest,
};

fn get(id: &str) -> GetVolumeRequest {
    GetVolumeRequest { name: format!("volumes/{id}") }
}

#[tokio::test]
async fn of_what_a_process_refuses_nothing_is_left() {
    let host = Host::start();
    let managed = host.reached().await;
    let refuse = |object: &str| (object.to_owned(), "no memory".to_owned());
    *host.backend.failures.lock().unwrap() = [refuse("bdev v1")].into();
    *host.frontend.failures.lock().unwrap() =
        [refuse("subsystem s1"), refuse("namespace 2 of subsystem s0"), refuse("endpoint vm1")]
            .into();
    let request = CreateVolumeRequest { request_id: "r1".into(), ..create("v1", malloc(1 << 20)) };
    let refused = [
        managed.volumes().create_volume(request.clone()).await.unwrap_err(),
        managed.subsystems().create_subsystem(subsystem("s1")).await.unwrap_err(),
        managed.controllers().create_controller(controller("vm1", "s0")).await.unwrap_err(),
    ];
    for status in refused {
        assert_eq!(told(&status), (Code::FailedPrecondition, "PROCESS_REFUSED".into()));
        assert!(status.message().ends_with("no memory"), "{status:?}");
    }
    managed.volumes().create_volume(create("v2", malloc(1 << 20))).await.unwrap();
    let request2 = namespace("s0", "2", "v2");
    let status = managed.namespaces().create_namespace(request2).await.unwrap_err();
    assert_eq!(told(&status).1, "PROCESS_REFUSED");
    assert_eq!(managed.volumes().get_volume(get("v1")).await.unwrap_err().code(), Code::NotFound);
    managed.reached().await;
    assert!(
        !host.state().contains("volumes/v1") && !host.state().contains("r1"),
        "{}",
        host.state()
    );
    // The same request, once the process can.
    host.backend.failures.lock().unwrap().clear();
    managed.volumes().create_volume(request).await.unwrap();
}

#[tokio::test]
async fn what_grows_too_far_for_its_process_is_shown_as_failed_and_tried_again() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut volumes = managed.volumes();
    volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    *host.backend.failures.lock().unwrap() =
        [("bdev v1".to_owned(), "no memory".to_owned())].into();
    let wanted = Volume { name: "volumes/v1".into(), size_bytes: 2 << 20, ..Volume::default() };
    let update = UpdateVolumeRequest { volume: Some(wanted), ..Default::default() };
    let grown = volumes.update_volume(update).await.unwrap().into_inner();
    assert_eq!((grown.state(), grown.state_message.as_str()), (State::Failed, "no memory"));
    host.backend.failures.lock().unwrap().clear();
    managed.reached().await;
    assert_eq!(volumes.get_volume(get("v1")).await.unwrap().into_inner().state(), State::Ready);
}

#[tokio::test]
async fn what_waits_for_a_process_that_is_away_is_made_when_it_comes() {
    let mut host = Host::start();
    let managed = host.reached().await;
    host.kill("b0").await;
    let mut progress = managed.manager.progress();
    progress.wait_for(|progress| !progress.failures.is_empty()).await.unwrap();
    let mut volumes = managed.volumes();
    let made = volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap().into_inner();
    assert_eq!(made.state(), State::Failed);
    assert_eq!(made.state_message, "backend b0: is not there");
    let backend = std::sync::Arc::clone(&host.backend);
    host.run(backend);
    managed.reached().await;
    until("the backend serves it", || host.backend.served.lock().unwrap().len() == 2).await;
    assert_eq!(volumes.get_volume(get("v1")).await.unwrap().into_inner().state(), State::Ready);
    volumes.delete_volume(delete("v1")).await.unwrap();
}

#[tokio::test]
async fn what_has_begun_is_finished_though_the_caller_leaves() {
    let host = Host::start();
    let managed = host.reached().await;
    let request = WatchEventsRequest { names: vec!["volumes/v1".into()], ..Default::default() };
    let mut events = managed.events().watch_events(request).await.unwrap().into_inner();
    *host.backend.delay.lock().unwrap() = Duration::from_secs(1);
    let mut volumes = managed.volumes();
    let call =
        tokio::spawn(async move { volumes.create_volume(create("v1", malloc(1 << 20))).await });
    until("it is wanted", || host.state().contains("volumes/v1")).await;
    call.abort();
    call.await.unwrap_err();
    let event = tokio::time::timeout(BOUND, events.message()).await.expect("it is told");
    assert_eq!(event.unwrap().unwrap().event.unwrap().kind(), EventKind::Created);
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1048576"]);
}
