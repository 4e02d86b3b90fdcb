//! What the engine costs beside the log: the figures of `docs/spool-engines.md`, which
//! `cargo test -p zk-spool --test sled costs -- --nocapture` prints.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use zk_spool::{Engine, Options, Spool};

use crate::common::{append, append_batch};

const DIRECTORY: &str = "ZK_SPOOL_COSTS_DIRECTORY";
const ENGINE: &str = "ZK_SPOOL_COSTS_ENGINE";
const GROUPS: u64 = 400;
const SINGLY: u64 = 200;
const RECORD: usize = 600;

/// The bytes that a directory takes on disk.
pub(crate) fn usage(path: &Path) -> u64 {
    let entries = path.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let below = entries.map(|path| {
        let own = path.symlink_metadata().unwrap().blocks() * 512;
        own + if path.is_dir() { usage(&path) } else { 0 }
    });
    below.sum()
}

/// A counter of what this process has read or written.
fn io(counter: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(counter));
    line.unwrap()[1..].trim().parse().unwrap()
}

/// Measures in a process of its own, whose counters nothing else moves.
#[test]
#[expect(clippy::exit, reason = "nothing is closed, as kill -9 leaves it")]
fn child() {
    let (Ok(directory), Ok(engine)) = (std::env::var(DIRECTORY), std::env::var(ENGINE)) else {
        return;
    };
    let options = Options {
        engine: if engine == "sled" {
            Engine::Sled
        } else {
            Engine::Log
        },
        ..Options::default()
    };
    let filled = Path::new(&directory).join("zk-spool").exists();
    let (read, start) = (io("rchar"), Instant::now());
    let spool = Spool::open(&directory, options).unwrap();
    if filled {
        println!("\nopen_ms {}", start.elapsed().as_secs_f64() * 1000.0);
        println!("open_read {}", io("rchar") - read);
        let before = io("write_bytes");
        let mut drained = 0.0;
        loop {
            let records = spool.peek(64, usize::MAX).unwrap();
            let Some(last) = records.last() else { break };
            drained += (records.len() * RECORD) as f64;
            spool.ack(last.position()).unwrap();
        }
        println!("drain_written {}", (io("write_bytes") - before) / drained);
        println!("left {}", usage(Path::new(&directory)));
        return;
    }
    let before = io("write_bytes");
    for _ in 0..SINGLY {
        append(&spool, RECORD).unwrap();
    }
    let written = io("write_bytes") - before;
    println!(
        "\nsingly_written {}",
        written / (SINGLY as usize * RECORD) as f64
    );
    let before = io("write_bytes");
    for _ in 0..GROUPS {
        append_batch(&spool, &[RECORD; 64]).unwrap();
    }
    let payload = (GROUPS as usize * 64 * RECORD) as f64;
    println!("groups_written {}", (io("write_bytes") - before) / payload);
    let all = payload + (SINGLY as usize * RECORD) as f64;
    println!("room {}", usage(Path::new(&directory)) as f64 / all);
    std::process::exit(0);
}

fn measure(directory: &Path, engine: Engine) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for _ in 0..2 {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["costs::child", "--exact", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(ENGINE, engine.name())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        figures.extend(text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        }));
    }
    figures
}

#[test]
fn beside_the_log() {
    // Where bytes that are written count: not in memory.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |engine: Engine| -> PathBuf { place.path().join(engine.name()) };
    let log = measure(&path(Engine::Log), Engine::Log);
    let sled = measure(&path(Engine::Sled), Engine::Sled);
    println!("{:16}{:>12}{:>12}", "", "log", "sled");
    for (name, figure) in &log {
        println!("{name:16}{figure:12.2}{:12.2}", sled[name]);
    }
    assert_eq!(log.len(), 7, "{log:?}");
    // What is said of it.
    assert!(sled["room"] < 2.5, "{sled:?}");
    assert!(sled["drain_written"] < 1.0, "{sled:?}");
    assert!(sled["left"] < 24e6, "{sled:?}");
}
