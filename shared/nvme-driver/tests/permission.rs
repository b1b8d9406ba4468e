//! A socket that may not be opened. In a process of its own: it gives its rights up.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use nix::unistd::{Uid, geteuid, seteuid};
use nvme_driver::{ConnectError, Controller};

#[test]
fn a_socket_without_permission_is_said_so_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cntrl");
    let _listener = UnixListener::bind(&path).unwrap();
    set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    let me = geteuid();
    if me.is_root() {
        // Root may do everything.
        set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        seteuid(Uid::from_raw(65_534)).unwrap();
    }
    let error = Controller::connect(&format!("vfio-user:{}", path.display())).unwrap_err();
    seteuid(me).unwrap();
    assert!(matches!(error, ConnectError::Permission { .. }), "{error}");
    let line = error.to_string();
    assert!(line.contains("run as its owner") && line.lines().count() == 1, "{line}");
}
