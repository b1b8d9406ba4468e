//! The program itself, killed in the middle of changes.

use crate::support::{BOUND, Host};
use crate::volumes::{create, malloc};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use vireo_api::v1::volume_service_client::VolumeServiceClient;
use vireo_api::v1::{CreateVolumeRequest, ListVolumesRequest};

/// Deaths, each a little later in the change than the one before.
const ROUNDS: u32 = 24;
/// How much later: a change takes a few milliseconds on a quick disk.
const STEP: Duration = Duration::from_micros(400);

/// The program; dies with this.
struct Program(Child);

impl Program {
    fn start(host: &Host) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vireo-manager"));
        command.arg("--config").arg(host.path("vireo.toml"));
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().unwrap())
    }

    /// SIGKILL, and the proof.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be dead already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn volumes(host: &Host) -> VolumeServiceClient<Channel> {
    let start = Instant::now();
    loop {
        match vireo_api::connect(&host.path("api.sock")).await {
            Ok(channel) => return VolumeServiceClient::new(channel),
            Err(error) => assert!(start.elapsed() < BOUND, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn names(client: &mut VolumeServiceClient<Channel>) -> Vec<String> {
    let listed = client.list_volumes(ListVolumesRequest::default()).await.unwrap();
    listed.into_inner().volumes.into_iter().map(|volume| volume.name).collect()
}

#[tokio::test]
async fn a_killed_manager_comes_back_with_the_old_or_the_new() {
    let host = Host::start();
    let mut expected = vec!["volumes/mem0".to_owned()];
    let (mut old, mut new) = (0, 0);
    let mut program = Program::start(&host);
    for round in 0..ROUNDS {
        let name = format!("v{round:02}");
        let request =
            CreateVolumeRequest { request_id: name.clone(), ..create(&name, malloc(1 << 20)) };
        let mut client = volumes(&host).await;
        let call = tokio::spawn({
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.create_volume(request).await }
        });
        tokio::time::sleep(STEP * round).await;
        program.kill();
        // Whatever the caller was told is true afterwards.
        let told = call.await.unwrap().is_ok();
        drop(client);

        program = Program::start(&host);
        client = volumes(&host).await;
        let found = names(&mut client).await;
        let made = format!("volumes/{name}");
        if found.contains(&made) {
            new += 1;
        } else {
            old += 1;
            assert!(!told, "{name} was made, and is gone");
        }
        let answer = client.create_volume(request).await.unwrap().into_inner();
        assert_eq!(answer.name, made);
        expected.push(made);
        assert_eq!(names(&mut client).await, expected);
    }
    eprintln!("{old} deaths left the old, {new} the new");
    assert_eq!(old + new, ROUNDS);
}
