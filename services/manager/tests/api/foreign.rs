//! A client that we did not write: `buf curl`, which learns the API by reflection.

use crate::support::Host;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// What one call may take: buf is started by node.
const BOUND: Duration = Duration::from_secs(60);

/// Where `make tools-buf` puts it, or wherever it is.
fn buf() -> Option<PathBuf> {
    let ours =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/node_modules/.bin/buf");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).map(|directory| directory.join("buf"));
    [ours].into_iter().chain(places).find(|place| place.is_file())
}

async fn call(buf: &Path, socket: &Path, arguments: &[&str]) -> Output {
    let command = Command::new(buf)
        .arg("curl")
        .arg("--unix-socket")
        .arg(socket)
        .args(["--http2-prior-knowledge", "--protocol", "grpc"])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(BOUND, command).await.expect("buf ends").unwrap()
}

#[tokio::test]
async fn buf_curl_finds_calls_and_is_refused_in_words() {
    let Some(buf) = buf() else {
        // `make test` brings it along; a developer's plain `cargo test` may be without.
        assert!(std::env::var_os("CI").is_none(), "buf is not installed: make tools-buf");
        eprintln!("buf is not installed (make tools-buf): nothing tested");
        return;
    };
    let host = Host::start();
    let _managed = host.reached().await;
    let socket = host.path("api.sock");
    let listed = call(&buf, &socket, &["--list-methods", "http://localhost"]).await;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(text.contains("vireo.v1.VolumeService/CreateVolume"), "{text}{listed:?}");
    let create = "{\"volumeId\":\"v1\",\"volume\":{\"malloc\":{},\"sizeBytes\":\"1048576\"}}";
    let url = "http://localhost/vireo.v1.VolumeService/CreateVolume";
    let made = call(&buf, &socket, &["-d", create, url]).await;
    let answer: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&answer["name"], &answer["state"]), (&"volumes/v1".into(), &"STATE_READY".into()));
    let again = call(&buf, &socket, &["-d", create, url]).await;
    assert!(!again.status.success());
    let error: serde_json::Value = serde_json::from_slice(&again.stderr).unwrap();
    assert_eq!(error["code"], "already_exists", "{error}");
    assert!(error.to_string().contains("volumes/v1 is there already"), "{error}");
}
