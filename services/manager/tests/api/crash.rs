//! A manager that dies at any step of a change, or cannot write: what is wanted afterwards is the old or the new, and the
//! same call again finishes it.

use crate::support::{Host, told};
use crate::volumes::{create, delete, malloc};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tonic::Code;
use vireo_api::v1::{CreateVolumeRequest, ListVolumesRequest};
use vireo_manager::store::file_system::{Disk, FileSystem};

/// A file system on which nothing happens any more after so many steps, as after the death of the process. Writing is
/// two steps, and dies in the middle of the content.
#[derive(Debug)]
struct Dying {
    /// Steps that are left; negative: it never dies.
    left: Arc<AtomicI64>,
    disk: Disk,
}

impl Dying {
    fn step(&self) -> io::Result<()> {
        // Relaxed: one thread counts.
        let left = self.left.load(Ordering::Relaxed);
        match left {
            0 => return Err(io::Error::other("dead")),
            1.. => self.left.store(left - 1, Ordering::Relaxed),
            _ => {}
        }
        Ok(())
    }
}

impl FileSystem for Dying {
    fn create(&mut self, path: &Path) -> io::Result<File> {
        self.step()?;
        self.disk.create(path)
    }

    fn write(&mut self, file: &mut File, content: &[u8]) -> io::Result<()> {
        self.step()?;
        let (first, second) = content.split_at(content.len() / 2);
        self.disk.write(file, first)?;
        self.step()?;
        self.disk.write(file, second)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        self.step()?;
        self.disk.sync(file)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        self.disk.rename(from, to)
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.disk.sync_directory(path)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        self.disk.remove(path)
    }
}

/// A file system that is full as long as it is told to be.
#[derive(Debug)]
struct Full {
    left: Arc<AtomicI64>,
    disk: Disk,
}

impl FileSystem for Full {
    fn create(&mut self, path: &Path) -> io::Result<File> {
        self.disk.create(path)
    }

    fn write(&mut self, file: &mut File, content: &[u8]) -> io::Result<()> {
        if self.left.load(Ordering::Relaxed) == 0 {
            self.disk.write(file, &content[..content.len() / 2])?;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.disk.write(file, content)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        self.disk.sync(file)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        self.disk.sync_directory(path)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
}

#[tokio::test]
async fn a_death_at_any_step_leaves_the_old_or_the_new_and_the_same_call_finishes_it() {
    let request = CreateVolumeRequest { request_id: "r1".into(), ..create("v1", malloc(1 << 20)) };
    let (mut old, mut new) = (0, 0);
    for steps in 0.. {
        let host = Host::start();
        let left = Arc::new(AtomicI64::new(-1));
        let files = Dying { left: Arc::clone(&left), disk: Disk };
        let managed = host.manage_with(Box::new(files)).await;
        managed.reached().await;
        let before = host.state();
        left.store(steps, Ordering::Relaxed);
        let result = managed.volumes().create_volume(request.clone()).await;
        managed.kill().await;
        let survived = result.is_ok();
        if let Err(status) = result {
            assert_eq!(told(&status), (Code::Unavailable, "STATE_NOT_WRITTEN".into()));
        }
        let after = host.state();

        let managed = host.reached().await;
        let listed = managed.volumes().list_volumes(ListVolumesRequest::default()).await.unwrap();
        let names: Vec<_> = listed.into_inner().volumes.into_iter().map(|v| v.name).collect();
        if after == before {
            old += 1;
            assert_eq!(names, ["volumes/mem0"], "after {steps} steps");
            assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864"]);
        } else {
            new += 1;
            assert_eq!(names, ["volumes/mem0", "volumes/v1"], "after {steps} steps");
        }
        let made = managed.volumes().create_volume(request.clone()).await.unwrap().into_inner();
        assert_eq!(made.name, "volumes/v1");
        assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864", "v1 1048576"]);
        assert!(!host.path("state/manager.json.new").exists());
        managed.volumes().delete_volume(delete("v1")).await.unwrap();
        if survived {
            break;
        }
        assert!(steps < 20, "a change has few steps");
    }
    assert!(old >= 4 && new >= 2, "{old} deaths left the old, {new} the new");
}

#[tokio::test]
async fn a_full_disk_is_told_and_costs_nothing_that_was_there() {
    let host = Host::start();
    let left = Arc::new(AtomicI64::new(1));
    let files = Full { left: Arc::clone(&left), disk: Disk };
    let managed = host.manage_with(Box::new(files)).await;
    managed.reached().await;
    let before = host.state();
    left.store(0, Ordering::Relaxed);
    let mut volumes = managed.volumes();
    let status = volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap_err();
    assert_eq!(told(&status), (Code::Unavailable, "STATE_NOT_WRITTEN".into()));
    assert!(status.message().contains("manager.json: no storage space"), "{status:?}");
    assert_eq!(host.state(), before);
    assert!(!host.path("state/manager.json.new").exists(), "the disk is as full as before");
    assert_eq!(*host.backend.served.lock().unwrap(), ["mem0 67108864"]);
    left.store(1, Ordering::Relaxed);
    volumes.create_volume(create("v1", malloc(1 << 20))).await.unwrap();
}
