//! The steps by which a file is replaced, so that a test can end a manager between any two of them.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What replacing a file needs of a file system. Every method either did what it says or gives the kernel's error;
/// after an error the caller goes on with [`FileSystem::remove`] alone.
pub trait FileSystem: Debug + Send {
    /// Makes an empty file for this user and group, or empties the one that is there.
    fn create(&mut self, path: &Path) -> io::Result<File>;
    /// Writes all of `content`.
    fn write(&mut self, file: &mut File, content: &[u8]) -> io::Result<()>;
    /// Makes a file's content outlive a crash of the machine.
    fn sync(&mut self, file: &File) -> io::Result<()>;
    /// Gives a file another name, which may be another file's.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes a directory's names outlive a crash of the machine.
    fn sync_directory(&mut self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The machine's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl FileSystem for Disk {
    fn create(&mut self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)
    }

    fn write(&mut self, file: &mut File, content: &[u8]) -> io::Result<()> {
        file.write_all(content)
    }

    fn sync(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Replaces the file at `path`: the new content is on the disk before it has the name, and the name before this returns.
/// A crash leaves the old or the new content. One writer at a time.
///
/// # Errors
/// The kernel's. The old content stands, unless the last step failed: then the new one does, but may not outlive a crash
/// of the machine.
pub fn replace(
    files: &mut dyn FileSystem,
    directory: &Path,
    path: &Path,
    content: &[u8],
) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = files.create(&new)?;
    let written = files
        .write(&mut file, content)
        .and_then(|()| files.sync(&file))
        .and_then(|()| files.rename(&new, path));
    if let Err(error) = written {
        // A full disk must not stay full for our sake.
        files.remove(&new).ok();
        return Err(error);
    }
    files.sync_directory(directory)
}
