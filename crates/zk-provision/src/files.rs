//! Files of the operator's directory: bounded reads, atomic writes, one writer.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::Error;
use crate::report::Action;

/// For everybody to read.
pub(crate) const PUBLIC: u32 = 0o644;
/// For the operator alone.
pub(crate) const SECRET: u32 = 0o600;

/// The file's bytes, or `None` if there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN));
    file.take(MAX_LEN as u64)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() == MAX_LEN {
        return Err(Error::malformed(
            path,
            format_args!("{MAX_LEN} bytes or more"),
        ));
    }
    Ok(Some(bytes))
}

/// What it takes to make the file have these bytes.
pub(crate) fn compare(path: &Path, bytes: &[u8]) -> Result<Action, Error> {
    Ok(match read(path)? {
        Some(old) if old.as_slice() == bytes => Action::Kept,
        Some(_) => Action::Changed,
        None => Action::Created,
    })
}

/// Replaces the file as a whole: after a crash it has the old bytes or the new
/// ones. When this returns they survive a power cut.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let dir = parent(path);
    // One name for each file, so that what a crash leaves is written over by the
    // next run; nobody else is in here, as the directory is locked.
    let temporary = temporary(path);
    let write = || {
        remove_if_there(&temporary)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        // whatever the umask takes away
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// Where a file's new bytes wait for its name.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

/// Takes a file away; `false` if there was none.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    remove_if_there(path)
        .and_then(|was_there| {
            if was_there {
                File::open(parent(path))?.sync_all()?;
            }
            Ok(was_there)
        })
        .map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })
}

fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the directory and its parents, if missing, for the operator alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    let make = || {
        if path.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        File::open(parent(path))?.sync_all()
    };
    make().map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// What lies in a directory, in the order of names.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = || {
        let entries = fs::read_dir(dir)?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    entries().map_err(|source| Error::Io {
        path: dir.to_owned(),
        source,
    })
}

/// Answers whether it is gone; a link to a directory is not removed.
pub(crate) fn remove_dir_if_empty(dir: &Path) -> Result<bool, Error> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(source) => Err(Error::Io {
            path: dir.to_owned(),
            source,
        }),
    }
}

/// Holds the directory until dropped, so that two writers can't lose each
/// other's changes.
pub(crate) fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let io = |source| Error::Io {
        path: path.clone(),
        source,
    };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Busy {
            dir: dir.to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(io(source)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Held by who changes the directory.
pub(crate) const LOCK: &str = ".lock";

/// More than any file that is read here has.
const MAX_LEN: usize = 64 * 1024;
