use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{OFlags, SeekFrom, major, minor, seek},
    io::Errno,
};

use super::{Lock, Storage, StorageFile};

/// A directory of the real file system.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory, and what is missing above it, with mode 0700.
    ///
    /// # Errors
    ///
    /// If it can't be made or is no directory.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
            .collect();
        // Whoever made the last one that is there may have been killed before its
        // name was durable. A parent that is not ours, or whose file system is not
        // written to, is not where that happened.
        let made_last = path.ancestors().nth(missing.len());
        if let Some(directory) = made_last.filter(|path| !path.as_os_str().is_empty()) {
            match sync_name(directory) {
                Err(error) if is_not_ours(&error) => {}
                result => result?,
            }
        }
        for directory in missing.into_iter().rev() {
            match make_directory(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
        }
        if !path.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self { path })
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        // A link in a spool is not the spool's, and leads to files that are not.
        options
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32);
        options
    }
}

impl Storage for Directory {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self, file: &str) -> io::Result<Option<Lock>> {
        let file = Self::options()
            .create(true)
            .truncate(false)
            .open(self.path.join(file))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(Held(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// From `/proc/locks`: `1: FLOCK ADVISORY WRITE 4089 fe:00:10298247 0 EOF`. A
    /// process that is outside of this one's namespace is not in there; and where a
    /// file system has other device numbers for its files than for itself, as btrfs
    /// has, nothing is found rather than something wrong.
    fn lock_holder(&self, file: &str) -> Option<u32> {
        let metadata = self.path.join(file).symlink_metadata().ok()?;
        let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
        let wanted = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, _, process, place, ..] = words[..] else {
                return None;
            };
            process.parse().ok().filter(|_| place == wanted)
        })
    }

    fn list(&self, subdirectory: &str) -> io::Result<Vec<(String, u64)>> {
        let path = self.path.join(subdirectory);
        if !subdirectory.is_empty() && path.is_symlink() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let entries = match path.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Others may take away what is theirs.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry.file_name().into_string()
                && metadata.is_file()
            {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn open(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(Arc::new(Self::options().open(self.path.join(file))?))
    }

    fn create(&self, file: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = Self::options()
            .create(true)
            .truncate(true)
            .open(self.path.join(file))?;
        Ok(Arc::new(file))
    }

    fn create_dir(&self, subdirectory: &str) -> io::Result<()> {
        match make_directory(&self.path.join(subdirectory)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::hard_link(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(file))
    }

    fn sync_dir(&self, subdirectory: &str) -> io::Result<()> {
        File::open(self.path.join(subdirectory))?.sync_all()
    }
}

impl StorageFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match seek(self, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => Ok(None),
            Err(Errno::INVAL) => Ok(Some(offset)),
            found => Ok(Some(found?)),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

/// Gives the lock back. Closing the file would not do: a process that is just being
/// started has it open, too, until it executes its program.
struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // It fails for no file that was locked; and then closing it is left.
        let _ = self.0.unlock();
    }
}

/// Makes one directory and its name durable.
fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    sync_name(path)
}

fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidInput
    )
}

/// Makes the name of a directory durable.
fn sync_name(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}
