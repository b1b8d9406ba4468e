//! Limits of namespaces and controllers, and pauses.

use crate::support::{Host, told};
use crate::targets::{controller, namespace};
use crate::volumes::{create, malloc};
use prost_types::{Duration as PbDuration, FieldMask};
use std::collections::BTreeMap;
use tonic::Code;
use tonic_types::StatusExt;
use vireo_api::v1::{
    Controller, GetControllerRequest, GetNamespaceRequest, Limits, ListControllersRequest,
    ListNamespacesRequest, Namespace, PauseControllerRequest, PauseNamespaceRequest, PauseState,
    ReloadTargetRequest, ResumeControllerRequest, ResumeNamespaceRequest, UpdateControllerRequest,
    UpdateNamespaceRequest,
};
use vireo_proto::handoff;

fn iops(limit: i64) -> Limits {
    Limits { iops: Some(limit), ..Limits::default() }
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() })
}

fn on_namespace(name: &str, limits: Option<Limits>, paths: &[&str]) -> UpdateNamespaceRequest {
    UpdateNamespaceRequest {
        namespace: Some(Namespace { name: name.into(), limits, ..Namespace::default() }),
        update_mask: mask(paths),
        ..Default::default()
    }
}

fn on_controller(name: &str, limits: Option<Limits>, paths: &[&str]) -> UpdateControllerRequest {
    UpdateControllerRequest {
        controller: Some(Controller { name: name.into(), limits, ..Controller::default() }),
        update_mask: mask(paths),
        ..Default::default()
    }
}

#[tokio::test]
async fn limits_are_set_changed_and_taken_away_while_guests_run() {
    let host = Host::start();
    let managed = host.reached().await;
    let (mut namespaces, mut controllers) = (managed.namespaces(), managed.controllers());
    managed.volumes().create_volume(create("v1", malloc(1 << 20))).await.unwrap();
    let mut wanted = namespace("s0", "2", "v1");
    wanted.namespace.as_mut().unwrap().limits = Some(iops(500));
    let made = namespaces.create_namespace(wanted).await.unwrap().into_inner();
    assert_eq!(made.limits, Some(iops(500)));
    controllers.create_controller(controller("vm1", "s0")).await.unwrap();
    let told = |name: &str| host.frontend.limits.lock().unwrap().get(name).cloned();
    assert_eq!(told("s0/2"), Some(handoff::Limits { iops: 500, ..Default::default() }));
    assert_eq!(told("s0/1"), None);

    let name = "subsystems/s0/namespaces/2";
    let more = Limits { bandwidth: Some(1 << 20), ..iops(700) };
    let only = on_namespace(name, Some(more), &["limits.bandwidth"]);
    let after = namespaces.update_namespace(only).await.unwrap().into_inner();
    assert_eq!(after.limits, Some(Limits { iops: Some(500), ..more }));
    assert_ne!(after.etag, made.etag);
    let tried =
        UpdateNamespaceRequest { validate_only: true, ..on_namespace(name, None, &["limits"]) };
    assert_eq!(namespaces.update_namespace(tried).await.unwrap().into_inner().limits, None);
    let expected = handoff::Limits { iops: 500, bandwidth: 1 << 20, ..Default::default() };
    assert_eq!(told("s0/2"), Some(expected), "nothing was changed");
    let mut stale = on_namespace(name, None, &["*"]);
    stale.namespace.as_mut().unwrap().etag = made.etag;
    let status = namespaces.update_namespace(stale).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    namespaces.update_namespace(on_namespace(name, None, &["limits"])).await.unwrap();
    assert_eq!(told("s0/2"), None);

    let limited = on_controller("controllers/vm1", Some(iops(9)), &[]);
    let after = controllers.update_controller(limited).await.unwrap().into_inner();
    assert_eq!(after.limits, Some(iops(9)));
    assert_eq!(told("vm1"), Some(handoff::Limits { iops: 9, ..Default::default() }));
    let get = GetControllerRequest { name: "controllers/vm1".into() };
    assert_eq!(controllers.get_controller(get).await.unwrap().into_inner().limits, Some(iops(9)));
}

