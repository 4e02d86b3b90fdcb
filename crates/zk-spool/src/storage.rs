//! What the spool needs of a file system, so that tests can stand in for one
//! that loses power.
//!
//! [`Directory`] is the real one. [`FaultStorage`] keeps files in memory,
//! forgets what was not synced and fails when told to.

mod directory;
#[cfg(feature = "fault-injection")]
mod fault;
#[cfg(feature = "sled")]
mod sled;

use std::{any::Any, fmt, io, sync::Arc};

use rustix::io::Errno;

#[cfg(feature = "sled")]
pub use self::sled::SledDirectory;
pub use directory::Directory;
#[cfg(feature = "fault-injection")]
pub use fault::{Cut, Fault, FaultStorage};

/// One directory and its subdirectories. Names are relative, with `/` between a
/// subdirectory and a file.
pub trait Storage: fmt::Debug + Send + Sync {
    /// Names the directory to people.
    fn name(&self) -> String;

    /// Takes the one lock of the directory, on `file`, which is made if it is
    /// missing. `None`: somebody else has it. It is free again when the value
    /// is dropped or the process ends.
    fn lock(&self, file: &str) -> io::Result<Option<Lock>>;

    /// The process that has the lock, where the system tells.
    fn lock_holder(&self, _file: &str) -> Option<u32> {
        None
    }

    /// The plain files in a subdirectory (`""`: the directory itself), with
    /// their lengths. A subdirectory that is missing is empty, and one that is a link
    /// is none.
    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>>;

    /// Opens a file for reading and writing.
    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Makes a file, or empties the one that is there.
    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Makes a subdirectory, if it is missing.
    fn create_dir(&self, subdirectory: &str) -> io::Result<()>;

    /// Renames a file, replacing any of the new name at once.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Gives a file a second name.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name.
    fn remove(&self, file: &str) -> io::Result<()>;

    /// Makes the names in a subdirectory (`""`: the directory itself) durable.
    fn sync_dir(&self, subdirectory: &str) -> io::Result<()>;
}

/// An open file.
pub trait StorageFile: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fills the buffer from a place that lies wholly inside the file. Where a part of
    /// it is missing, that is an `UnexpectedEof`; the rest may be in its place all the
    /// same, and what is missing is left as it was.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// The first place from `offset` on that is in no hole, which reads as zeros.
    /// `None`: there is none. Where holes are not known, all is data.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    /// Writes all of the bytes; after an error any part of them may have been
    /// written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Shortens or lengthens the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// Holds a directory's lock until it is dropped.
pub type Lock = Box<dyn Any + Send + Sync>;

/// Syncs a file. A sync that failed says nothing about what it wrote, so that it
/// never counts as a mere lack of room.
pub(crate) fn sync(file: &dyn StorageFile) -> io::Result<()> {
    file.sync_data().map_err(never_full)
}

/// As [`sync`], for the names in a directory.
pub(crate) fn sync_dir(storage: &dyn Storage, subdirectory: &str) -> io::Result<()> {
    storage.sync_dir(subdirectory).map_err(never_full)
}

/// Whether the medium, or the file system's own records of a file, are damaged.
/// Trying again does not help; anything else, such as a lack of rights, may be
/// mended.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    let damage = [Errno::IO, Errno::UCLEAN, Errno::BADMSG];
    Errno::from_io_error(error).is_some_and(|errno| damage.contains(&errno))
        || error.kind() == io::ErrorKind::InvalidData
}

fn never_full(error: io::Error) -> io::Error {
    if crate::error::is_full(&error) {
        io::Error::other(error)
    } else {
        error
    }
}
