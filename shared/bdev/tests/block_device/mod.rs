//! A block device of this machine's: a loop device over a file, where the process may make one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device.
pub struct LoopDevice {
    path: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl LoopDevice {
    /// One of `size` bytes; `None`, and why is said, where there can be none: it takes root, the loop module and
    /// losetup, which containers do not have.
    pub fn new(size: u64) -> Option<Self> {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.as_file().set_len(size).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        let output = match made {
            Ok(output) if output.status.success() => output,
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                eprintln!("skipped: no loop device can be made here: {reason}");
                return None;
            }
            Err(error) => {
                eprintln!("skipped: losetup cannot be run here: {error}");
                return None;
            }
        };
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
        Some(Self { path, _file: file })
    }

    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").arg("--detach").arg(&self.path).status().ok();
    }
}
