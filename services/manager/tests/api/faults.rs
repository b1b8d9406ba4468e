//! Faults on volumes, as far as the manager has to do with them.

use crate::support::{Host, told};
use tonic::Code;
use vireo_api::v1::fault_service_client::FaultServiceClient;
use vireo_api::v1::{
    CreateFaultRequest, DeleteFaultRequest, Fault, FaultStatus, GetFaultRequest, ListFaultsRequest,
    fault,
};

const API: (&str, &str) = ("", "[api]\nfault_injection = true\n");

fn create(parent: &str, id: &str) -> CreateFaultRequest {
    let fault = Fault {
        condition: Some(fault::Condition::Next(1)),
        effect: Some(fault::Effect::Status(FaultStatus::MediaError.into())),
        ..Fault::default()
    };
    CreateFaultRequest {
        parent: parent.into(),
        fault_id: id.into(),
        fault: Some(fault),
        validate_only: false,
    }
}

#[tokio::test]
async fn faults_are_off_unless_the_configuration_allows_them() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut faults = FaultServiceClient::new(managed.channel.clone());
    let off = (Code::FailedPrecondition, "FAULTS_OFF".to_owned());
    let status = faults.create_fault(create("volumes/mem0", "a")).await.unwrap_err();
    assert_eq!(told(&status), off);
    let list = ListFaultsRequest { parent: "volumes/-".into() };
    assert_eq!(told(&faults.list_faults(list).await.unwrap_err()), off);
    let get = GetFaultRequest { name: "volumes/mem0/faults/a".into() };
    assert_eq!(told(&faults.get_fault(get).await.unwrap_err()), off);
    let delete = DeleteFaultRequest { name: "volumes/-/faults/-".into(), ..Default::default() };
    assert_eq!(told(&faults.delete_fault(delete).await.unwrap_err()), off);
}

#[tokio::test]
async fn a_worker_that_does_not_take_a_fault_is_told_of() {
    let host = Host::start();
    host.write(&[API]);
    let managed = host.reached().await;
    let mut faults = FaultServiceClient::new(managed.channel.clone());
    let volume = managed.manager.config().bdevs[0].name.clone();
    let parent = format!("volumes/{volume}");
    for (parent, id, code) in [
        ("volumes/none", "a", Code::NotFound),
        ("volumes", "a", Code::InvalidArgument),
        (&*parent, "a/b", Code::InvalidArgument),
    ] {
        let status = faults.create_fault(create(parent, id)).await.unwrap_err();
        assert_eq!(status.code(), code, "{parent} {id}: {status:?}");
    }
    let check = CreateFaultRequest { validate_only: true, ..create(&parent, "a") };
    let shown = faults.create_fault(check).await.unwrap().into_inner();
    assert_eq!(shown.name, format!("{parent}/faults/a"));
    // The worker of this host is one that knows of no faults.
    let status = faults.create_fault(create(&parent, "a")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("worker w0"), "{status:?}");
    let list = ListFaultsRequest { parent: "volumes/-".into() };
    let left = faults.list_faults(list).await.unwrap().into_inner();
    assert!(left.faults.is_empty(), "what is not in force everywhere is taken back");
    let delete = DeleteFaultRequest { name: format!("{parent}/faults/a"), ..Default::default() };
    assert_eq!(faults.delete_fault(delete).await.unwrap_err().code(), Code::NotFound);
}
