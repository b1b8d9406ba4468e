//! Small files that survive a restart: written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces the file at `path`: the new content is on the disk before it has the name, and the name before this
/// returns. A crash leaves the old or the new content. One writer at a time.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = directory.join(name);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written.and_then(|()| fs::rename(&new, path)) {
        // A full disk must not stay full for our sake.
        fs::remove_file(&new).ok();
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// The file's content; `None` if there is none.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_litter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
        // A directory in the place: the rename fails.
        let taken = directory.path().join("taken");
        fs::create_dir_all(taken.join("x")).unwrap();
        assert!(write(&taken, b"three").is_err());
        assert!(write(&directory.path().join("absent/state"), b"four").is_err());
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["state", "taken"]);
    }
}