#[tokio::test]
async fn limits_outlive_the_manager_and_follow_the_file() {
    let host = Host::start();
    let managed = host.reached().await;
    managed.controllers().create_controller(controller("vm1", "s0")).await.unwrap();
    let limited = on_controller("controllers/vm1", Some(iops(9)), &["limits"]);
    managed.controllers().update_controller(limited).await.unwrap();
    managed.kill().await;

    let managed = host.reached().await;
    let get = GetControllerRequest { name: "controllers/vm1".into() };
    let found = managed.controllers().get_controller(get).await.unwrap().into_inner();
    assert_eq!(found.limits, Some(iops(9)));
    host.write(&[("bdev = \"mem0\"\n", "bdev = \"mem0\"\nlimits = { write_iops = 3 }\n")]);
    let reload = ReloadTargetRequest { name: "target".into(), validate_only: false };
    let result = managed.target().reload_target(reload).await.unwrap().into_inner();
    assert_eq!(result.changes, ["limits of namespace 1 of s0 changed from none to write_iops 3"]);
    managed.reached().await;
    let expected: BTreeMap<_, _> = [
        ("s0/1".to_owned(), handoff::Limits { write_iops: 3, ..Default::default() }),
        ("vm1".to_owned(), handoff::Limits { iops: 9, ..Default::default() }),
    ]
    .into();
    assert_eq!(*host.frontend.limits.lock().unwrap(), expected);
    let get = GetNamespaceRequest { name: "subsystems/s0/namespaces/1".into() };
    let found = managed.namespaces().get_namespace(get).await.unwrap().into_inner();
    assert_eq!(found.limits, Some(Limits { write_iops: Some(3), ..Limits::default() }));
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_by_their_field() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut controllers = managed.controllers();
    controllers.create_controller(controller("vm1", "s0")).await.unwrap();
    let low = Limits { read_bandwidth: Some(1), ..Limits::default() };
    for (limits, field) in [
        (iops(0), "controller.limits.iops"),
        (iops(-1), "controller.limits.iops"),
        (iops(i64::MIN), "controller.limits.iops"),
        (iops(10_000_001), "controller.limits.iops"),
        (iops(i64::MAX), "controller.limits.iops"),
        (low, "controller.limits.read_bandwidth"),
    ] {
        let wanted = on_controller("controllers/vm1", Some(limits), &["limits"]);
        let status = controllers.update_controller(wanted).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_error_details().bad_request().unwrap().clone().field_violations;
        assert_eq!(violations[0].field, field, "{status:?}");
    }
    for path in ["path", "limits.iopss", "workers", "limits.", "name"] {
        let wanted = on_controller("controllers/vm1", Some(iops(5)), &[path]);
        let status = controllers.update_controller(wanted).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "INVALID_FIELD".into()), "{path}");
        let name = "subsystems/s0/namespaces/1";
        let wanted = on_namespace(name, Some(iops(5)), &[path]);
        let status = managed.namespaces().update_namespace(wanted).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "INVALID_FIELD".into()), "{path}");
    }
    let mut other = on_controller("controllers/vm1", Some(iops(5)), &["*"]);
    other.controller.as_mut().unwrap().queues = 3;
    let status = controllers.update_controller(other).await.unwrap_err();
    assert_eq!(told(&status), (Code::FailedPrecondition, "IN_THE_WAY".into()));
    for (name, expected) in [
        ("controllers/vm0", (Code::FailedPrecondition, "OF_CONFIGURATION_FILE")),
        ("controllers/vm9", (Code::NotFound, "NOT_FOUND")),
        ("volumes/mem0", (Code::InvalidArgument, "INVALID_FIELD")),
    ] {
        let wanted = on_controller(name, Some(iops(5)), &[]);
        let status = controllers.update_controller(wanted).await.unwrap_err();
        assert_eq!(told(&status), (expected.0, expected.1.to_owned()), "{name}");
    }
    assert!(host.frontend.limits.lock().unwrap().is_empty(), "nothing was limited");
}

