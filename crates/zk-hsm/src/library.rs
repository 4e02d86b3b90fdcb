//! What all backends that load a C library share: which file may be loaded, and
//! whose turn it is inside.

use std::collections::{HashMap, VecDeque};
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
    /// Who waits, in the order in which they came.
    waiting: VecDeque<u64>,
    next: u64,
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

    /// Waits for the turn, at most for `patience`; who came first has it first.
    /// One who has been inside for that long is stuck, and isn't waited for at
    /// all.
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
        let ticket = door.next;
        door.next += 1;
        door.waiting.push_back(ticket);
        loop {
            let left = patience.saturating_sub(start.elapsed());
            let time = match door.inside {
                None if door.waiting.front() == Some(&ticket) => {
                    door.waiting.pop_front();
                    door.inside = Some((operation, Instant::now()));
                    return Ok(Turn(self));
                }
                // the first in the row is about to go in
                None => left,
                Some((operation, since)) => {
                    let elapsed = since.elapsed();
                    if elapsed >= patience {
                        door.waiting.retain(|&other| other != ticket);
                        return Err(Error::Wedged { operation, elapsed });
                    }
                    left.min(patience - elapsed)
                }
            };
            if left.is_zero() {
                let waiting = door.waiting.len();
                door.waiting.retain(|&other| other != ticket);
                return Err(Error::Busy { waiting });
            }
            door = self
                .left
                .wait_timeout(door, time)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// What has been inside for longer than `patience`, and since when.
    pub(crate) fn stuck(&self, patience: Duration) -> Option<(Operation, Instant)> {
        self.lock()
            .inside
            .filter(|(_, since)| since.elapsed() >= patience)
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
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Returns when so many wait at the door.
    fn wait_for(chip: &Chip, waiting: usize) {
        let start = Instant::now();
        while chip.lock().waiting.len() != waiting {
            assert!(start.elapsed() < PATIENCE, "nobody comes");
            thread::yield_now();
        }
    }

    #[test]
    fn who_came_first_has_the_turn_first() {
        let chip = Chip::of(Path::new("/first come"));
        let mut turn = chip.enter(Operation::Sign, PATIENCE).unwrap();
        let (entered, order) = mpsc::channel();
        thread::scope(|scope| {
            for n in 0..5 {
                let (chip, entered) = (&chip, entered.clone());
                scope.spawn(move || {
                    let _turn = chip.enter(Operation::Random, PATIENCE).unwrap();
                    entered.send(n).unwrap();
                });
                wait_for(chip, n + 1);
            }
            // one who leaves and comes again at once is the last
            drop(turn);
            turn = chip.enter(Operation::Sign, PATIENCE).unwrap();
            entered.send(5).unwrap();
            drop(turn);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn one_who_is_inside_for_longer_than_the_patience_is_stuck() {
        let chip = Chip::of(Path::new("/stuck"));
        let turn = chip.enter(Operation::Lock, PATIENCE).unwrap();
        let short = Duration::from_millis(50);
        for _ in 0..2 {
            let error = chip.enter(Operation::Sign, short).err().unwrap();
            assert!(
                matches!(error, Error::Wedged { operation: Operation::Lock, elapsed }
                    if elapsed >= short),
                "{error}"
            );
        }
        assert!(chip.lock().waiting.is_empty());
        // other libraries are other chips
        chip_is_free(&Chip::of(Path::new("/another")));
        drop(turn);
        chip_is_free(&chip);
    }

    fn chip_is_free(chip: &Chip) {
        chip.enter(Operation::Sign, Duration::ZERO).unwrap();
    }

    #[test]
    fn one_whose_turn_never_comes_finds_it_busy() {
        let chip = Chip::of(Path::new("/busy"));
        let turn = chip.enter(Operation::Sign, PATIENCE).unwrap();
        let (end, ended) = mpsc::channel::<()>();
        let short = Duration::from_secs(1);
        thread::scope(|scope| {
            let chip = &chip;
            scope.spawn(move || {
                let _turn = chip.enter(Operation::Random, PATIENCE).unwrap();
                let _ = ended.recv();
            });
            wait_for(chip, 1);
            let last = scope.spawn(move || chip.enter(Operation::Sign, short).err());
            wait_for(chip, 2);
            let start = Instant::now();
            while start.elapsed() < short / 2 {
                thread::yield_now();
            }
            drop(turn);
            let error = last.join().unwrap().unwrap();
            // the other one is inside for less than that
            assert!(matches!(error, Error::Busy { waiting: 1 }), "{error}");
            drop(end);
        });
        chip_is_free(&chip);
    }
}
