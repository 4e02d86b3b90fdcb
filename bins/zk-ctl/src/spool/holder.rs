//! Who has a spool open.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The program and its process id, as far as the system tells: what runs in
/// another container is not to be seen.
pub(super) fn of(dir: &Path) -> String {
    let Some(pid) = process(dir) else {
        return "another process".to_owned();
    };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{} (process {pid})", crate::server::printable(name.trim())),
        Err(_) => format!("process {pid}"),
    }
}

/// Each line of `/proc/locks` names a lock, its process, and the file as
/// `major:minor:inode`, the first two in hexadecimal (proc_locks(5)).
fn process(dir: &Path) -> Option<u32> {
    let file = fs::metadata(dir.join("zk-spool")).ok()?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, "WRITE", pid, file, ..] if file == place => pid.parse().ok(),
            _ => None,
        }
    })
}