fn pause(name: &str) -> PauseControllerRequest {
    PauseControllerRequest { name: name.into(), ..Default::default() }
}

#[tokio::test]
async fn a_controller_is_paused_and_goes_on() {
    let host = Host::start();
    let managed = host.reached().await;
    let mut controllers = managed.controllers();
    *host.frontend.pauses_to.lock().unwrap() = handoff::PauseState::Paused;
    let wanted = PauseControllerRequest {
        timeout: Some(PbDuration { seconds: 2, nanos: 0 }),
        max_pause: Some(PbDuration { seconds: 30, nanos: 0 }),
        ..pause("controllers/vm0")
    };
    let tried = PauseControllerRequest { validate_only: true, ..wanted.clone() };
    controllers.pause_controller(tried).await.unwrap();
    assert!(host.frontend.pauses.lock().unwrap().is_empty(), "it was only checked");
    for _ in 0..2 {
        let paused = controllers.pause_controller(wanted.clone()).await.unwrap().into_inner();
        assert_eq!(paused.pause_state(), PauseState::Paused);
    }
    let asked = host.frontend.pauses.lock().unwrap().clone();
    let expected = handoff::PauseEndpoint {
        endpoint: "vm0".into(),
        settle_ns: 2_000_000_000,
        longest_ns: 30_000_000_000,
    };
    assert_eq!(asked, [expected.clone(), expected]);
    let listed = controllers.list_controllers(ListControllersRequest::default()).await.unwrap();
    let states: Vec<_> = listed.into_inner().controllers.iter().map(|c| c.pause_state()).collect();
    assert_eq!(states, [PauseState::Paused]);
    let resume = ResumeControllerRequest { name: "controllers/vm0".into(), validate_only: false };
    for _ in 0..2 {
        let running = controllers.resume_controller(resume.clone()).await.unwrap().into_inner();
        assert_eq!(running.pause_state(), PauseState::Running);
    }
    let listed = controllers.list_controllers(ListControllersRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().controllers[0].pause_state(), PauseState::Running);
}

#[tokio::test]
async fn a_pause_that_does_not_come_about_is_told() {
    let mut host = Host::start();
    let managed = host.reached().await;
    let mut controllers = managed.controllers();
    // The frontend took it back.
    *host.frontend.pauses_to.lock().unwrap() = handoff::PauseState::Running;
    let status = controllers.pause_controller(pause("controllers/vm0")).await.unwrap_err();
    assert_eq!(told(&status), (Code::DeadlineExceeded, "IN_FLIGHT".into()));
    let duration = |seconds, nanos| Some(PbDuration { seconds, nanos });
    for (wrong, field) in [
        (
            PauseControllerRequest { timeout: duration(61, 0), ..pause("controllers/vm0") },
            "timeout",
        ),
        (
            PauseControllerRequest { timeout: duration(-1, 0), ..pause("controllers/vm0") },
            "timeout",
        ),
        (
            PauseControllerRequest { max_pause: duration(0, 5), ..pause("controllers/vm0") },
            "max_pause",
        ),
        (pause("volumes/mem0"), "name"),
    ] {
        let status = controllers.pause_controller(wrong).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "INVALID_FIELD".into()));
        assert!(status.message().starts_with(field), "{status:?}");
    }
    let status = controllers.pause_controller(pause("controllers/vm9")).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, "NOT_FOUND".into()));
    host.kill("f0").await;
    let status = controllers.pause_controller(pause("controllers/vm0")).await.unwrap_err();
    assert_eq!(told(&status), (Code::Unavailable, "PROCESS_UNAVAILABLE".into()));
    let get = GetControllerRequest { name: "controllers/vm0".into() };
    let found = controllers.get_controller(get).await.unwrap().into_inner();
    assert_eq!(found.pause_state(), PauseState::Unspecified);
}

