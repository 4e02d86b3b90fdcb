//! What all backends that load a C library share: which file may be loaded, and
//! whose turn it is inside.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Operation};

/// The library's file without symbolic links, if nobody but root and the user
/// of this process can have written it.
///
/// The file and its directory must belong to one of these and be writable for
/// no other; in a directory above that others may write to, as `/tmp`, only
/// the sticky bit keeps them from exchanging what isn't theirs.
pub(crate) fn trusted(library: &Path, next: &'static str) -> Result<PathBuf, Error> {
    let unloadable = |error: std::io::Error| Error::LibraryUnloadable {
        path: library.to_owned(),
        problem: error.to_string().into(),
        next,
    };
    let file = fs::canonicalize(library).map_err(unloadable)?;
    let user = rustix::process::geteuid().as_raw();
    for (depth, path) in file.ancestors().enumerate() {
        let metadata = fs::metadata(path).map_err(unloadable)?;
        let (mode, owner) = (metadata.mode(), metadata.uid());
        // 0 is the file, 1 its directory
        let others = if depth < 2 { 0o022 } else { 0o002 };
        let sticky = depth > 1 && mode & 0o1000 != 0;
        let problem = if owner != 0 && owner != user {
            "belongs to another user"
        } else if mode & others != 0 && !sticky {
            "can be written by other users"
        } else {
            continue;
        };
        return Err(Error::LibraryUntrusted {
            library: file.clone(),
            path: path.to_owned(),
            problem,
        });
    }
    Ok(file)
}

/// A chip as this process sees it: the library that leads to it. However many
/// handles are open, **one call at a time** goes in: no vendor promises that
/// its library takes more, and a stuck one has nobody opened beside it.
pub(crate) struct Chip {
    door: Mutex<Door>,
    left: Condvar,
}

#[derive(Default)]
struct Door {
    inside: Option<(Operation, Instant)>,
    waiting: usize,
}

impl Chip {
    /// The one of this library: a path that [`trusted`] gave.
    pub(crate) fn of(library: &Path) -> Arc<Self> {
        static CHIPS: Mutex<Option<HashMap<PathBuf, Arc<Chip>>>> = Mutex::new(None);
        let mut chips = CHIPS.lock().unwrap_or_else(PoisonError::into_inner);
        let chip = chips
            .get_or_insert_default()
            .entry(library.to_owned())
            .or_insert_with(|| {
                Arc::new(Self {
                    door: Mutex::default(),
                    left: Condvar::new(),
                })
            });
        Arc::clone(chip)
    }

    /// Waits for the turn, at most for `patience`. One who has been inside for
    /// that long is stuck, and isn't waited for at all.
    ///
    /// # Errors
    ///
    /// [`Error::Wedged`] then; [`Error::Busy`] if others came and went, and
    /// the turn was always theirs.
    pub(crate) fn enter(
        &self,
        operation: Operation,
        patience: Duration,
    ) -> Result<Turn<'_>, Error> {
        let start = Instant::now();
        let mut door = self.lock();
        loop {
            let Some((inner, since)) = door.inside else {
                door.inside = Some((operation, Instant::now()));
                return Ok(Turn(self));
            };
            let elapsed = since.elapsed();
            if elapsed >= patience {
                return Err(Error::Wedged {
                    operation: inner,
                    elapsed,
                });
            }
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::Busy {
                    waiting: door.waiting + 1,
                });
            }
            door.waiting += 1;
            door = self
                .left
                .wait_timeout(door, left.min(patience - elapsed))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            door.waiting -= 1;
        }
    }

    /// Nothing panics while it holds the door, so a poisoned one is in order.
    fn lock(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Being inside a library.
pub(crate) struct Turn<'a>(&'a Chip);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().inside = None;
        self.0.left.notify_one();
    }
}
