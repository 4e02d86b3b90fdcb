//! Files of the operator's directory: bounded reads, atomic writes, one writer.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use crate::Error;
use crate::report::{Action, Item, Step};

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

/// Makes the file have these bytes and says what that took.
///
/// A file is replaced as a whole: after a crash it has the old bytes or the new
/// ones. When this returns they survive a power cut.
pub(crate) fn update(path: &Path, bytes: &[u8], mode: u32) -> Result<Step, Error> {
    let action = match read(path)? {
        Some(old) if old.as_slice() == bytes => Action::Kept,
        Some(_) => Action::Changed,
        None => Action::Created,
    };
    if action != Action::Kept {
        replace(path, bytes, mode).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(step(action, path))
}

pub(crate) fn step(action: Action, path: &Path) -> Step {
    Step {
        action,
        item: Item::File(path.to_owned()),
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

/// Holds the directory until dropped, so that two writers can't lose each
/// other's changes.
pub(crate) fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(".lock");
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

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = parent(path);
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// More than any file that is read here has.
const MAX_LEN: usize = 64 * 1024;