#[tokio::test]
async fn a_namespace_is_paused_and_goes_on() {
    const NAME: &str = "subsystems/s0/namespaces/1";
    let mut host = Host::start();
    let managed = host.reached().await;
    let mut namespaces = managed.namespaces();
    *host.frontend.pauses_to.lock().unwrap() = handoff::PauseState::Paused;
    let get = GetNamespaceRequest { name: NAME.into() };
    let found = namespaces.get_namespace(get.clone()).await.unwrap().into_inner();
    assert_eq!(found.pause_state(), PauseState::Running);
    let wanted = PauseNamespaceRequest {
        name: NAME.into(),
        timeout: Some(PbDuration { seconds: 2, nanos: 0 }),
        max_pause: Some(PbDuration { seconds: 30, nanos: 0 }),
        etag: found.etag.clone(),
        validate_only: false,
    };
    let tried = PauseNamespaceRequest { validate_only: true, ..wanted.clone() };
    namespaces.pause_namespace(tried).await.unwrap();
    let stale = PauseNamespaceRequest { etag: "0".into(), ..wanted.clone() };
    let status = namespaces.pause_namespace(stale).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(host.frontend.namespace_pauses.lock().unwrap().is_empty(), "it was only checked");
    for _ in 0..2 {
        let paused = namespaces.pause_namespace(wanted.clone()).await.unwrap().into_inner();
        assert_eq!((paused.pause_state(), &paused.etag), (PauseState::Paused, &found.etag));
    }
    let asked = host.frontend.namespace_pauses.lock().unwrap().clone();
    let expected = handoff::PauseNamespace {
        subsystem: "s0".into(),
        nsid: 1,
        settle_ns: 2_000_000_000,
        longest_ns: 30_000_000_000,
    };
    assert_eq!(asked, [expected.clone(), expected]);
    let all = ListNamespacesRequest { parent: "subsystems/-".into(), ..Default::default() };
    let listed = namespaces.list_namespaces(all.clone()).await.unwrap().into_inner();
    assert_eq!(listed.namespaces[0].pause_state(), PauseState::Paused);
    let resume = ResumeNamespaceRequest { name: NAME.into(), validate_only: false };
    for _ in 0..2 {
        let running = namespaces.resume_namespace(resume.clone()).await.unwrap().into_inner();
        assert_eq!(running.pause_state(), PauseState::Running);
    }
    let listed = namespaces.list_namespaces(all).await.unwrap().into_inner();
    assert_eq!(listed.namespaces[0].pause_state(), PauseState::Running);

    // The frontend took it back.
    *host.frontend.pauses_to.lock().unwrap() = handoff::PauseState::Running;
    let status = namespaces.pause_namespace(wanted.clone()).await.unwrap_err();
    assert_eq!(told(&status), (Code::DeadlineExceeded, "IN_FLIGHT".into()));
    let duration = |seconds, nanos| Some(PbDuration { seconds, nanos });
    let named = |name: &str| PauseNamespaceRequest { name: name.into(), ..Default::default() };
    for (wrong, field) in [
        (PauseNamespaceRequest { timeout: duration(61, 0), ..wanted.clone() }, "timeout"),
        (PauseNamespaceRequest { max_pause: duration(0, 5), ..wanted.clone() }, "max_pause"),
        (named("controllers/vm0"), "name"),
    ] {
        let status = namespaces.pause_namespace(wrong).await.unwrap_err();
        assert_eq!(told(&status), (Code::InvalidArgument, "INVALID_FIELD".into()));
        assert!(status.message().starts_with(field), "{status:?}");
    }
    let status = namespaces.pause_namespace(named("subsystems/s0/namespaces/9")).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, "NOT_FOUND".into()));
    host.kill("f0").await;
    let status = namespaces.pause_namespace(named(NAME)).await.unwrap_err();
    assert_eq!(told(&status), (Code::Unavailable, "PROCESS_UNAVAILABLE".into()));
    let found = namespaces.get_namespace(get).await.unwrap().into_inner();
    assert_eq!(found.pause_state(), PauseState::Unspecified);
}
